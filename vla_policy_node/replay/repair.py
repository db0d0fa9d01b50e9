"""Recovers the intact part of a recording into a separate bag."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import yaml

from vla_policy_node.common.plain_yaml import read_regular
from vla_policy_node.outputs.files import allow_umask
from vla_policy_node.replay.bag import BagError
from vla_policy_node.replay.bag_files import METADATA, bag_name, form_of, recorded
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
    Fields,
    Schema,
    messages_of,
    records,
    unpack_chunk,
)
from vla_policy_node.replay.mcap_writer import McapWriter
from vla_policy_node.replay.sqlite_repair import SqliteCopy
from vla_policy_node.replay.storage import (
    BoundsError,
    StorageError,
    most_unpacked,
    regular_size,
    unpack_file,
    unpacked_message,
)
from vla_policy_node.system.recorded import RECORDED_PARAMETERS, RECORDED_ROBOT

_BAG_VERSION = 8
_LATEST_NS = 2**63
_MOST_PARAMETER_BYTES = 2**20
_SUFFIXES = {'mcap': '.mcap', 'sqlite3': '.db3'}
_QOS, _HASH = 'offered_qos_profiles', 'topic_type_hash'


def repair_bag(path: Path) -> tuple[Path, int]:
    """Copy the intact messages of a recording to PATH-repaired; return it and their number.

    The original is not changed. Definitions of messages are copied as they are in the file:
    nothing is looked up, so nothing has to be installed. The copy appears whole or not at all.
    Raises BagError.
    """
    if path.name == METADATA:
        path = path.parent
    if not path.exists():  # also a link in a circle
        raise BagError(f"There is no bag '{path}'.")
    place = path.resolve()
    target = place.with_name(f'{bag_name(place)}-repaired')
    if os.path.lexists(target):
        raise BagError(f"'{target}' exists already; move it away.")
    partial = None
    try:
        files = recorded(place) if place.is_dir() else [place]
        if not files:
            raise StorageError('it holds no .mcap or .db3 file')
        partial = Path(tempfile.mkdtemp(
            prefix=f'.{target.name}-', suffix='.partial', dir=target.parent))
        count = _copy(files, partial, target.name)
        if not count:
            raise StorageError('it holds no whole message')
        _copy_parameters(place if place.is_dir() else place.parent, partial)
        allow_umask(partial)
        partial.rename(target)
    except (OSError, ValueError, sqlite3.Error) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise BagError(f"'{path}' cannot be repaired: {str(reason).rstrip('.')}.") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)  # made here, under a name of its own
    return target, count


def _copy(files: Sequence[Path], folder: Path, name: str) -> int:
    """Write one file of what is whole in all of them, and its metadata; return the count."""
    with tempfile.TemporaryDirectory(dir=folder) as unpacked:
        found = [_unpacked(file, Path(unpacked) / str(number))
                 for number, file in enumerate(files)]
        forms = {form_of(file) for file in found}
        if len(forms) > 1 or forms - _SUFFIXES.keys():
            raise StorageError('its files are not all of one kind')
        (form,) = forms
        file = folder / f'{name}{_SUFFIXES[form]}'
        copy = _copy_mcap if form == 'mcap' else _copy_sqlite
        topics, start_ns, end_ns = copy(found, file)
    count = sum(topic['message_count'] for topic in topics)

    def span() -> dict:  # anew each time: what is the same object twice becomes an anchor
        return {'starting_time': {'nanoseconds_since_epoch': start_ns},
                'duration': {'nanoseconds': end_ns - start_ns}, 'message_count': count}

    (folder / METADATA).write_text(yaml.safe_dump({'rosbag2_bagfile_information': {
        'version': _BAG_VERSION, 'storage_identifier': form, 'relative_file_paths': [file.name],
        **span(), 'topics_with_message_count': topics, 'compression_format': '',
        'compression_mode': '', 'files': [{'path': file.name, **span()}], 'custom_data': None,
        'ros_distro': 'unknown'}}, sort_keys=False), encoding='utf-8')
    return count


def _unpacked(file: Path, target: Path) -> Path:
    if form_of(file) != 'zstd':
        return file
    target = target.with_name(f'{target.name}-{file.stem}')
    try:
        unpack_file(file, target)
    except BoundsError:
        raise
    except StorageError:
        pass  # what was unpacked until there may be whole
    return target


def _topic(name: str, kind: str, encoding: str, profile: str, digest: str, count: int) -> dict:
    return {'topic_metadata': {
        'name': name, 'type': kind, 'serialization_format': encoding,
        'offered_qos_profiles': profile, 'type_description_hash': digest},
        'message_count': count}


def _copy_parameters(source: Path, target: Path) -> None:
    for name in (RECORDED_PARAMETERS, RECORDED_ROBOT):
        with suppress(ValueError):  # none, or none that a recorder wrote
            read_regular(source / name, _MOST_PARAMETER_BYTES)
            shutil.copyfile(source / name, target / name)


def _copy_sqlite(files: Sequence[Path], target: Path) -> tuple[list[dict], int, int]:
    with SqliteCopy(target) as copy:
        for file in files:
            copy.take(file)
        topics = [_topic(*key, profile, digest, count)
                  for key, (_, count, profile, digest) in copy.topics.items()]
    return topics, min(copy.start_ns, copy.end_ns), copy.end_ns


def _copy_mcap(files: Sequence[Path], target: Path) -> tuple[list[dict], int, int]:
    """Return the topics as metadata lists them, and first and last time (ns)."""
    counts: dict[tuple[str, str, str], list] = {}
    start_ns, end_ns = _LATEST_NS, 0
    with target.open('wb') as stream:
        writer = McapWriter(stream)
        for file in files:
            for channel, schema, time_ns, data in _whole_messages(file):
                number = schema and writer.schema(schema.name, schema.encoding, schema.data)
                writer.write(writer.channel(channel.topic, channel.encoding, number or 0,
                                            channel.metadata), time_ns, data)
                key = channel.topic, schema.name if schema else '', channel.encoding
                counts.setdefault(key, [0, _map(channel.metadata)])[0] += 1
                start_ns, end_ns = min(start_ns, time_ns), max(end_ns, time_ns)
        writer.close()
    topics = [_topic(*key, about.get(_QOS, ''), about.get(_HASH, ''), count)
              for key, (count, about) in counts.items()]
    return topics, min(start_ns, end_ns), end_ns


def _map(metadata: bytes) -> Mapping[str, str]:
    """Return a map of texts as MCAP has it; empty if it is none."""
    found, fields = {}, None
    with suppress(StorageError):
        fields = Fields(Fields(metadata).sized())
        while True:
            key = fields.text()
            found[key] = fields.text()
    return found


def _whole_messages(file: Path) -> Iterator[tuple[Channel, Schema | None, int, bytes]]:
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


def _whole_of(
    chunk: bytes, definitions: Definitions
) -> Iterator[tuple[Channel, Schema | None, int, bytes]]:
    source = messages_of(chunk, None, definitions)
    while True:
        try:
            number, time_ns, data = next(source)
        except (StopIteration, StorageError):
            return
        channel = definitions.channels.get(number)
        if channel is None or time_ns >= _LATEST_NS:
            continue
        schema = definitions.schemas.get(channel.schema)
        # A schema that is lost with the damaged part says nothing of what the bytes are.
        message = unpacked_message(data) if schema or not channel.schema else None
        if message is not None:
            yield channel, schema, time_ns, message


def _alone(opcode: int, body: bytes) -> bytes:
    """Return a record outside of chunks as a chunk of its own."""
    if opcode not in (SCHEMA, CHANNEL, MESSAGE):
        return b''
    return bytes([opcode]) + len(body).to_bytes(8, 'little') + body
