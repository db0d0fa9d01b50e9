"""Reads rosbag2 recordings as a stream of serialised messages, in recording order."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import ExitStack
from pathlib import Path

from vla_policy_node.replay.bag_files import METADATA, find_files, form_of
from vla_policy_node.replay.mcap_file import McapFile
from vla_policy_node.replay.sqlite_file import SqliteFile
from vla_policy_node.replay.storage import (
    MOST_MESSAGE_BYTES,
    ZSTD,
    BoundsError,
    OtherFormError,
    Storage,
    Topic,
    unpack,
    unpack_file,
)

_STORAGES: dict[str, Callable[[Path], Storage]] = {
    'mcap': McapFile, 'sqlite3': SqliteFile}
_MOST_REMARKS = 20
# Later times do not fit into a message; earlier ones are before 1970.
_LATEST_NS = 2**62


class BagError(ValueError):
    """A bag that cannot be replayed; one sentence says why and what to do."""


class Bag:
    """One rosbag2 recording: sqlite3 or mcap, plain or compressed with zstd (mcap: also lz4).

    A context manager. Messages come one at a time, undecoded, and none is kept, however long the
    bag is. Memory stays within the bounds of `storage` whatever the bag contains, and nothing
    outside its folder is read. Not thread-safe.

    Topics are found by their names in the files themselves; metadata.yaml only says which files
    belong together and how many messages it counted.

    path: the folder, its metadata.yaml, or one file: .mcap or .db3, also packed with zstd.
    timeless: number of messages by topic that were skipped because their time is invalid.
    counted: number of messages by topic that metadata.yaml says.
    Raises BagError, here and while reading.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if self.path.name == METADATA:
            self.path = self.path.parent
        self.timeless: Counter[str] = Counter()
        self.counted: Mapping[str, int] = {}
        self._read: dict[str, int] = {}
        self._notes: list[str] = []
        self._packed_messages: bool | None = None
        self._storages: list[Storage] = []
        self._stack = ExitStack()

    def __enter__(self) -> Bag:
        if not self.path.exists():
            raise BagError(f"There is no bag '{self.path}'.")
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
        found = find_files(self.path)
        self._packed_messages, self.counted = found.packed_messages, found.counted
        self._notes = list(found.notes)
        folder = None
        for number, file in enumerate(found.files):
            form = form_of(file)
            if form == 'zstd':
                folder = folder or Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
                file, packed = folder / f'{number}-{file.stem}', file
                unpack_file(packed, file)
                form = form_of(file)
            if form not in _STORAGES:
                raise OtherFormError('it is packed twice; unpack it first')
            storage = _STORAGES[form](file)
            self._stack.callback(storage.close)
            self._storages.append(storage)
        # By name 10 comes before 9, and whoever made metadata.yaml anew listed them by name.
        self._storages.sort(key=lambda storage: storage.start_ns)

    @property
    def types(self) -> dict[str, str]:
        """Message type of each topic that has messages, for instance 'sensor_msgs/msg/Image'."""
        topics: dict[str, Topic] = {}
        for storage in self._storages:
            for name, topic in storage.topics.items():
                if topic.count:
                    topics.setdefault(name, Topic(topic.kind)).also(topic.kind)
        return {name: topic.kind for name, topic in topics.items()}

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

    def messages(
        self, topics: Collection[str]
    ) -> Generator[tuple[str, int, bytes], None, None]:
        """Yield topic, time of recording (ns) and serialised message of the topics named.

        A message with an invalid time is skipped and counted in `timeless`.
        """
        read: Counter[str] = Counter()
        for topic in topics:
            self.timeless.pop(topic, None)
        for storage in self._storages:
            source = storage.messages({*topics} & storage.topics.keys())
            while True:
                try:
                    topic, time_ns, raw = next(source)
                    read[topic] += 1
                    if self._packed_messages or (
                            self._packed_messages is None and raw[:len(ZSTD)] == ZSTD):
                        raw = unpack(raw, MOST_MESSAGE_BYTES, 'a message')
                except StopIteration:
                    break
                except Exception as error:
                    raise self._refusal(error) from error
                if 0 <= time_ns < _LATEST_NS:
                    yield topic, time_ns, raw
                else:
                    self.timeless[topic] += 1
        counts = self.counts
        self._read.update({topic: read[topic] for topic in topics if topic in counts})

    def remarks(self) -> list[str]:
        """Return a sentence for all that is odd about what was counted and read so far."""
        counts = self.counts
        remarks = [f'{count} messages on {topic} have times of no clock and were left out.'
                   for topic, count in sorted(self.timeless.items())]
        for topic in sorted({*counts, *self.counted}):
            held = self._read.get(topic, counts.get(topic, 0))
            said = {METADATA: self.counted.get(topic, held), 'the file itself': counts.get(
                topic, held)}
            remarks += [f'{topic}: {who} counts {number} messages, there are {held}.'
                        for who, number in said.items() if number != held]
        shown = remarks[:_MOST_REMARKS]
        if len(remarks) > len(shown):
            shown.append(f'{len(remarks) - len(shown)} more remarks like these were left out.')
        return self._notes + shown

    def _refusal(self, error: Exception) -> BagError:
        reason = str(error).strip().rstrip('.') or type(error).__name__
        if isinstance(error, (BoundsError, OtherFormError)):
            return BagError(f"The bag '{self.path}' is not read: {reason}.")
        return BagError(
            f"The bag '{self.path}' is damaged or cut off ({reason.splitlines()[0]}); "
            f'`vla record --repair {self.path}` makes a readable copy of what is whole.')
