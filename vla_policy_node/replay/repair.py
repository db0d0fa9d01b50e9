"""What is whole of a recording that was cut off, as a bag of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from mcap.exceptions import McapError
from mcap.records import Channel, Message, Schema
from mcap.stream_reader import StreamReader
from rosbags.rosbag2 import StoragePlugin, Writer

from vla_policy_node.nodes.message_definitions import MessageDefinitions, UnknownTypeError
from vla_policy_node.recorded import RECORDED_PARAMETERS
from vla_policy_node.replay.bag import BagError

_BAG_VERSION = 8


def repair_bag(path: Path) -> tuple[Path, int]:
    """Copy every whole message of an .mcap recording to PATH-repaired; return it and their number.

    The original stays. Raises BagError.
    """
    files = [path] if path.is_file() else sorted(path.glob('*.mcap'))
    if not files:
        raise BagError(f"'{path}' holds no .mcap file; a recording in another format that was cut "
                       'off may be saved by `ros2 bag reindex`.')
    target = path.with_name(f'{path.stem if path.is_file() else path.name}-repaired')
    if target.exists():
        raise BagError(f"'{target}' exists already; move it away.")
    definitions, count, connections = MessageDefinitions(), 0, {}
    writer = Writer(target, version=_BAG_VERSION, storage_plugin=StoragePlugin.MCAP)
    try:
        with writer:
            for topic, kind, time_ns, data in _whole_messages(files):
                if topic not in connections:
                    connections[topic] = writer.add_connection(
                        topic, kind, typestore=definitions.learn(kind))
                writer.write(connections[topic], time_ns, data)
                count += 1
    except (OSError, UnknownTypeError) as error:
        shutil.rmtree(target, ignore_errors=True)
        reason = getattr(error, 'strerror', None) or str(error)
        raise BagError(f"'{path}' cannot be repaired: {str(reason).rstrip('.')}.") from error
    if not count:
        shutil.rmtree(target)
        raise BagError(f"'{path}' holds no whole message.")
    parameters = path / RECORDED_PARAMETERS
    if parameters.is_file():
        shutil.copy(parameters, target)
    return target, count


def _whole_messages(files: list[Path]) -> Iterator[tuple[str, str, int, bytes]]:
    for file in files:
        schemas: dict[int, Schema] = {}
        channels: dict[int, Channel] = {}
        with file.open('rb') as stream:
            records = StreamReader(stream).records
            while True:
                try:
                    record = next(records)
                except StopIteration:
                    break
                except (McapError, EOFError, ValueError):  # here it was cut off
                    break
                if isinstance(record, Schema):
                    schemas[record.id] = record
                elif isinstance(record, Channel):
                    channels[record.id] = record
                elif isinstance(record, Message):
                    channel = channels[record.channel_id]
                    yield (channel.topic, schemas[channel.schema_id].name, record.log_time,
                           bytes(record.data))
