"""What reports say of where their figures come from: the machine's load, the code."""

import subprocess

import pytest

from vla_policy_node.common import code_version, load


@pytest.fixture
def clock(monkeypatch):
    """Two seconds go by between the two readings."""
    times = iter((10.0, 12.0))
    monkeypatch.setattr(load.time, 'monotonic', lambda: next(times))


def test_the_load_is_what_others_used(tmp_path, monkeypatch, clock):
    stat, own_s = tmp_path / 'stat', iter((3.0, 4.5))
    monkeypatch.setattr(load, '_STAT', stat)
    monkeypatch.setattr(load, '_own_s', lambda: next(own_s))
    monkeypatch.setattr(load.os, 'sysconf', lambda name: 100)
    # user nice system idle iowait irq softirq steal guest guest_nice
    stat.write_text('cpu  1000 0 200 9000 50 0 0 0 700 0\n')
    meter = load.LoadMeter()
    stat.write_text('cpu  1200 0 250 9100 60 0 0 0 800 0\n')
    # 2.5 s of processor time in 2 s, 1.5 s of it ours
    assert meter.read()['busy_with_others_cores'] == pytest.approx(0.5)


@pytest.mark.parametrize('text', ['', 'cpu one two\n', None])
def test_a_machine_that_does_not_tell_its_load_is_unknown(tmp_path, monkeypatch, text):
    monkeypatch.setattr(load, '_STAT', tmp_path / 'stat')
    if text is not None:
        (tmp_path / 'stat').write_text(text)
    read = load.LoadMeter().read()
    assert read['busy_with_others_cores'] is None
    assert read['cores'] >= 1


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one commit."""
    for command in (['init', '-q'], ['config', 'user.email', 'a@b'], ['config', 'user.name', 'a'],
                    ['commit', '-q', '--allow-empty', '-m', 'first']):
        subprocess.run(['git', '-C', tmp_path, *command], check=True)
    monkeypatch.setattr(code_version, '_ROOT', tmp_path)
    code_version.code_version.cache_clear()
    yield tmp_path
    code_version.code_version.cache_clear()


def test_the_code_is_named_by_its_commit(checkout):
    subprocess.run(['git', '-C', checkout, 'tag', 'v1'], check=True)
    commit = subprocess.run(['git', '-C', checkout, 'rev-parse', '--short=12', 'HEAD'],
                            capture_output=True, text=True, check=True).stdout.strip()
    assert code_version.code_version().endswith(f', commit {commit}')


def test_changed_code_is_not_the_commit(checkout):
    (checkout / 'file').write_text('new')
    subprocess.run(['git', '-C', checkout, 'add', 'file'], check=True)
    assert code_version.code_version().endswith(', changed since')


def test_an_installed_package_is_not_of_the_repository_around_it(checkout, monkeypatch):
    (checkout / 'lib').mkdir()
    monkeypatch.setattr(code_version, '_ROOT', checkout / 'lib')
    assert 'commit' not in code_version.code_version()
    assert code_version.code_version().startswith('vla_policy_node')
