"""Bounds and helpers that all bag readers share.

A bag may come from anybody: its claims are compared with its own size before anything is
allocated, and compressed data is unpacked no further than a limit.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import zstandard

_MB = 2**20
MOST_MESSAGE_BYTES = 128 * _MB  # a picture of 8000 x 5000 pixels
MOST_CHUNK_BYTES = 256 * _MB
MOST_HELD_BYTES = 512 * _MB  # of messages waiting for their turn
MOST_TOPICS = 4096
LONGEST_NAME_BYTES = 512
# Largest allowed ratio of unpacked to packed size; zstd reaches 30 000 on zeros.
MOST_RATIO, ALWAYS_BYTES = 1000, 64 * _MB
_DISK_LEFT_BYTES = 256 * _MB
_BLOCK_BYTES = 4 * _MB
ZSTD = b'\x28\xb5\x2f\xfd'  # how its frames begin; no CDR does
_AND, _MOST_KINDS = ' and ', 4

Stored = tuple[str, int, bytes]  # topic, time of recording (ns), serialised message


class StorageError(ValueError):
    """A file that is damaged, as a few words."""


class BoundsError(StorageError):
    """A file that claims more than any recording needs, as a few words."""


class OtherFormError(StorageError):
    """Files that are whole, but not of a form that is read, as a few words: why, what to do."""


@dataclass
class Topic:
    """A topic as a file describes it.

    kind: its message type. Publishers of different types may share a topic; the type is then
    'A and B', which nobody asks for.
    """

    kind: str
    count: int = 0

    def also(self, kind: str) -> None:
        """Add the type of another publisher."""
        kinds = dict.fromkeys([*self.kind.split(_AND), *kind.split(_AND)])
        self.kind = _AND.join([*kinds][:_MOST_KINDS])


class Storage(Protocol):
    """One file of a bag. Not thread-safe; raises StorageError, and what its library raises.

    topics: by name. start_ns, end_ns: of the first and the last message, 0 if there is none.
    """

    topics: dict[str, Topic]
    start_ns: int
    end_ns: int

    def messages(self, topics: Collection[str]) -> Iterator[Stored]:
        """Yield the messages of some topics in the order of their times."""

    def close(self) -> None:
        """Close the file."""


def regular_size(path: Path) -> int:
    """Return the size of a file. StorageError if it is not a regular file."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise BoundsError(f'{path.name} is no regular file')
    return found.st_size


def most_unpacked(size_bytes: int) -> int:
    """Return how large a file of this size may be when unpacked."""
    return ALWAYS_BYTES + MOST_RATIO * size_bytes


def checked_name(name: str, what: str) -> str:
    """Return a name, shortened if necessary."""
    if len(name) > LONGEST_NAME_BYTES:
        raise BoundsError(f'the name of a {what} has {len(name)} letters')
    return name


def kind_as(name: str, encoding: str) -> str:
    """Return a message type, with its encoding if that is not CDR."""
    return name if encoding == 'cdr' else f'{name} as {encoding[:20]}'


def unpack(data: bytes, most_bytes: int, what: str) -> bytes:
    """Return zstd data unpacked. StorageError, BoundsError if that is more than `most_bytes`."""
    parts, left = [], most_bytes + 1
    try:
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
            while left and (part := reader.read(min(left, _BLOCK_BYTES))):
                parts.append(part)
                left -= len(part)
    except zstandard.ZstdError as error:
        raise StorageError(f'{what} is no zstd: {error}') from error
    if not left:
        raise BoundsError(f'{what} of {len(data)} bytes is more than {most_bytes} bytes unpacked')
    return b''.join(parts)


def unpacked_message(data: bytes) -> bytes | None:
    """Return a message as it was sent, also if it was packed; None if that cannot be said."""
    if data[:len(ZSTD)] != ZSTD:
        return data
    try:
        return unpack(data, MOST_MESSAGE_BYTES, 'a message')
    except StorageError:
        return None


def unpack_file(source: Path, target: Path) -> None:
    """Unpack a zstd file onto the disk; of one that is damaged, what comes before."""
    most = most_unpacked(regular_size(source))
    room = shutil.disk_usage(target.parent).free - _DISK_LEFT_BYTES
    written = 0
    with source.open('rb') as packed, target.open('wb') as unpacked:
        reader = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
        try:
            while part := reader.read(_BLOCK_BYTES):
                written += len(part)
                if written > most:
                    raise BoundsError(f'{source.name} becomes more than {most} bytes unpacked')
                if written > room:
                    raise BoundsError(
                        f'there is no room in {target.parent} to unpack {source.name}')
                unpacked.write(part)
        except zstandard.ZstdError as error:
            raise StorageError(f'{source.name} is no zstd: {error}') from error
