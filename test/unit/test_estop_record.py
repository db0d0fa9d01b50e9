"""The record of the emergency stop: latched in doubt, free only where nothing was recorded."""

import os

import pytest

from vla_policy_node.nodes.estop_record import EstopRecord


def make_record(folder, domain=0, node='/policy'):
    return EstopRecord(str(folder), domain, node)


def test_a_stop_is_found_until_it_is_released(tmp_path):
    record = make_record(tmp_path / 'state')
    assert (record.found(), record.problem()) == ('', '')
    record.latch()
    found = make_record(tmp_path / 'state').found()
    assert 'UTC' in found
    assert '/policy/reset_estop' in found
    record.latch()
    record.release()
    record.release()
    assert record.found() == ''
    assert list((tmp_path / 'state').iterdir()) == []


@pytest.mark.parametrize(('domain', 'node'), [(1, '/policy'), (0, '/r1/policy'), (0, '/policy2')])
def test_no_two_robots_share_a_record(tmp_path, domain, node):
    make_record(tmp_path).latch()
    assert make_record(tmp_path, domain, node).found() == ''


@pytest.mark.parametrize('content', [b'', b'free', b'\xff\x00' * 10_000], ids=len)
def test_whatever_the_file_holds_means_latched(tmp_path, content):
    record = make_record(tmp_path)
    record.path.write_bytes(content)
    assert 'latched' in record.found()
    record.latch()
    record.release()
    assert record.found() == ''


def test_what_is_no_file_means_latched_and_says_that_it_cannot_be_removed(tmp_path):
    record = make_record(tmp_path)
    record.path.mkdir()
    assert 'latched' in record.found()
    record.latch()
    with pytest.raises(OSError, match=r'directory|permitted'):
        record.release()
    other = make_record(tmp_path, 1)
    target = tmp_path / 'precious'
    other.path.symlink_to(target)
    assert 'latched' in other.found()
    other.latch()
    assert not target.exists()
    pipe = make_record(tmp_path, 2)
    os.mkfifo(pipe.path)  # nobody reads or writes: must not wait
    assert 'latched' in pipe.found()
    pipe.latch()


def test_a_record_that_cannot_be_looked_at_means_latched(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(os, 'lstat', refuse)
    assert 'state_directory' in make_record(tmp_path).found()


def test_a_place_that_cannot_be_written_is_said_before_it_is_needed(tmp_path):
    (tmp_path / 'file').touch()
    record = make_record(tmp_path / 'file' / 'state')
    assert 'state_directory' in record.problem()
    assert record.found() == ''
    with pytest.raises(OSError, match='directory'):
        record.latch()


@pytest.mark.parametrize('given', ['', 'relative/path'])
def test_the_default_place_is_that_of_xdg_and_nobody_needs_a_home(tmp_path, monkeypatch, given):
    monkeypatch.setenv('XDG_STATE_HOME', given)
    monkeypatch.setenv('HOME', str(tmp_path))
    assert make_record('').path.parent == tmp_path / '.local' / 'state' / 'vla_policy_node'
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path))
    assert make_record('').path == tmp_path / 'vla_policy_node' / 'estop.0.policy'
    monkeypatch.setattr('pathlib.Path.expanduser', lambda path: no_home())
    monkeypatch.delenv('XDG_STATE_HOME')
    homeless = make_record('')
    assert 'no home' in homeless.problem()
    assert homeless.found() == ''
    with pytest.raises(OSError, match='no home'):
        homeless.latch()


def no_home():
    raise RuntimeError('no home')
