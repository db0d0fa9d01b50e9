"""Bounds-checked reader of the records in an MCAP file (https://mcap.dev/spec, version 0)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import lz4.frame

from vla_policy_node.replay.storage import (
    MOST_CHUNK_BYTES,
    MOST_MESSAGE_BYTES,
    MOST_TOPICS,
    BoundsError,
    OtherFormError,
    StorageError,
    checked_name,
    kind_as,
    unpack,
)

MAGIC = b'\x89MCAP0\r\n'
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK = range(1, 7)
MESSAGE_INDEX, CHUNK_INDEX, STATISTICS, DATA_END = 0x07, 0x08, 0x0B, 0x0F
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
    data: bytes


@dataclass(frozen=True)
class Channel:
    """A channel: the topic that messages refer to.

    schema: number of its type, 0 if it has none. metadata: a map, as it is in the file.
    """

    topic: str
    schema: int
    encoding: str
    metadata: bytes = b''


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
            self.schemas[number] = Schema(name, fields.text(), fields.sized())
        else:
            schema = fields.number('H')
            topic = checked_name(fields.text(), 'topic')
            form = checked_name(fields.text(), 'format')
            self.channels[number] = Channel(topic, schema, form, fields.rest())
        if max(len(self.schemas), len(self.channels)) > MOST_TOPICS:
            raise BoundsError(f'it has more than {MOST_TOPICS} topics')

    def tell_of(self, channels: Collection[int]) -> bool:
        """Return whether these channels are known, and the types of all that are."""
        return self.channels.keys() >= {*channels} and self.schemas.keys() >= {
            channel.schema for channel in self.channels.values() if channel.schema}

    def kind(self, channel: Channel) -> str:
        """Return the message type of a channel, with its encoding if that is not CDR."""
        schema = self.schemas.get(channel.schema)
        return kind_as(schema.name if schema else 'no type', channel.encoding)


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
        raise OtherFormError(f'its compression {compression[:20]!r} is not known')
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
            yield from one_message(chunk[at - length:at], wanted)
        elif opcode not in (SCHEMA, CHANNEL):
            raise StorageError(f'a chunk holds a record of kind {opcode}')
        elif definitions is not None:
            definitions.learn(opcode, chunk[at - length:at])


def one_message(
    body: bytes, wanted: Collection[int] | None
) -> Iterator[tuple[int, int, bytes]]:
    """Yield channel, time and message of a record, if it is of a wanted channel."""
    fields = Fields(body)
    channel, _, time_ns, _ = fields.numbers(_MESSAGE_HEAD)
    if wanted is None or channel in wanted:
        yield channel, time_ns, fields.rest()
