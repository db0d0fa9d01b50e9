"""Bags written byte by byte: MCAP records and SQLite tables of anything, whole or not.

    write_mcap(tmp_path / 'a.mcap', SCHEMA + channel(1) + message(1, time_ns=5))
"""

import sqlite3
import struct

import yaml

from vla_policy_node.replay import mcap_records
from vla_policy_node.replay.bag_files import METADATA


def record(opcode, body):
    return struct.pack('<BQ', opcode, len(body)) + body


def text(value):
    return struct.pack('<I', len(value)) + value


SCHEMA = record(3, struct.pack('<H', 1) + text(b'std_msgs/msg/Header') + text(b'ros2msg')
                + text(b''))


def channel(number, topic=b'/a', schema=1):
    return record(4, struct.pack('<HH', number, schema) + text(topic) + text(b'cdr') + text(b''))


def message(number, time_ns, data=b'x'):
    return record(5, struct.pack('<HIQQ', number, 0, time_ns, time_ns) + data)


def chunk(body, compression=b'', size=None, packed=None, first=0, last=2**40):
    packed = body if packed is None else packed
    size = len(body) if size is None else size
    return record(6, struct.pack('<QQQI', first, last, size, 0) + text(compression)
                  + struct.pack('<Q', len(packed)) + packed)


def write_mcap(path, data, summary=b''):
    """Write a file; summary: function of the place where the data begins, or bytes."""
    start = len(mcap_records.MAGIC)
    body = record(1, text(b'ros2') + text(b'')) + data + record(15, bytes(4))
    summary = summary(start + 9 + 12 - 4) if callable(summary) else summary
    at = start + len(body) if summary else 0
    path.write_bytes(mcap_records.MAGIC + body + summary
                     + record(2, struct.pack('<QQI', at, 0, 0)) + mcap_records.MAGIC)
    return path


def indexed(path, chunks, statistics=True, counts=None, definitions=None):
    """A file whose index says of each chunk what the triple (bytes, first, last) says.

    counts: of messages by channel as the statistics have them; None: 9, all that they say.
    definitions: that the summary repeats; None: those of channel 1.
    """
    at = len(mcap_records.MAGIC) + len(record(1, text(b'ros2') + text(b'')))
    index = SCHEMA + channel(1) if definitions is None else definitions
    for raw, first, last in chunks:
        size = struct.unpack_from('<Q', raw, 9 + 16)[0]
        index += record(8, struct.pack('<QQQQ', first, last, at, len(raw)) + text(b'')
                        + bytes(8) + text(b'zstd') + struct.pack('<QQ', 0, size))
        at += len(raw)
    if statistics:
        index += record(11, struct.pack('<QHIIIIQQ', 9, 1, 1, 0, 0, len(chunks), 0, 2**40)
                        + text(struct.pack('<HQ', 1, 9) if counts is None else counts))
    return write_mcap(path, b''.join(raw for raw, _, _ in chunks), index)


def database(path, *statements):
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return path


TOPICS = ('CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, '
          'serialization_format TEXT)',
          "INSERT INTO topics VALUES (1, '/a', 'std_msgs/msg/Header', 'cdr')")
MESSAGES = 'CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id, timestamp, data)'


def metadata(bag, **changes):
    about = {'version': 8, 'storage_identifier': 'mcap', 'relative_file_paths': ['a.mcap'],
             'compression_mode': '', 'compression_format': ''} | changes
    (bag / METADATA).write_text(yaml.safe_dump({'rosbag2_bagfile_information': about}))
    return bag
