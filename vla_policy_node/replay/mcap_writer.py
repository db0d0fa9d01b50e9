"""Writes MCAP files from schemas, channels and messages that are already serialised."""

from __future__ import annotations

import struct
from typing import BinaryIO

from vla_policy_node.replay.mcap_records import (
    CHANNEL,
    CHUNK,
    CHUNK_INDEX,
    DATA_END,
    FOOTER,
    HEADER,
    MAGIC,
    MESSAGE,
    MESSAGE_INDEX,
    SCHEMA,
    STATISTICS,
)

_CHUNK_BYTES = 4 * 2**20


class McapWriter:
    """Writes one file: chunks of some megabytes, and an index of them. Not thread-safe.

    stream: where to; nothing is read back or sought.
    """

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._at = 0
        self._definitions: dict[bytes, int] = {}  # record -> number
        self._counts: dict[int, int] = {}
        self._chunk = bytearray()
        self._places: dict[int, list[tuple[int, int]]] = {}  # channel -> time, place in the chunk
        self._index: list[bytes] = []
        self._start_ns, self._end_ns = 2**64 - 1, 0
        self._put(MAGIC + _record(HEADER, _sized(b'ros2') + _sized(b'vla_policy_node')))

    def schema(self, name: str, encoding: str, data: bytes) -> int:
        """Return the number of a message type; the same one for the same definition."""
        return self._define(SCHEMA, _sized(name.encode()) + _sized(encoding.encode())
                            + _sized(data))

    def channel(self, topic: str, encoding: str, schema: int, metadata: bytes) -> int:
        """Return the number of a channel; schema: 0 for none; metadata: a map as MCAP has it."""
        return self._define(CHANNEL, struct.pack('<H', schema) + _sized(topic.encode())
                            + _sized(encoding.encode()) + (metadata or _sized(b'')))

    def write(self, channel: int, time_ns: int, data: bytes) -> None:
        """Write a message."""
        self._places.setdefault(channel, []).append((time_ns, len(self._chunk)))
        self._counts[channel] = self._counts.get(channel, 0) + 1
        self._chunk += _record(MESSAGE, struct.pack(
            '<HIQQ', channel, self._counts[channel], time_ns, time_ns) + data)
        if len(self._chunk) > _CHUNK_BYTES:
            self._end_chunk()

    def close(self) -> None:
        """Write what is held, and the index; the stream stays open."""
        self._end_chunk()
        self._put(_record(DATA_END, bytes(4)))
        summary = self._at
        for record in self._definitions:
            self._put(_numbered(record, self._definitions[record]))
        schemas = sum(record[0] == SCHEMA for record in self._definitions)
        counts = b''.join(struct.pack('<HQ', *item) for item in self._counts.items())
        total = sum(self._counts.values())
        self._put(_record(STATISTICS, struct.pack(
            '<QHIIIIQQ', total, schemas, len(self._definitions) - schemas, 0, 0,
            len(self._index), self._start_ns if total else 0, self._end_ns) + _sized(counts)))
        for record in self._index:
            self._put(record)
        self._put(_record(FOOTER, struct.pack('<QQI', summary, 0, 0)) + MAGIC)

    def _define(self, opcode: int, body: bytes) -> int:
        key = bytes([opcode]) + body
        if key not in self._definitions:
            number = 1 + sum(other[0] == opcode for other in self._definitions)
            self._definitions[key] = number
            self._chunk += _numbered(key, number)
        return self._definitions[key]

    def _end_chunk(self) -> None:
        if not self._places:
            return
        times = [time_ns for places in self._places.values() for time_ns, _ in places]
        span = min(times), max(times)
        self._start_ns, self._end_ns = min(self._start_ns, span[0]), max(self._end_ns, span[1])
        begins, size = self._at, len(self._chunk)
        self._put(_record(CHUNK, struct.pack('<QQQI', *span, size, 0) + _sized(b'')
                          + struct.pack('<Q', size) + self._chunk))
        length, index_begins, offsets = self._at - begins, self._at, b''
        for channel, places in self._places.items():
            offsets += struct.pack('<HQ', channel, self._at)
            self._put(_record(MESSAGE_INDEX, struct.pack('<H', channel) + _sized(
                b''.join(struct.pack('<QQ', *place) for place in sorted(places)))))
        self._index.append(_record(CHUNK_INDEX, struct.pack('<QQQQ', *span, begins, length)
                                   + _sized(offsets) + struct.pack('<Q', self._at - index_begins)
                                   + _sized(b'') + struct.pack('<QQ', size, size)))
        self._chunk, self._places = bytearray(), {}

    def _put(self, data: bytes) -> None:
        self._stream.write(data)
        self._at += len(data)


def _record(opcode: int, body: bytes) -> bytes:
    return struct.pack('<BQ', opcode, len(body)) + body


def _numbered(key: bytes, number: int) -> bytes:
    """Return the record of a schema or channel, which begin with their number."""
    return _record(key[0], struct.pack('<H', number) + key[1:])


def _sized(data: bytes) -> bytes:
    return struct.pack('<I', len(data)) + data
