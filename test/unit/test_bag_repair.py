"""Repair keeps all that is whole, looks nothing up, and leaves nothing behind."""

import os
import random
import shutil
import sqlite3
import sys

import pytest
import zstandard
from bag_bytes import (
    MESSAGES,
    SCHEMA,
    TOPICS,
    channel,
    chunk,
    database,
    message,
    record,
    text,
    write_mcap,
)

from vla_policy_node.replay import repair
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.mcap_file import McapFile
from vla_policy_node.replay.mcap_records import MAGIC, Definitions, records
from vla_policy_node.replay.repair import repair_bag


def read(path):
    with Bag(path) as bag:
        return list(bag.messages(bag.types))


def schema(number, name, encoding, data):
    return record(3, number.to_bytes(2, 'little') + text(name) + text(encoding) + text(data))


def cut(path, body):
    """Write an MCAP that ends within its last chunk."""
    path.write_bytes(MAGIC + record(1, text(b'ros2') + text(b'')) + chunk(body)
                     + chunk(message(1, 99, b'lost'))[:-3])
    return path


def definitions_of(file):
    found = Definitions()
    with file.open('rb') as stream:
        for opcode, body in records(stream, len(MAGIC), file.stat().st_size - 8):
            found.learn(opcode, body)
    return found


def test_definitions_of_every_encoding_are_kept_as_they_are(tmp_path):
    kinds = [(b'their_msgs/msg/A', b'ros2msg', b'int32 x'),
             (b'their_msgs/msg/B', b'ros2idl', b'module b {};'),
             (b'foxglove.C', b'protobuf', bytes(range(256))),
             (b'this.x/msg/Y', b'ros2msg', b'int32 y')]
    body = b''.join(schema(n, *kind) + channel(n, b'/t%d' % n, n) + message(n, n, b'raw%d' % n)
                    for n, kind in enumerate(kinds, 1))
    loaded = {*sys.modules}
    target, count = repair_bag(cut(tmp_path / 'a.mcap', body))
    assert count == len(kinds)
    assert [raw for _, _, raw in read(target)] == [b'raw1', b'raw2', b'raw3', b'raw4']
    kept = definitions_of(target / 'a-repaired.mcap').schemas.values()
    assert [(s.name.encode(), s.encoding.encode(), s.data) for s in kept] == kinds
    assert not {'this', 'antigravity'} & ({*sys.modules} - loaded)


def test_messages_without_a_schema_are_kept(tmp_path):
    path = cut(tmp_path / 'a.mcap', channel(1, b'/json', 0) + message(1, 5, b'{}'))
    target, count = repair_bag(path)
    assert (count, read(target)) == (1, [('/json', 5, b'{}')])


def test_a_type_that_is_named_as_a_module_is_not_imported(tmp_path, monkeypatch):
    """`this.x/msg/Y` imported `this`: whatever lies on the path of Python ran."""
    (tmp_path / 'evil_package').mkdir()
    (tmp_path / 'evil_package' / '__init__.py').write_text('raise SystemExit("it ran")')
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in (b'evil_package.x/msg/Y', b'evil_package/msg/Y'):
        path = cut(tmp_path / 'a.mcap', schema(1, name, b'ros2msg', b'int32 x') + channel(1)
                   + message(1, 5))
        target, count = repair_bag(path)
        assert count == 1
        assert 'evil_package' not in sys.modules
        shutil.rmtree(target)


@pytest.mark.parametrize('name', ['a.b.2024-01-01.mcap', 'bag.mcap', '..mcap'])
def test_dots_in_a_name_stay_in_it(tmp_path, name):
    path = cut(tmp_path / name, SCHEMA + channel(1) + message(1, 5))
    target, _ = repair_bag(path)
    assert target.name == f'{name.removesuffix(".mcap")}-repaired'
    assert sorted(file.name for file in target.iterdir()) == [
        f'{target.name}.mcap', 'metadata.yaml']


def test_the_folder_one_is_in_can_be_repaired(tmp_path, monkeypatch):
    (tmp_path / 'my.bag').mkdir()
    cut(tmp_path / 'my.bag' / 'x_0.mcap', SCHEMA + channel(1) + message(1, 5))
    cut(tmp_path / 'my.bag' / 'x_1.mcap', SCHEMA + channel(7) + message(7, 6))
    monkeypatch.chdir(tmp_path / 'my.bag')
    target, count = repair_bag(repair.Path('.'))
    assert (target, count) == (tmp_path / 'my.bag-repaired', 2)
    assert read(target) == [('/a', 5, b'x'), ('/a', 6, b'x')]


@pytest.mark.parametrize('data', [
    b'', b'\x89', MAGIC[:-1], MAGIC, MAGIC + b'\1', MAGIC + MAGIC, b'SQLite format 3\0',
    b'SQLite format 3\0' + bytes(84)])
@pytest.mark.parametrize('name', ['a.mcap', 'a.db3', 'a.mcap.zstd'])
def test_tiny_files_are_refused_and_nothing_is_left(tmp_path, data, name):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BagError) as caught:
        repair_bag(tmp_path / name)
    assert '\n' not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_nothing_is_left_of_a_repair_that_fails(tmp_path, monkeypatch, error):
    path = cut(tmp_path / 'a.mcap', SCHEMA + channel(1) + message(1, 5))

    def fail(*_):
        raise error

    monkeypatch.setattr(repair.McapWriter, 'close', fail)
    with pytest.raises((BagError, KeyboardInterrupt)):
        repair_bag(path)
    assert [file.name for file in tmp_path.iterdir()] == ['a.mcap']


def test_what_was_repaired_has_an_index_and_is_in_order(tmp_path):
    late = b''.join(message(1, 1000 - n, bytes(100_000)) for n in range(200))
    target, count = repair_bag(cut(tmp_path / 'a.mcap', SCHEMA + channel(1) + late))
    file = McapFile(target / 'a-repaired.mcap')
    assert len(file._chunks) == 5
    assert file.topics['/a'].count == count == 200
    times = [time_ns for _, time_ns, _ in file.messages({'/a'})]
    file.close()
    assert times == sorted(times)


# --- sqlite ---


def rows(count, size=5000):
    return [(n, 1, n, bytes([n % 256]) * size) for n in range(1, count + 1)]


def recording(path, count, size=5000):
    database(path, *TOPICS, MESSAGES)
    with sqlite3.connect(path) as connection:
        connection.executemany('INSERT INTO messages VALUES (?, ?, ?, ?)', rows(count, size))
    connection.close()
    return path


def test_a_database_that_was_cut_off_gives_its_first_messages(tmp_path):
    path = recording(tmp_path / 'a.db3', 200)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(BagError, match='vla record --repair'):
        read(path)
    target, count = repair_bag(path)
    assert 80 < count < 110
    assert read(target) == [('/a', n, raw) for n, _, _, raw in rows(count)]
    with Bag(target) as bag:
        assert bag.types == {'/a': 'std_msgs/msg/Header'}
        assert bag.remarks() == []


def test_a_damaged_page_costs_its_own_messages_only(tmp_path):
    path = recording(tmp_path / 'a.db3', 2000, size=100)
    data = bytearray(path.read_bytes())
    at = data.index(bytes([100]) * 100) // 4096 * 4096
    data[at:at + 4096] = b'\xff' * 4096
    path.write_bytes(data)
    target, count = repair_bag(path)
    assert 1900 < count < 2000
    assert {time_ns for _, time_ns, _ in read(target)} >= {1, 2000}


def test_changes_beside_a_database_are_made(tmp_path):
    """A recorder that was killed leaves its last messages in the log beside the file."""
    path = recording(tmp_path / 'live.db3', 3)
    connection = sqlite3.connect(path)
    connection.execute('PRAGMA journal_mode=WAL')
    connection.execute("INSERT INTO messages VALUES (9, 1, 9, x'09')")
    connection.commit()
    (tmp_path / 'killed').mkdir()
    for ending in ('', '-wal'):
        shutil.copyfile(f'{path}{ending}', tmp_path / 'killed' / f'a.db3{ending}')
    connection.close()
    before = (tmp_path / 'killed' / 'a.db3').read_bytes()
    target, count = repair_bag(tmp_path / 'killed')
    assert (count, read(target)[-1]) == (4, ('/a', 9, b'\x09'))
    assert (tmp_path / 'killed' / 'a.db3').read_bytes() == before
    assert sorted(file.name for file in (tmp_path / 'killed').iterdir()) == ['a.db3', 'a.db3-wal']


def test_definitions_in_a_database_are_kept(tmp_path):
    path = database(
        tmp_path / 'a.db3', *TOPICS, MESSAGES, "INSERT INTO messages VALUES (1, 1, 5, x'00')",
        'CREATE TABLE message_definitions(id INTEGER PRIMARY KEY, topic_type TEXT, encoding TEXT, '
        'encoded_message_definition TEXT, type_description_hash TEXT)',
        "INSERT INTO message_definitions VALUES (1, 'std_msgs/msg/Header', 'ros2msg', 'x', 'h')")
    target, _ = repair_bag(path)
    with sqlite3.connect(target / 'a-repaired.db3') as connection:
        kept = connection.execute('SELECT * FROM message_definitions').fetchall()
    connection.close()
    assert kept == [(1, 'std_msgs/msg/Header', 'ros2msg', 'x', 'h')]


def test_a_packed_recording_that_was_cut_off_gives_what_can_be_unpacked(tmp_path):
    noise = random.Random(0).randbytes(200_000)
    body = b''.join(chunk(message(1, n, noise)) for n in range(20))
    path = write_mcap(tmp_path / 'a.mcap', SCHEMA + channel(1) + body)
    packed = zstandard.compress(path.read_bytes())
    path.unlink()
    path = tmp_path / 'a.mcap.zstd'
    path.write_bytes(packed[:-6])
    with pytest.raises(BagError, match='vla record --repair'):
        read(path)
    target, count = repair_bag(path)
    assert target.name == 'a-repaired'
    assert 10 < count <= 20
    assert read(target) == [('/a', n, noise) for n in range(count)]


def test_a_link_in_a_circle_is_no_bag(tmp_path):
    (tmp_path / 'a.mcap').symlink_to(tmp_path / 'a.mcap')
    with pytest.raises(BagError, match='There is no bag'):
        repair_bag(tmp_path / 'a.mcap')
