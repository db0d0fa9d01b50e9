"""MCAP reader that bounds everything a file can claim (https://mcap.dev/spec, version 0)."""

from __future__ import annotations

import heapq
import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import lz4.frame

from vla_policy_node.replay.storage import (
    MOST_CHUNK_BYTES,
    MOST_HELD_BYTES,
    MOST_MESSAGE_BYTES,
    MOST_TOPICS,
    BoundsError,
    StorageError,
    Stored,
    Topic,
    checked_name,
    most_unpacked,
    regular_size,
    unpack,
)

MAGIC = b'\x89MCAP0\r\n'
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK = range(1, 7)
CHUNK_INDEX, STATISTICS, DATA_END = 0x08, 0x0B, 0x0F
_FOOTER_BYTES = 9 + 20 + len(MAGIC)
_MOST_SUMMARY_BYTES = 64 * 2**20
_LARGEST_RECORD = {SCHEMA: 4 * 2**20, CHANNEL: 2**20, MESSAGE: MOST_MESSAGE_BYTES,
                   CHUNK: MOST_CHUNK_BYTES}
_MESSAGE_HEAD = struct.Struct('<HIQQ')  # channel, sequence, time of recording, of publishing
_CHUNK_HEAD = struct.Struct('<QQQI')  # first and last time, size unpacked, CRC


class Fields:
    """Reads the fields of a record one after the other; StorageError beyond its end."""

    def __init__(self, body: bytes):
        self._body = body
        self._at = 0

    def take(self, size: int) -> bytes:
        """Return that many bytes."""
        if size > len(self._body) - self._at:
            raise StorageError('a record is shorter than what it holds')
        self._at += size
        return self._body[self._at - size:self._at]

    def numbers(self, form: struct.Struct) -> tuple[int, ...]:
        """Return numbers."""
        return form.unpack(self.take(form.size))

    def number(self, letter: str) -> int:
        """Return one number, by its letter of `struct`."""
        return self.numbers(struct.Struct(f'<{letter}'))[0]

    def sized(self) -> bytes:
        """Return bytes that are preceded by their length."""
        return self.take(self.number('I'))

    def text(self) -> str:
        """Return a string."""
        return self.sized().decode('utf-8', 'replace')

    def rest(self) -> bytes:
        """Return the remaining bytes."""
        return self._body[self._at:]


@dataclass(frozen=True)
class Schema:
    """Name and definition of a message type."""

    name: str
    encoding: str
    text: str


@dataclass(frozen=True)
class Channel:
    """A channel: the topic that messages refer to."""

    topic: str
    schema: int
    encoding: str


@dataclass(frozen=True)
class Chunk:
    """Position of a chunk, and the time span of its messages."""

    start_ns: int
    end_ns: int
    offset: int
    unpacked_bytes: int


@dataclass
class Definitions:
    """Schemas and channels read so far."""

    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)

    def learn(self, opcode: int, body: bytes) -> None:
        """Read a schema or channel record; others are ignored."""
        if opcode not in (SCHEMA, CHANNEL):
            return
        fields = Fields(body)
        number = fields.number('H')
        if opcode == SCHEMA:
            name = checked_name(fields.text(), 'message type')
            self.schemas[number] = Schema(name, fields.text(), fields.text())
        else:
            schema = fields.number('H')
            topic = checked_name(fields.text(), 'topic')
            self.channels[number] = Channel(topic, schema, checked_name(fields.text(), 'format'))
        if max(len(self.schemas), len(self.channels)) > MOST_TOPICS:
            raise BoundsError(f'it has more than {MOST_TOPICS} topics')

    def kind(self, channel: Channel) -> str:
        """Return the message type of a channel, with its encoding if that is not CDR."""
        schema = self.schemas.get(channel.schema)
        name = schema.name if schema else 'no type'
        return name if channel.encoding == 'cdr' else f'{name} as {channel.encoding}'


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
        for number, channel in self._definitions.channels.items():
            topic = self.topics.setdefault(
                channel.topic, Topic(self._definitions.kind(channel)))
            topic.count += counts.get(number, 0)
            if topic.kind != self._definitions.kind(channel) and counts.get(number):
                raise StorageError(f'{channel.topic} has two message types')

    def _read_summary(self, start: int) -> dict[int, int] | None:
        """Return the number of messages of each channel; None if the summary lacks it."""
        if not len(MAGIC) <= start <= self._end:
            raise StorageError('its summary lies outside of it')
        if self._end - start > _MOST_SUMMARY_BYTES:
            raise BoundsError(f'its summary has {self._end - start} bytes')
        counts, chunks_said = None, 0
        for opcode, body in records(self._stream, start, self._end):
            self._definitions.learn(opcode, body)
            if opcode == CHUNK_INDEX:
                self._chunks.append(_chunk_of(body))
            elif opcode == STATISTICS:
                fields = Fields(body)
                _, _, _, _, _, chunks_said, self.start_ns, self.end_ns = fields.numbers(
                    struct.Struct('<QHIIIIQQ'))
                counts = dict(struct.iter_unpack('<HQ', fields.sized()))
        unpacked = sum(chunk.unpacked_bytes for chunk in self._chunks)
        if unpacked > most_unpacked(self._size):
            raise BoundsError(f'its {self._size} bytes claim to be {unpacked} unpacked')
        complete = counts is not None and chunks_said == len(self._chunks) > 0
        return counts if complete and self._definitions.channels else None

    def _count(self) -> dict[int, int]:
        """Go through all messages, for what the summary lacks."""
        counts: dict[int, int] = {}
        times = []
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
            source = _only_forward(self._in_file_order(wanted))
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
                yield from _one_message(body, wanted)
            else:
                self._definitions.learn(opcode, body)


def records(
    stream: BinaryIO, start: int, end: int, most: int = 2**62
) -> Iterator[tuple[int, bytes]]:
    """Yield opcode and body of the records between two positions; unused bodies are empty.

    Another reader may move the stream in between.
    """
    at = start
    while at < end and most:
        stream.seek(at)
        head = stream.read(9)
        if len(head) < 9:
            raise StorageError('it ends within a record')
        opcode, length = struct.unpack('<BQ', head)
        at += 9 + length
        if at > end:
            raise StorageError('a record is longer than the file')
        read = opcode in (*_LARGEST_RECORD, CHUNK_INDEX, STATISTICS)
        if read and length > _LARGEST_RECORD.get(opcode, 2**20):
            raise BoundsError(f'a record has {length} bytes')
        yield opcode, stream.read(length) if read else b''
        most -= 1


def unpack_chunk(body: bytes, said_bytes: int | None = None) -> bytes:
    """Return the records of a chunk; said_bytes: its size according to the index."""
    fields = Fields(body)
    _, _, size, crc = fields.numbers(_CHUNK_HEAD)
    compression = fields.text()
    data = fields.take(fields.number('Q'))
    if size > MOST_CHUNK_BYTES:
        raise BoundsError(f'a chunk claims to have {size} bytes')
    if said_bytes not in (None, size):
        raise StorageError('a chunk is of another size than its index says')
    if compression == 'zstd':
        data = unpack(data, size, 'a chunk') if data or size else b''
    elif compression == 'lz4':
        try:
            data = lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=size + 1)
        except (RuntimeError, ValueError, EOFError) as error:
            raise StorageError(f'a chunk is no lz4: {error}') from error
    elif compression:
        raise StorageError(f'its compression {compression[:20]!r} is not known')
    if len(data) != size:
        raise StorageError(f'a chunk of {size} bytes has another size')
    if crc and zlib.crc32(data) != crc:
        raise StorageError('the checksum of a chunk is wrong')
    return data


def messages_of(
    chunk: bytes, wanted: Collection[int] | None, definitions: Definitions | None = None
) -> Iterator[tuple[int, int, bytes]]:
    """Yield channel, time and message of a chunk's records; wanted: channels, None for all.

    definitions: receives the schemas and channels that the chunk defines.
    """
    at = 0
    while at < len(chunk):
        if at + 9 > len(chunk):
            raise StorageError('a chunk ends within a record')
        opcode, length = struct.unpack_from('<BQ', chunk, at)
        at += 9 + length
        if at > len(chunk):
            raise StorageError('a record is longer than its chunk')
        if opcode == MESSAGE:
            yield from _one_message(chunk[at - length:at], wanted)
        elif opcode not in (SCHEMA, CHANNEL):
            raise StorageError(f'a chunk holds a record of kind {opcode}')
        elif definitions is not None:
            definitions.learn(opcode, chunk[at - length:at])


def _one_message(
    body: bytes, wanted: Collection[int] | None
) -> Iterator[tuple[int, int, bytes]]:
    fields = Fields(body)
    channel, _, time_ns, _ = fields.numbers(_MESSAGE_HEAD)
    if wanted is None or channel in wanted:
        yield channel, time_ns, fields.rest()


def _chunk_of(body: bytes) -> Chunk:
    fields = Fields(body)
    start_ns, end_ns, offset, _ = fields.numbers(struct.Struct('<QQQQ'))
    fields.sized()
    fields.take(8)
    fields.text()
    _, unpacked_bytes = fields.numbers(struct.Struct('<QQ'))
    return Chunk(start_ns, end_ns, offset, unpacked_bytes)


def _only_forward(source: Iterator[tuple[int, int, bytes]]) -> Iterator[tuple[int, int, bytes]]:
    last_ns = 0
    for channel, time_ns, data in source:
        if time_ns < last_ns:
            raise StorageError('it has no index and its messages are not in the order of time')
        last_ns = time_ns
        yield channel, time_ns, data
