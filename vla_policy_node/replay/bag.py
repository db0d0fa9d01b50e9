"""Reads rosbag2 recordings as a stream of serialised messages, in recording order."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from vla_policy_node.common.plain_yaml import read_plain_yaml
from vla_policy_node.replay.mcap_file import McapFile
from vla_policy_node.replay.sqlite_file import SqliteFile
from vla_policy_node.replay.storage import (
    MOST_MESSAGE_BYTES,
    BoundsError,
    Storage,
    StorageError,
    unpack,
    unpack_file,
)

METADATA = 'metadata.yaml'
_MOST_METADATA_BYTES = 4 * 2**20  # enough for days of recording in files of a minute
_MOST_FILES = 10_000
_STORAGES = {'mcap': McapFile, 'sqlite3': SqliteFile}
_SUFFIXES = {'.mcap': McapFile, '.db3': SqliteFile}
_NEWEST_VERSION = 9
# Later times do not fit into a message; earlier ones are before 1970.
_LATEST_NS = 2**62


class BagError(ValueError):
    """A bag that cannot be replayed; one sentence says why and what to do."""


class Bag:
    """One rosbag2 recording: sqlite3 or mcap, plain or compressed with zstd (mcap: also lz4).

    A context manager. Messages come one at a time, undecoded, and none is kept, however long the
    bag is. Memory stays within the bounds of `storage` whatever the bag contains, and nothing
    outside its folder is read. Not thread-safe.

    path: the folder with metadata.yaml, or one .mcap or .db3 file.
    timeless: number of messages by topic that were skipped because their time is invalid.
    Raises BagError, here and while reading.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.timeless: Counter[str] = Counter()
        self._packed_messages = False
        self._storages: list[Storage] = []
        self._stack = ExitStack()

    def __enter__(self) -> Bag:
        path = self.path
        if path.is_dir() and not (path / METADATA).exists():
            if any(path.glob('*.mcap')) or any(path.glob('*.db3')):
                raise BagError(
                    f"'{path}' has no metadata.yaml, so its recording was cut off; "
                    f'`vla record --repair {path}` makes a readable copy of what is whole.')
            raise BagError(f"'{path}' is no rosbag2 folder: it has no metadata.yaml.")
        if not path.exists():
            raise BagError(f"There is no bag '{path}'.")
        with self._stack:
            try:
                self._open()
            except Exception as error:  # of the libraries that read it
                raise self._refusal(error) from error
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def _open(self) -> None:
        if self.path.is_dir():
            kind, files = self._read_metadata()
        elif self.path.suffix in _SUFFIXES:
            kind, files = _SUFFIXES[self.path.suffix], [self.path]
        else:
            raise StorageError('it is neither a folder nor an .mcap or .db3 file')
        for file in files:
            storage = kind(file)
            self._stack.callback(storage.close)
            self._storages.append(storage)
        for topic in {name for storage in self._storages for name in storage.topics}:
            if len({s.topics[topic].kind for s in self._storages if topic in s.topics}) > 1:
                raise StorageError(f'{topic} has two message types')

    def _read_metadata(self) -> tuple[type, list[Path]]:
        """Return the reader for the files of the folder, and the files, unpacked."""
        document = read_plain_yaml(self.path / METADATA, _MOST_METADATA_BYTES)
        try:
            about = document['rosbag2_bagfile_information']
            version, storage = int(about['version']), str(about['storage_identifier'])
            names = [str(name) for name in about['relative_file_paths']]
            mode = str(about.get('compression_mode') or '').lower()
            form = str(about.get('compression_format') or '')
        except (TypeError, KeyError, AttributeError, ValueError):
            raise StorageError(f'{METADATA} does not say what its files are') from None
        if version > _NEWEST_VERSION or storage not in _STORAGES:
            raise StorageError(f'version {version} with storage {storage[:20]!r} is not known')
        if mode not in ('', 'none', 'file', 'message') or (mode in ('file', 'message')
                                                           and form != 'zstd'):
            raise StorageError(f'compression {form[:20]!r} by {mode[:20]!r} is not known')
        if len(names) > _MOST_FILES:
            raise BoundsError(f'it has {len(names)} files')
        files = [self._file(name) for name in names]
        self._packed_messages = mode == 'message'
        if mode == 'file':
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            files = [self._unpacked(file, folder / f'{number}-{file.stem}')
                     for number, file in enumerate(files)]
        return _STORAGES[storage], files

    def _file(self, name: str) -> Path:
        """Return a file of the folder; before version 4 its name begins with the folder's."""
        path = PurePosixPath(name)
        if path.is_absolute() or '..' in path.parts or not path.parts:
            raise BoundsError(f'{METADATA} names a file outside of it: {name[:80]!r}')
        inside = self.path / path
        file = inside if inside.exists() else self.path / path.name
        if not file.exists():
            raise StorageError(f'{path.name[:80]} is missing')
        return file

    def _unpacked(self, file: Path, target: Path) -> Path:
        unpack_file(file, target)
        return target

    @property
    def types(self) -> dict[str, str]:
        """Message type of each topic that has messages, for instance 'sensor_msgs/msg/Image'."""
        return {name: topic.kind for storage in self._storages
                for name, topic in storage.topics.items() if topic.count}

    @property
    def counts(self) -> dict[str, int]:
        """Number of messages of each topic."""
        counts: Counter[str] = Counter()
        for storage in self._storages:
            counts.update({name: topic.count for name, topic in storage.topics.items()})
        return dict(counts)

    @property
    def duration_s(self) -> float:
        """Time between the first and the last message."""
        spans = [storage for storage in self._storages if any(
            topic.count for topic in storage.topics.values())]
        if not spans:
            return 0.0
        return max(0, max(s.end_ns for s in spans) - min(s.start_ns for s in spans)) / 1e9

    def messages(self, topics: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        """Yield topic, time of recording (ns) and serialised message of the topics named.

        A message with an invalid time is skipped and counted in `timeless`.
        """
        for topic in topics:
            self.timeless.pop(topic, None)
        for storage in self._storages:
            source = storage.messages({*topics} & storage.topics.keys())
            while True:
                try:
                    topic, time_ns, raw = next(source)
                    if self._packed_messages:
                        raw = unpack(raw, MOST_MESSAGE_BYTES, 'a message')
                except StopIteration:
                    break
                except Exception as error:
                    raise self._refusal(error) from error
                if 0 <= time_ns < _LATEST_NS:
                    yield topic, time_ns, raw
                else:
                    self.timeless[topic] += 1

    def _refusal(self, error: Exception) -> BagError:
        reason = str(error).strip().rstrip('.') or type(error).__name__
        if isinstance(error, BoundsError):
            return BagError(f"The bag '{self.path}' is not read: {reason}.")
        return BagError(
            f"The bag '{self.path}' is damaged or cut off ({reason.splitlines()[0]}); "
            f'`vla record --repair {self.path}` makes a readable copy of what is whole.')
