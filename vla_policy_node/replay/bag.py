"""Rosbag2 recordings as a stream of serialised messages, in the order of their recording."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from rosbags.rosbag2 import Reader


class BagError(ValueError):
    """A bag that cannot be replayed; one sentence says why and what to do."""


class Bag:
    """One rosbag2 recording: sqlite3 or mcap, plain or compressed with zstd.

    A context manager. Messages come one at a time, undecoded; however long the bag is, nothing of
    it is kept. Not thread-safe.

    path: the folder with metadata.yaml, or one .mcap or .db3 file.
    Raises BagError, here and while reading.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._reader: Reader | None = None

    def __enter__(self) -> Bag:
        path = self.path
        if path.is_dir() and not (path / 'metadata.yaml').is_file():
            if any(path.glob('*.mcap')) or any(path.glob('*.db3')):
                raise BagError(
                    f"'{path}' has no metadata.yaml, so its recording was cut off; "
                    f'`vla record --repair {path}` makes a readable copy of what is whole.')
            raise BagError(f"'{path}' is no rosbag2 folder: it has no metadata.yaml.")
        try:
            reader = Reader(path)
            reader.open()
        except FileNotFoundError:
            raise BagError(f"There is no bag '{path}'.") from None
        except Exception as error:  # of the library, and of what it reads with
            raise BagError(_damaged(path, error)) from error
        self._reader = reader
        return self

    def __exit__(self, *exception) -> None:
        self._reader.close()

    @property
    def types(self) -> dict[str, str]:
        """Message type of each topic that has messages, for instance 'sensor_msgs/msg/Image'."""
        return {c.topic: c.msgtype for c in self._reader.connections if c.msgcount}

    @property
    def counts(self) -> dict[str, int]:
        """Number of messages of each topic."""
        return {topic: info.msgcount for topic, info in self._reader.topics.items()}

    @property
    def duration_s(self) -> float:
        """Time between the first and the last message."""
        return self._reader.duration / 1e9

    def messages(self, topics: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        """Yield topic, time of recording (ns) and serialised message of the topics named."""
        connections = [c for c in self._reader.connections if c.topic in topics]
        if not connections:
            return
        source = self._reader.messages(connections)
        while True:
            try:
                connection, time_ns, raw = next(source)
            except StopIteration:
                return
            except Exception as error:
                raise BagError(_damaged(self.path, error)) from error
            yield connection.topic, time_ns, raw


def _damaged(path: Path, error: Exception) -> str:
    reason = str(error).strip().rstrip('.') or type(error).__name__
    return (f"The bag '{path}' is damaged or cut off ({reason}); `vla record --repair {path}` "
            'makes a readable copy of what is whole.')
