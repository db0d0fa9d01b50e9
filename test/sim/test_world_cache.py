"""The cache of generated files: whole or absent, whoever builds it and whatever goes wrong."""

import multiprocessing
import threading
from pathlib import Path

import pytest

from vla_policy_node.world.cache import build_once, cache_root, digest


def test_cache_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv('VLA_CACHE', str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv('VLA_CACHE')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert cache_root() == tmp_path / '.cache' / 'vla_policy_node'


def test_digest_separates_its_parts():
    assert digest([b'ab', b'c']) != digest([b'a', b'bc'])
    assert digest([b'ab', b'c']) == digest([b'ab', b'c'])


def test_a_target_that_exists_is_not_built_again(tmp_path):
    target = tmp_path / 'world'
    build_once(target, lambda directory: (directory / 'file').write_text('first'))
    build_once(target, lambda directory: (directory / 'file').write_text('second'))
    assert (target / 'file').read_text() == 'first'


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(directory: Path) -> None:
        (directory / 'half').write_text('half')
        raise RuntimeError('stopped')

    with pytest.raises(RuntimeError, match='stopped'):
        build_once(tmp_path / 'world', fail)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_never_sees_half_a_directory(tmp_path):
    target = tmp_path / 'world'
    seen = []

    def build(directory: Path) -> None:
        (directory / 'one').write_text('1')
        seen.append(target.exists())
        (directory / 'two').write_text('2')

    build_once(target, build)
    assert seen == [False]
    assert sorted(path.name for path in target.iterdir()) == ['one', 'two']


def test_racing_threads_agree_on_one_directory(tmp_path):
    barrier = threading.Barrier(4)
    target = tmp_path / 'world'

    def build(directory: Path) -> None:
        barrier.wait(timeout=10)  # all four are building at the same time
        for name in ('one', 'two'):
            (directory / name).write_text(str(threading.get_ident()))

    threads = [threading.Thread(target=build_once, args=(target, build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (target / 'one').read_text() == (target / 'two').read_text()
    assert [path.name for path in tmp_path.iterdir()] == ['world']


def _race(target: Path, barrier, results) -> None:
    def build(directory: Path) -> None:
        barrier.wait(timeout=30)
        (directory / 'file').write_text('whole')

    results.put((build_once(target, build) / 'file').read_text())


def test_racing_processes_agree_on_one_directory(tmp_path):
    context = multiprocessing.get_context('spawn')
    barrier, results = context.Barrier(2), context.Queue()
    target = tmp_path / 'world'
    processes = [context.Process(target=_race, args=(target, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == ['whole', 'whole']
    for process in processes:
        process.join()
    assert [path.name for path in tmp_path.iterdir()] == ['world']
