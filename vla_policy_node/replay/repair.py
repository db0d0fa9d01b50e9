"""Recovers the intact part of a truncated recording as a bag of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.errors import WriterError

from vla_policy_node.common.plain_yaml import read_regular
from vla_policy_node.replay.bag import BagError
from vla_policy_node.replay.bag_files import METADATA
from vla_policy_node.replay.mcap_records import (
    CHANNEL,
    CHUNK,
    DATA_END,
    FOOTER,
    MAGIC,
    MESSAGE,
    SCHEMA,
    Channel,
    Definitions,
    Schema,
    messages_of,
    records,
    unpack_chunk,
)
from vla_policy_node.replay.storage import StorageError, most_unpacked, regular_size
from vla_policy_node.system.recorded import RECORDED_PARAMETERS
from vla_policy_node.wire.definitions import MessageDefinitions

_BAG_VERSION = 8
_LATEST_NS = 2**63
_DEFINED_AS = ('ros2msg', 'ros2idl')
_MOST_PARAMETER_BYTES = 2**20
_UNKNOWN_HASH = f'RIHS01_{0:064x}'


def repair_bag(path: Path) -> tuple[Path, int]:
    """Copy the intact messages of an .mcap recording to PATH-repaired; return it and the count.

    The original is not changed. Types need not be installed: the file has their definitions.
    Raises BagError.
    """
    files = [path] if path.is_file() else sorted(path.glob('*.mcap'))
    if not files:
        raise BagError(f"'{path}' holds no .mcap file; a recording in another format that was cut "
                       'off may be saved by `ros2 bag reindex`.')
    target = path.with_name(f'{path.stem if path.is_file() else path.name}-repaired')
    if os.path.lexists(target):
        raise BagError(f"'{target}' exists already; move it away.")
    try:
        count = _copy(files, target)
    except (OSError, ValueError, WriterError) as error:
        _remove(target)
        reason = getattr(error, 'strerror', None) or str(error)
        raise BagError(f"'{path}' cannot be repaired: {str(reason).rstrip('.')}.") from error
    if not count:
        _remove(target)
        raise BagError(f"'{path}' holds no whole message.")
    parameters = path / RECORDED_PARAMETERS
    with suppress(ValueError):  # none, or none that a recorder wrote
        read_regular(parameters, _MOST_PARAMETER_BYTES)
        shutil.copyfile(parameters, target / RECORDED_PARAMETERS)
    return target, count


def _copy(files: list[Path], target: Path) -> int:
    count, connections, definitions = 0, {}, MessageDefinitions()
    with Writer(target, version=_BAG_VERSION, storage_plugin=StoragePlugin.MCAP) as writer:
        for file in files:
            for channel, schema, time_ns, data in _whole_messages(file):
                key = channel.topic, schema.name, channel.encoding
                if key not in connections:
                    connections[key] = writer.add_connection(
                        channel.topic, schema.name, msgdef=schema.text,
                        rihs01=_hash(definitions, schema.name),
                        serialization_format=channel.encoding)
                writer.write(connections[key], time_ns, data)
                count += 1
    return count


def _hash(definitions: MessageDefinitions, kind: str) -> str:
    try:
        return definitions.learn(kind).hash_rihs01(kind)
    except Exception:  # not installed here, or not as the library reads it
        return _UNKNOWN_HASH


def _remove(target: Path) -> None:
    """Remove the unfinished copy, and nothing that others put next to it."""
    for name in (f'{target.name}.mcap', METADATA):
        (target / name).unlink(missing_ok=True)
    with suppress(OSError):  # not ours, or not empty
        target.rmdir()


def _whole_messages(file: Path) -> Iterator[tuple[Channel, Schema, int, bytes]]:
    """Yield messages up to where the file is truncated, and the intact part of damaged chunks."""
    definitions, size = Definitions(), regular_size(file)
    left = most_unpacked(size)
    with file.open('rb') as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            return
        found = records(stream, len(MAGIC), size)
        while left > 0:
            try:
                opcode, body = next(found)
                if opcode in (DATA_END, FOOTER):
                    return
                chunk = unpack_chunk(body) if opcode == CHUNK else _alone(opcode, body)
            except StopIteration:
                return
            except StorageError:  # the file is truncated here, or this chunk is damaged
                if not found.gi_frame:
                    return
                continue
            left -= len(chunk)
            yield from _whole_of(chunk, definitions)


def _whole_of(chunk: bytes, definitions: Definitions) -> Iterator:
    source = messages_of(chunk, None, definitions)
    while True:
        try:
            number, time_ns, data = next(source)
        except (StopIteration, StorageError):
            return
        channel = definitions.channels.get(number)
        schema = channel and definitions.schemas.get(channel.schema)
        if schema and schema.encoding in _DEFINED_AS and time_ns < _LATEST_NS:
            yield channel, schema, time_ns, data


def _alone(opcode: int, body: bytes) -> bytes:
    """Return a record outside of chunks as a chunk of its own."""
    if opcode not in (SCHEMA, CHANNEL, MESSAGE):
        return b''
    return bytes([opcode]) + len(body).to_bytes(8, 'little') + body
