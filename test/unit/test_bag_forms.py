"""Recordings in every form that people have: read whole, or refused with the true cause."""

import sqlite3
import struct

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

from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.bag_files import METADATA, bag_name

ONE = SCHEMA + channel(1) + message(1, 1) + message(1, 2, b'two')
READ = [('/a', 1, b'x'), ('/a', 2, b'two')]
ROWS = (*TOPICS, MESSAGES, "INSERT INTO messages VALUES (1, 1, 1, x'78'), (2, 1, 2, x'74776f')")


def read(path):
    with Bag(path) as bag:
        return list(bag.messages(bag.types))


def refused(path):
    with pytest.raises(BagError) as caught:
        read(path)
    sentence = str(caught.value)
    assert sentence.endswith('.') and '\n' not in sentence
    return sentence


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'bag').mkdir()
    return tmp_path / 'bag'


def topics_row(name, count, profile):
    return {'topic_metadata': {'name': name, 'type': 'std_msgs/msg/Header',
                               'serialization_format': 'cdr', 'offered_qos_profiles': profile},
            'message_count': count}


@pytest.mark.parametrize('profile', [
    '', '[]', '- history: 3\n  depth: 0', [], None, [{'history': 'keep_last', 'depth': 5}]])
def test_a_topic_is_read_whole_whatever_metadata_says_of_its_quality_of_service(folder, profile):
    write_mcap(folder / 'a.mcap', SCHEMA + channel(1) + channel(2) + message(1, 1) + message(2, 2))
    metadata(folder, topics_with_message_count=[topics_row('/a', 2, profile)])
    with Bag(folder) as bag:
        assert len(list(bag.messages({'/a'}))) == 2
        assert bag.remarks() == []


def test_what_metadata_counts_and_the_file_lacks_is_said_by_topic(folder):
    write_mcap(folder / 'a.mcap', ONE)
    metadata(folder, topics_with_message_count=[
        topics_row('/a', 5, ''), topics_row('/gone', 7, ''), {'message_count': 3}, 8])
    with Bag(folder) as bag:
        assert list(bag.messages(bag.types)) == READ
        assert bag.remarks() == [
            '/a: metadata.yaml counts 5 messages, there are 2.',
            '/gone: metadata.yaml counts 7 messages, there are 0.']


def test_what_the_file_counts_and_does_not_hold_is_said_once_it_was_read(tmp_path):
    raw = chunk(SCHEMA + channel(1) + message(1, 1), first=1, last=1)
    with Bag(indexed(tmp_path / 'a.mcap', [(raw, 1, 1)])) as bag:  # its statistics say 9
        assert bag.remarks() == []
        assert len(list(bag.messages({'/a'}))) == 1
        assert bag.remarks() == ['/a: the file itself counts 9 messages, there are 1.']


def test_a_summary_that_lacks_a_channel_does_not_hide_its_topic(tmp_path):
    body = SCHEMA + channel(1) + channel(2, b'/b') + message(1, 1) + message(2, 2)
    raw = chunk(body, first=1, last=2)
    path = indexed(tmp_path / 'a.mcap', [(raw, 1, 2)])
    data = path.read_bytes()
    path.write_bytes(data.replace(text(b'\1\0' + (9).to_bytes(8, 'little')),
                                  text(b'\2\0' + (9).to_bytes(8, 'little'))))
    assert data != path.read_bytes()
    assert read(path) == [('/a', 1, b'x'), ('/b', 2, b'x')]


@pytest.mark.parametrize('counts', [b'', struct.pack('<HQ', 1, 1)])
def test_a_summary_that_does_not_count_by_channel_hides_no_topic(tmp_path, counts):
    """The format allows statistics without these counts."""
    body = SCHEMA + channel(1) + channel(2, b'/b') + message(1, 1) + message(2, 2)
    path = indexed(tmp_path / 'a.mcap', [(chunk(body, first=1, last=2), 1, 2)], counts=counts)
    assert read(path) == [('/a', 1, b'x'), ('/b', 2, b'x')]


@pytest.mark.parametrize('definitions', [b'', SCHEMA, channel(1)])
def test_a_summary_that_repeats_no_definitions_hides_no_type(tmp_path, definitions):
    """As with the writer's options noRepeatedSchemas and noRepeatedChannels."""
    path = indexed(tmp_path / 'a.mcap', [(chunk(SCHEMA + channel(1) + 9 * message(1, 1), first=1,
                                                last=1), 1, 1)], definitions=definitions)
    with Bag(path) as bag:
        assert bag.types == {'/a': 'std_msgs/msg/Header'}
        assert len([*bag.messages(['/a'])]) == bag.counts['/a'] == 9


@pytest.mark.parametrize('ending', ['', '.zstd', '.zst'])
@pytest.mark.parametrize('form', ['mcap', 'db3'])
def test_a_file_alone_is_a_bag_also_packed(tmp_path, form, ending):
    plain = tmp_path / f'my.run.{form}'
    if form == 'mcap':
        write_mcap(plain, ONE)
    else:
        database(plain, *ROWS)
    file = tmp_path / f'my.run.{form}{ending}'
    if ending:
        file.write_bytes(zstandard.compress(plain.read_bytes()))
        plain.unlink()
    assert read(file) == READ
    assert bag_name(file) == 'my.run'


def test_what_a_file_is_its_bytes_say_and_not_its_name(tmp_path):
    assert read(write_mcap(tmp_path / 'recording', ONE)) == READ
    assert read(database(tmp_path / 'a.mcap', *ROWS)) == READ


def test_a_folder_whose_files_are_whole_needs_no_metadata(folder):
    """In the order of their times: by name, 10 would come before 9."""
    for number in (9, 10):
        write_mcap(folder / f'bag_{number}.mcap', SCHEMA + channel(1) + message(1, number))
    assert [time_ns for _, time_ns, _ in read(folder)] == [9, 10]
    os_cut = folder / 'bag_11.mcap'
    os_cut.write_bytes((folder / 'bag_9.mcap').read_bytes()[:-20])
    assert 'vla record --repair' in refused(folder)


@pytest.mark.parametrize('listed', [
    ['bag_10.mcap', 'bag_9.mcap'], ['bag_9.mcap', 'bag_10.mcap', 'bag_9.mcap'], []])
def test_files_are_read_once_and_in_order_however_metadata_lists_them(folder, listed):
    for number in (9, 10):
        write_mcap(folder / f'bag_{number}.mcap', SCHEMA + channel(1) + message(1, number))
    metadata(folder, relative_file_paths=listed)
    assert [time_ns for _, time_ns, _ in read(folder)] == [9, 10]


def test_metadata_without_a_list_of_files_says_so(folder):
    write_mcap(folder / 'a.mcap', ONE)
    assert 'does not say what its files are' in refused(
        metadata(folder, relative_file_paths='a.mcap'))


def test_messages_packed_one_by_one_are_unpacked_without_metadata(folder):
    database(folder / 'a.db3', *TOPICS, MESSAGES)
    with sqlite3.connect(folder / 'a.db3') as connection:
        connection.execute('INSERT INTO messages VALUES (1, 1, 5, ?)',
                           (zstandard.compress(b'\0\1\0\0'),))
    connection.close()
    assert read(folder) == [('/a', 5, b'\0\1\0\0')]


def test_metadata_itself_names_its_bag(folder):
    write_mcap(folder / 'a.mcap', ONE)
    assert read(metadata(folder) / METADATA) == READ
    assert bag_name(folder / METADATA) == 'bag'


@pytest.mark.parametrize('version', [1, 9, 10, 99])
def test_metadata_of_any_version_that_names_its_files_is_read(folder, version):
    write_mcap(folder / 'a.mcap', ONE)
    assert read(metadata(folder, version=version)) == READ


def test_a_file_that_metadata_does_not_name_is_mentioned(folder):
    for name in ('a', 'b'):
        write_mcap(folder / f'{name}.mcap', ONE)
    with Bag(metadata(folder)) as bag:
        assert bag.remarks() == ['metadata.yaml does not name b.mcap, which was not read.']


def test_a_file_that_was_packed_after_metadata_was_written_is_found(folder):
    write_mcap(folder / 'b.mcap', ONE)
    (folder / 'a.mcap.zstd').write_bytes(zstandard.compress((folder / 'b.mcap').read_bytes()))
    (folder / 'b.mcap').unlink()
    assert read(metadata(folder)) == READ


@pytest.mark.parametrize(('head', 'cause'), [
    (b'#ROSBAG V2.0\n' + bytes(50), 'a bag of ROS 1'), (b'\x1f\x8b' + bytes(50), 'gzip'),
    (b'PK\3\4' + bytes(50), 'zip archive'), (b'\x04\x22\x4d\x18' + bytes(50), 'lz4'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
    (b'hello', 'neither a folder of rosbag2 nor')])
def test_what_is_another_kind_of_file_is_called_by_its_name(tmp_path, head, cause):
    file = tmp_path / 'a.bag'
    file.write_bytes(head)
    sentence = refused(file)
    assert cause in sentence
    assert 'damaged' not in sentence and 'repair' not in sentence


def test_a_folder_of_bags_names_them(tmp_path):
    for name in ('one', 'two'):
        (tmp_path / name).mkdir()
        write_mcap(tmp_path / name / 'a.mcap', ONE)
    metadata(tmp_path / 'one')
    assert 'folder of bags (one, two)' in refused(tmp_path)


def test_a_folder_of_recordings_of_several_names_is_not_read_as_one(folder):
    for name in ('monday', 'tuesday'):
        write_mcap(folder / f'{name}.mcap', ONE)
    assert 'recordings of 2 names (monday, tuesday)' in refused(folder)


def test_an_empty_folder_is_none(folder):
    assert 'no folder of rosbag2' in refused(folder)
    assert 'There is no bag' in refused(folder / 'nowhere')


def test_a_topic_of_two_types_does_not_cost_the_others(tmp_path):
    other = record(3, (2).to_bytes(2, 'little') + text(b'std_msgs/msg/Empty') + text(b'ros2msg')
                   + text(b''))
    path = write_mcap(tmp_path / 'a.mcap', SCHEMA + other + channel(1) + channel(2, schema=2)
                      + channel(3, b'/b') + message(1, 1) + message(2, 2) + message(3, 3))
    with Bag(path) as bag:
        assert bag.types == {'/a': 'std_msgs/msg/Header and std_msgs/msg/Empty',
                             '/b': 'std_msgs/msg/Header'}
        assert [*bag.messages({'/b'})] == [('/b', 3, b'x')]


@pytest.mark.parametrize('ending', ['-wal', '-journal'])
def test_a_database_with_changes_beside_it_is_not_read_without_them(tmp_path, ending):
    path = database(tmp_path / 'a.db3', *ROWS)
    (tmp_path / f'a.db3{ending}').write_bytes(b'')
    assert read(path) == READ
    (tmp_path / f'a.db3{ending}').write_bytes(b'changes')
    assert 'vla record --repair' in refused(path)
