"""Bags that claim more than they are: refused within bounds of memory and time, in a sentence."""

import io
import os
import resource
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from bag_bytes import (
    MESSAGES,
    SCHEMA,
    TOPICS,
    channel,
    chunk,
    database,
    indexed,
    message,
    metadata,
    record,
    text,
    write_mcap,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replay_bag import make_bag
from rosbags.rosbag2 import Reader

from vla_policy_node.replay import mcap_file, mcap_records, sqlite_file, storage
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.bag_files import METADATA
from vla_policy_node.replay.repair import repair_bag

ROOT = Path(__file__).resolve().parents[2]
GB = 10**9
FORMATS = {
    'mcap': ('mcap', ''), 'mcap zstd': ('mcap', 'storage'), 'sqlite3': ('sqlite3', ''),
    'sqlite3 messages': ('sqlite3', 'message'), 'sqlite3 file': ('sqlite3', 'file'),
}


def read(path):
    """All messages of a bag, undecoded."""
    with Bag(path) as bag:
        return list(bag.messages(bag.types))


@pytest.fixture(scope='module')
def bags(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bags')
    return {name: make_bag(folder / name.replace(' ', '_'), seconds=0.4, size=(8, 16),
                           storage=form, compression=compression)
            for name, (form, compression) in FORMATS.items()}


@pytest.mark.parametrize('name', FORMATS)
def test_what_is_read_is_what_the_library_reads(bags, name):
    with Reader(bags[name]) as reader:
        expected = [(c.topic, t, bytes(raw)) for c, t, raw in reader.messages()]
        with Bag(bags[name]) as bag:
            assert bag.types == {c.topic: c.msgtype for c in reader.connections}
            assert bag.counts == {c.topic: c.msgcount for c in reader.connections}
            assert bag.duration_s == pytest.approx(reader.duration / 1e9, abs=2e-9)
            found = list(bag.messages(bag.types))
    assert sorted(found) == sorted(expected)
    assert [t for _, t, _ in found] == [t for _, t, _ in expected]
    with Bag(bags[name]) as bag:
        assert [*bag.messages({'/ee_pose'})] == [m for m in found if m[0] == '/ee_pose']
        assert [*bag.messages(())] == []


def refused(path, match='', seconds=5.0):
    started = time.process_time()
    with pytest.raises(BagError, match=match) as caught:
        read(path)
    assert time.process_time() - started < seconds
    sentence = str(caught.value)
    assert sentence.endswith('.')
    assert '\n' not in sentence
    assert len(sentence) < 1000
    return sentence


def zeros(size, level=19):
    """`size` zeros as one zstd frame that does not say how many."""
    packer = zstandard.ZstdCompressor(level=level).compressobj()
    block, parts = bytes(2**20), []
    for start in range(0, size, len(block)):
        parts.append(packer.compress(block[:size - start]))
    return b''.join([*parts, packer.flush()])


@pytest.fixture(scope='module')
def bomb():
    return zeros(GB)


def test_messages_of_overlapping_chunks_come_in_the_order_of_time(tmp_path):
    first = SCHEMA + channel(1) + message(1, 5) + message(1, 1) + message(1, 9)
    second = message(1, 2) + message(1, 5, b'y') + message(1, 20)
    path = indexed(tmp_path / 'a.mcap', [
        (chunk(first, first=1, last=9), 1, 9), (chunk(second, first=2, last=20), 2, 20)])
    assert [(t, raw) for _, t, raw in read(path)] == [
        (1, b'x'), (2, b'x'), (5, b'x'), (5, b'y'), (9, b'x'), (20, b'x')]


@pytest.mark.parametrize('compression', ['', 'zstd', 'lz4'])
def test_a_file_without_index_or_chunks_is_read_too(tmp_path, compression):
    body = SCHEMA + channel(1) + message(1, 1) + message(1, 2, b'two')
    packed = {'': lambda b: b, 'zstd': zstandard.compress, 'lz4': lz4.frame.compress}[compression]
    plain = write_mcap(tmp_path / 'plain.mcap', body)
    chunked = write_mcap(tmp_path / 'chunked.mcap',
                         chunk(body, compression.encode(), packed=packed(body)))
    assert read(plain) == read(chunked) == [('/a', 1, b'x'), ('/a', 2, b'two')]


def test_without_index_messages_are_sorted_as_far_as_memory_goes(tmp_path, monkeypatch):
    backwards = SCHEMA + channel(1) + message(1, 2) + message(1, 3) + message(1, 1)
    path = write_mcap(tmp_path / 'back.mcap', backwards)
    assert [time_ns for _, time_ns, _ in read(path)] == [1, 2, 3]
    monkeypatch.setattr(mcap_file, '_MOST_SORTED_BYTES', 0)
    assert 'damaged' not in refused(path, 'not in the order of time')


def chunk_bomb(bomb, said):
    return SCHEMA + channel(1) + chunk(b'', b'zstd', said, bomb)


HOSTILE = {
    'a chunk that is larger than it says': lambda bomb: chunk_bomb(bomb, 1000),
    'a chunk that says it is too large': lambda bomb: chunk_bomb(bomb, GB),
    'a chunk of 2**63 bytes': lambda bomb: chunk_bomb(bomb, 2**63),
    'many chunks': lambda bomb: (SCHEMA + channel(1) + 40 * chunk(
        b'', b'zstd', 60_000_031, zstandard.compress(message(1, 5, bytes(60_000_000))))),
    'records of no kind': lambda bomb: chunk(
        b'', b'zstd', 200_000_000, zeros(200_000_000)),
    'tiny messages': lambda bomb: SCHEMA + channel(1) + 2 * chunk(
        b'', b'zstd', 6_200_000, zstandard.compress(2 * 10**5 * message(1, 5, b''))),
    'an lz4 chunk': lambda bomb: SCHEMA + channel(1) + chunk(
        b'', b'lz4', 5, lz4.frame.compress(bytes(300_000_000))),
    'a record of 2**60 bytes': lambda bomb: struct.pack('<BQ', 5, 2**60),
    'a message of 2**64 - 1 bytes': lambda bomb: struct.pack('<BQ', 5, 2**64 - 1) + bytes(50),
    'a string of 4 GB': lambda bomb: record(3, struct.pack('<HI', 1, 2**32 - 1)),
    'topics without end': lambda bomb: SCHEMA + b''.join(
        channel(n, b'/%d' % n) for n in range(5000)),
    'a topic with a long name': lambda bomb: SCHEMA + channel(1, b'a' * 600),
    'chunks in chunks': lambda bomb: chunk(chunk(chunk(b'')))[:-1],
    'a wrong compression': lambda bomb: chunk(b'abc', b'brotli'),
    'no zstd': lambda bomb: chunk(b'abc', b'zstd'),
    'nothing': lambda bomb: b'\x00',
}


@pytest.mark.parametrize('kind', HOSTILE)
def test_an_mcap_that_claims_more_than_it_is_costs_nothing(tmp_path, bomb, kind, kind_memory):
    data = HOSTILE[kind](bomb)
    path = write_mcap(tmp_path / 'a.mcap', data)
    kind_memory(path)
    path.write_bytes(path.read_bytes()[:-20])  # cut off: what is whole can be repaired
    try:
        repair_bag(path)
    except BagError as error:
        assert '\n' not in str(error)


_READ = '''
import resource, sys
from vla_policy_node.replay.bag import Bag, BagError
base = int(open('/proc/self/statm').read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (base + int(sys.argv[2]),) * 2)
try:
    with Bag(sys.argv[1]) as bag:
        n = sum(1 for _ in bag.messages(bag.types))
except BagError as error:
    print(error)
else:
    print('read', n)
print(resource.getrusage(resource.RUSAGE_SELF).ru_utime)
'''


@pytest.fixture
def kind_memory(tmp_path):
    """Read a bag in a process that may have little memory; returns what it says.

    What it leaves on the disk is in `tmp_path / 'unpacked'`.
    """
    unpacked = tmp_path / 'unpacked'
    unpacked.mkdir()

    def run(path, most_bytes=700_000_000, seconds=10.0, wanted=('The bag', 'read')):
        done = subprocess.run(
            [sys.executable, '-c', _READ, str(path), str(most_bytes)], capture_output=True,
            text=True, check=False, timeout=120,
            env={**os.environ, 'PYTHONPATH': str(ROOT), 'TMPDIR': str(unpacked)})
        assert done.returncode == 0, done.stderr
        sentence, seconds_taken = done.stdout.rsplit('\n', 2)[:2]
        assert sentence.startswith(wanted), sentence
        assert 'MemoryError' not in sentence
        assert '\n' not in sentence
        assert float(seconds_taken) < seconds
        return sentence

    return run


def test_all_chunks_at_one_time_are_not_held_at_once(tmp_path, kind_memory):
    body = message(1, 7, bytes(60_000_000))
    packed = zstandard.compress(body)
    one = chunk(body, b'zstd', packed=packed, first=7, last=7)
    path = indexed(tmp_path / 'a.mcap', [(one, 7, 7)] * 40)
    sentence = kind_memory(path, 900_000_000)
    assert 'unpacked' in sentence or 'of one time' in sentence


def test_an_index_that_lies_is_refused(tmp_path):
    body = SCHEMA + channel(1) + message(1, 7)
    raw = chunk(body)
    refused(indexed(tmp_path / 'a.mcap', [(raw, 8, 9)]), 'other times')
    refused(write_mcap(tmp_path / 'b.mcap', raw, SCHEMA + channel(1) + record(
        8, struct.pack('<QQQQ', 0, 9, 8, 9) + text(b'') + bytes(8) + text(b'')
        + struct.pack('<QQ', 9, 9)) + record(
            11, struct.pack('<QHIIIIQQ', 1, 1, 1, 0, 0, 1, 0, 9) + text(
                struct.pack('<HQ', 1, 1)))), 'does not lead to its chunks')


@pytest.mark.parametrize('mode', ['file', 'message'])
def test_a_bag_of_zstd_that_becomes_gigabytes_is_refused(tmp_path, bags, bomb, mode, kind_memory):
    """98 kB became 3 GB, in memory or on the disk."""
    source = bags['sqlite3 file' if mode == 'file' else 'sqlite3 messages']
    bag = tmp_path / 'bag'
    bag.mkdir()
    for file in source.iterdir():
        (bag / file.name).write_bytes(file.read_bytes())
    (file,) = (file for file in bag.iterdir() if file.name != METADATA)
    if mode == 'file':
        file.write_bytes(bomb)
    else:
        with sqlite3.connect(file) as connection:
            connection.execute('UPDATE messages SET data = ?', (bomb,))
    assert len(bomb) < 100_000
    assert 'bytes unpacked' in kind_memory(bag)
    assert not [*(tmp_path / 'unpacked').iterdir()]


@pytest.mark.parametrize(('statements', 'match'), [
    ((*TOPICS, 'CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id, timestamp, data BLOB '
      'GENERATED ALWAYS AS (zeroblob(900000000)))'), 'tables are computed'),
    ((*TOPICS, 'CREATE VIEW messages AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 '
      'FROM n) SELECT i AS id, 1 AS topic_id, i AS timestamp, zeroblob(9) AS data FROM n'),
     'no tables of topics and messages'),
    ((*TOPICS, MESSAGES, 'CREATE VIEW other AS SELECT 1'), 'tables are computed'),
    ((*TOPICS, MESSAGES, "INSERT INTO messages VALUES (1, 1, 'noon', x'00')"), 'time and bytes'),
    ((*TOPICS, MESSAGES, "INSERT INTO messages VALUES (1, 1, 5, 'text')"), 'time and bytes'),
    ((*TOPICS, MESSAGES, 'INSERT INTO messages VALUES (1, 1, NULL, NULL)'), 'time and bytes'),
    ((*TOPICS, MESSAGES, 'INSERT INTO messages VALUES (1, 1, 1, zeroblob(140000000))'),
     'a message has 140000000 bytes'),
    ((TOPICS[0], MESSAGES, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE "
      "i < 5000) INSERT INTO topics SELECT i, '/' || i, 'a', 'cdr' FROM n"), 'more than 4096'),
    ((TOPICS[0], MESSAGES, "INSERT INTO topics VALUES (1, printf('%.*c', 1000000, 'x'), 'a', "
      "'cdr')"), 'has 1000000 letters'),
    ((MESSAGES,), 'no tables of topics and messages'),
    (('CREATE TABLE topics(a)', MESSAGES), 'damaged'),
])
def test_a_database_that_is_no_recording_is_refused(tmp_path, statements, match, monkeypatch):
    refused(database(tmp_path / 'a.db3', *statements), match)


def test_a_database_that_never_ends_is_given_up(tmp_path, monkeypatch):
    path = database(tmp_path / 'a.db3', *TOPICS, MESSAGES, 'WITH RECURSIVE n(i) AS (SELECT 1 '
                    'UNION ALL SELECT i + 1 FROM n WHERE i < 200000) INSERT INTO messages '
                    "SELECT i, 1, i, x'00' FROM n")
    assert len(read(path)) == 200_000
    monkeypatch.setattr(sqlite_file, '_ALWAYS_STEPS', 100_000)
    monkeypatch.setattr(sqlite_file, '_STEPS_PER_BYTE', 0)
    refused(path, 'interrupted')


def test_a_name_with_a_question_mark_is_a_name(tmp_path):
    folder = tmp_path / 'a?mode=rwc#b%41'
    folder.mkdir()
    database(folder / 'a.db3', *TOPICS, MESSAGES, "INSERT INTO messages VALUES (1, 1, 5, x'00')")
    assert read(folder / 'a.db3') == [('/a', 5, b'\0')]


# --- the folder ---


@pytest.fixture
def folder(tmp_path):
    bag = tmp_path / 'bag'
    bag.mkdir()
    write_mcap(bag / 'a.mcap', SCHEMA + channel(1) + message(1, 1))
    return metadata(bag)


@pytest.mark.parametrize('name', [
    '../../etc/passwd', '/etc/passwd', '..', 'x/../../a.mcap', '', '/a.mcap'])
def test_a_file_outside_of_the_folder_is_not_read(folder, name):
    assert len(read(folder)) == 1
    refused(metadata(folder, relative_file_paths=[name]), 'names a file outside')


def test_files_of_before_version_4_have_the_folder_in_their_names(folder):
    assert len(read(metadata(folder, relative_file_paths=['bag/a.mcap']))) == 1


@pytest.mark.parametrize(('changes', 'match'), [
    ({'relative_file_paths': ['b.mcap']}, 'is missing'),
    ({'relative_file_paths': 7}, 'does not say'), ({'version': 'x'}, 'does not say'),
    ({'storage_identifier': 'os'}, 'not known'),
    ({'compression_mode': 'file', 'compression_format': 'xz'}, 'not known'),
    ({'compression_mode': 'everything'}, 'not known'),
    ({'relative_file_paths': ['a.mcap'] * 10_001}, '10001 files'),
    ({'custom_data': 'x' * 5_000_000}, 'more than'),
])
def test_metadata_of_another_form_is_refused(folder, changes, match):
    assert 'damaged' not in refused(metadata(folder, **changes), match, seconds=15.0)


@pytest.mark.parametrize('name', ['a.mcap', METADATA])
@pytest.mark.parametrize('kind', ['fifo', 'device', 'folder'])
def test_what_is_no_regular_file_is_not_opened(folder, name, kind):
    (folder / name).unlink()
    if kind == 'fifo':
        os.mkfifo(folder / name)
    elif kind == 'device':
        (folder / name).symlink_to('/dev/zero')
    else:
        (folder / name).mkdir()
    refused(folder, 'no regular file')


def test_metadata_with_anchors_is_refused(folder):
    (folder / METADATA).write_text('a: &a [x]\nrosbag2_bagfile_information: *a\n')
    refused(folder, 'anchors')


@pytest.mark.parametrize('time_ns', [2**62, 2**63, 2**64 - 1])
def test_messages_of_no_time_are_left_out_and_counted(tmp_path, time_ns):
    path = write_mcap(tmp_path / 'a.mcap', SCHEMA + channel(1) + message(1, 5) + message(
        1, time_ns))
    with Bag(path) as bag:
        for _ in range(2):
            assert [t for _, t, _ in bag.messages({'/a'})] == [5]
            assert bag.timeless == {'/a': 1}
    path = database(tmp_path / 'a.db3', *TOPICS, MESSAGES,
                    "INSERT INTO messages VALUES (1, 1, -5, x'00')")
    with Bag(path) as bag:
        assert [*bag.messages({'/a'})] == []
        assert bag.timeless == {'/a': 1}


# --- damage of every kind ---


@st.composite
def damage(draw):
    """A function of a file's bytes."""
    kind = draw(st.sampled_from(['flip', 'cut', 'insert', 'number', 'repeat']))
    place = draw(st.floats(0, 1, exclude_max=True))
    values = draw(st.binary(min_size=1, max_size=8))
    number = draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]))

    def harm(data):
        at = int(place * len(data))
        if kind == 'cut':
            return data[:at]
        if kind == 'insert':
            return data[:at] + values + data[at:]
        if kind == 'repeat':
            return data[:at] + data[at // 2:]
        new = values if kind == 'flip' else struct.pack('<Q', number)
        return data[:at] + new + data[at + len(new):]

    return harm


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(FORMATS)), harms=st.lists(damage(), min_size=1, max_size=4),
       tail=st.booleans())
def test_a_damaged_bag_is_read_or_refused_in_a_sentence(
        bags, tmp_path_factory, name, harms, tail):
    bag = tmp_path_factory.mktemp('damaged')
    for file in bags[name].iterdir():
        data = file.read_bytes()
        if file.name != METADATA:
            split = len(data) - 700 if tail and len(data) > 700 else 0  # index and footer
            head, rest = data[:split], data[split:]
            for harm in harms:
                rest = harm(rest)
            data = head + rest
        (bag / file.name).write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    try:
        found = read(bag)
    except BagError as error:
        assert '\n' not in str(error)
        assert len(str(error)) < 1000
    else:
        assert all(isinstance(raw, bytes) for _, _, raw in found)
    try:
        target, count = repair_bag(bag)
    except BagError as error:
        assert '\n' not in str(error)
        assert not list(bag.parent.glob('.*.partial'))
    else:
        assert len(read(target)) == count > 0
    assert time.process_time() - started < 10.0
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kb < 300_000


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_as_records_are_read_or_refused(data):
    stream = io.BytesIO(data)
    definitions = mcap_records.Definitions()
    try:
        for opcode, body in mcap_records.records(stream, 0, len(data)):
            definitions.learn(opcode, body)
            if opcode == mcap_records.CHUNK:
                list(mcap_records.messages_of(mcap_records.unpack_chunk(body), None, definitions))
    except (storage.StorageError, zstandard.ZstdError, RuntimeError) as error:
        assert str(error)


# --- repair ---


def test_repair_keeps_messages_of_types_that_are_not_installed(tmp_path):
    schema = record(3, struct.pack('<H', 1) + text(b'their_msgs/msg/Thing') + text(b'ros2msg')
                    + text(b'int32 x'))
    path = tmp_path / 'bag.mcap'
    body = schema + channel(1, b'/thing') + message(1, 5, b'\0\1\0\0\7\0\0\0')
    path.write_bytes(mcap_records.MAGIC + record(1, text(b'ros2') + text(b'')) + chunk(body)
                     + chunk(message(1, 9, b'second'))[:-3])
    before = path.read_bytes()
    target, count = repair_bag(path)
    assert count == 1
    assert read(target) == [('/thing', 5, b'\0\1\0\0\7\0\0\0')]
    with Bag(target) as bag:
        assert bag.types == {'/thing': 'their_msgs/msg/Thing'}
    assert path.read_bytes() == before


def test_repair_overwrites_nothing_and_leaves_nothing_of_a_failure(tmp_path):
    bag = tmp_path / 'bag'
    bag.mkdir()
    (bag / 'a.mcap').write_bytes(mcap_records.MAGIC + b'\xff' * 50)
    with pytest.raises(BagError, match='holds no whole message'):
        repair_bag(bag)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bag']
    (tmp_path / 'bag-repaired').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(BagError, match='exists already'):
        repair_bag(bag)
    assert (tmp_path / 'bag-repaired').is_symlink()
    assert not (tmp_path / 'nowhere').exists()


@pytest.mark.parametrize('kind', [
    b'os.path/msg/X', b'../../etc/msg/passwd', b'antigravity.x/msg/A', b'\0/msg/A',
    b'std_msgs/msg/../../../../etc/passwd'])
def test_a_type_name_is_never_a_path_or_a_module(tmp_path, kind):
    code = 'import sys; from vla_policy_node.wire.definitions import *\n' \
        'try:\n    MessageDefinitions().learn(sys.argv[1])\n' \
        'except UnknownTypeError as error:\n    assert "antigravity" not in sys.modules\n' \
        '    print("refused")\n'
    if b'\0' not in kind:
        done = subprocess.run([sys.executable, '-c', code, kind.decode()], capture_output=True,
                              text=True, check=False, timeout=60,
                              env={**os.environ, 'PYTHONPATH': str(ROOT)})
        assert done.stdout.strip() == 'refused', done.stderr
    schema = record(3, struct.pack('<H', 1) + text(kind) + text(b'ros2msg') + text(b'int32 x'))
    path = tmp_path / 'bag.mcap'
    path.write_bytes(mcap_records.MAGIC + schema + channel(1, b'/thing') + message(1, 5, b'data'))
    target, count = repair_bag(path)
    assert count == 1
    assert [raw for _, _, raw in read(target)] == [b'data']
