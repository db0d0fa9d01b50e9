"""Bounds-checked reader of MCAP files as bag storage."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from vla_policy_node.replay.mcap_records import (
    CHUNK,
    CHUNK_INDEX,
    DATA_END,
    FOOTER,
    MAGIC,
    MESSAGE,
    STATISTICS,
    Definitions,
    Fields,
    messages_of,
    one_message,
    records,
    unpack_chunk,
)
from vla_policy_node.replay.storage import (
    MOST_HELD_BYTES,
    BoundsError,
    OtherFormError,
    StorageError,
    Stored,
    Topic,
    most_unpacked,
    regular_size,
)

_FOOTER_BYTES = 9 + 20 + len(MAGIC)
_MOST_SUMMARY_BYTES = 64 * 2**20
# What is held to bring messages into order where there is no index, and what one costs beside its
# bytes.
_MOST_SORTED_BYTES, _MESSAGE_BYTES = 64 * 2**20, 200


@dataclass(frozen=True)
class Chunk:
    """Position of a chunk, and the time span of its messages."""

    start_ns: int
    end_ns: int
    offset: int
    unpacked_bytes: int


class McapFile:
    """An MCAP file as a `storage.Storage`. Indexed chunks are read in time order."""

    def __init__(self, path: Path):
        self.topics: dict[str, Topic] = {}
        self.start_ns = self.end_ns = 0
        self._size = regular_size(path)
        self._unpacked_bytes = 0
        self._definitions = Definitions()
        self._chunks: list[Chunk] = []
        self._stream = path.open('rb')
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _open(self) -> None:
        if self._stream.read(len(MAGIC)) != MAGIC:
            raise StorageError('it does not begin as an MCAP file does')
        self._stream.seek(max(0, self._size - _FOOTER_BYTES))
        footer = self._stream.read()
        if len(footer) < _FOOTER_BYTES or footer[:1] != bytes([FOOTER]) or not footer.endswith(
                MAGIC):
            raise StorageError('it does not end as an MCAP file does')
        self._end = self._size - _FOOTER_BYTES
        summary = struct.unpack_from('<Q', footer, 9)[0]
        counts = self._read_summary(summary) if summary else None
        if counts is None:
            self._chunks = []
            counts = self._count()
        # First those that have messages: others do not say what the messages of a topic are.
        for number, channel in sorted(
                self._definitions.channels.items(), key=lambda item: not counts.get(item[0])):
            topic = self.topics.setdefault(
                channel.topic, Topic(self._definitions.kind(channel)))
            topic.count += counts.get(number, 0)
            if counts.get(number):
                topic.also(self._definitions.kind(channel))

    def _read_summary(self, start: int) -> dict[int, int] | None:
        """Return the number of messages of each channel; None if the summary lacks it.

        The counts by channel are optional: they are none if they do not add up to all messages.
        """
        if not len(MAGIC) <= start <= self._end:
            raise StorageError('its summary lies outside of it')
        if self._end - start > _MOST_SUMMARY_BYTES:
            raise BoundsError(f'its summary has {self._end - start} bytes')
        counts: dict[int, int] = {}
        total = chunks_said = 0
        for opcode, body in records(self._stream, start, self._end):
            self._definitions.learn(opcode, body)
            if opcode == CHUNK_INDEX:
                self._chunks.append(_chunk_of(body))
            elif opcode == STATISTICS:
                fields = Fields(body)
                total, _, _, _, _, chunks_said, self.start_ns, self.end_ns = fields.numbers(
                    struct.Struct('<QHIIIIQQ'))
                counts = dict(struct.iter_unpack('<HQ', fields.sized()))
        unpacked = sum(chunk.unpacked_bytes for chunk in self._chunks)
        if unpacked > most_unpacked(self._size):
            raise BoundsError(f'its {self._size} bytes claim to be {unpacked} unpacked')
        if not (chunks_said == len(self._chunks) > 0 and 0 < total == sum(counts.values())):
            return None
        return counts if self._definitions.tell_of(counts) else None

    def _count(self) -> dict[int, int]:
        """Go through all messages, for what the summary lacks."""
        counts: dict[int, int] = {}
        times: list[int] = []
        for channel, time_ns, _ in self._in_file_order(None):
            counts[channel] = counts.get(channel, 0) + 1
            times = [min(time_ns, *times[:1]), max(time_ns, *times[1:])] if times else [
                time_ns, time_ns]
        self.start_ns, self.end_ns = times or (0, 0)
        return counts

    def messages(self, topics: Collection[str]) -> Iterator[Stored]:
        """As `storage.Storage`."""
        wanted = {number: channel.topic
                  for number, channel in self._definitions.channels.items()
                  if channel.topic in topics}
        if self._chunks:
            source = self._in_order_of_time(wanted)
        else:
            source = _sorted(self._in_file_order(wanted))
        for channel, time_ns, data in source:
            yield wanted[channel], time_ns, data

    def _in_order_of_time(self, wanted: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        waiting: list[tuple[int, int, int, bytes]] = []
        held_bytes = order = 0
        for chunk in sorted(self._chunks, key=lambda chunk: (chunk.start_ns, chunk.offset)):
            while waiting and waiting[0][0] < chunk.start_ns:
                time_ns, _, channel, data = heapq.heappop(waiting)
                held_bytes -= len(data)
                yield channel, time_ns, data
            (opcode, body), = records(self._stream, chunk.offset, self._end, 1)
            if opcode != CHUNK:
                raise StorageError('its index does not lead to its chunks')
            for channel, time_ns, data in messages_of(
                    unpack_chunk(body, chunk.unpacked_bytes), wanted):
                if not chunk.start_ns <= time_ns <= chunk.end_ns:
                    raise StorageError('a chunk holds messages of other times than its index says')
                heapq.heappush(waiting, (time_ns, order, channel, data))
                order += 1
                held_bytes += len(data)
                if held_bytes > MOST_HELD_BYTES:
                    raise BoundsError(f'more than {MOST_HELD_BYTES} bytes of it are of one time')
        while waiting:
            time_ns, _, channel, data = heapq.heappop(waiting)
            yield channel, time_ns, data

    def _in_file_order(
        self, wanted: Collection[int] | None
    ) -> Iterator[tuple[int, int, bytes]]:
        left = most_unpacked(self._size)
        for opcode, body in records(self._stream, len(MAGIC), self._end):
            if opcode == DATA_END:
                return
            if opcode == CHUNK:
                unpacked = unpack_chunk(body)
                left -= len(unpacked)
                if left < 0:
                    raise BoundsError(f'its {self._size} bytes are more than '
                                      f'{most_unpacked(self._size)} unpacked')
                yield from messages_of(unpacked, wanted, self._definitions)
            elif opcode == MESSAGE:
                yield from one_message(body, wanted)
            else:
                self._definitions.learn(opcode, body)


def _chunk_of(body: bytes) -> Chunk:
    fields = Fields(body)
    start_ns, end_ns, offset, _ = fields.numbers(struct.Struct('<QQQQ'))
    fields.sized()
    fields.take(8)
    fields.text()
    _, unpacked_bytes = fields.numbers(struct.Struct('<QQ'))
    return Chunk(start_ns, end_ns, offset, unpacked_bytes)


def _sorted(source: Iterator[tuple[int, int, bytes]]) -> Iterator[tuple[int, int, bytes]]:
    """Yield in the order of time what is written nearly so: a recorder's threads overtake."""
    waiting: list[tuple[int, int, int, bytes]] = []
    held_bytes = last_ns = 0

    def first() -> tuple[int, int, bytes]:
        nonlocal held_bytes, last_ns
        time_ns, _, channel, data = heapq.heappop(waiting)
        held_bytes -= len(data) + _MESSAGE_BYTES
        if time_ns < last_ns:
            raise OtherFormError(
                'it has no index and its messages are not in the order of time; `vla record '
                '--repair` makes a copy of it that has one')
        last_ns = time_ns
        return channel, time_ns, data

    for order, (channel, time_ns, data) in enumerate(source):
        heapq.heappush(waiting, (time_ns, order, channel, data))
        held_bytes += len(data) + _MESSAGE_BYTES
        while held_bytes > _MOST_SORTED_BYTES:
            yield first()
    while waiting:
        yield first()
