"""A set of demonstrations: goes on where it stopped, and is the same however it was made."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from vla_policy_node import cli
from vla_policy_node.training import demonstration_set
from vla_policy_node.training.demonstration_set import DISCARDED, Attempt, make
from vla_policy_node.training.demonstrations import Demonstrations, episode_path
from vla_policy_node.training.recording import RecordingRecipe

RECIPE = RecordingRecipe(
    'libero_object', 'shuffled', (0, 1), noise=0.1, frame_every=4, retarget=True)
FAILING = (2, 3, 7)


@pytest.fixture
def attempted(monkeypatch):
    """Replace the work of the workers; returns the seeds that were tried, in order."""
    seeds = []

    def attempt(seed):
        seeds.append(seed)
        if seed in FAILING:
            return Attempt(seed, kept=False)
        episode_path(directory_in_use[0], seed).touch()
        return Attempt(seed, kept=True, steps=100)

    @contextmanager
    def pool(workers, method, initializer, initargs):
        directory_in_use[:] = [initargs[0]]
        with ThreadPoolExecutor(workers) as threads:
            yield threads.submit

    directory_in_use = []
    monkeypatch.setattr(demonstration_set, '_attempt', attempt)
    monkeypatch.setattr(demonstration_set, 'worker_pool', pool)
    return seeds


def seeds_in(directory):
    return sorted(int(path.stem.split('-')[1]) for path in directory.glob('episode-*'))


@pytest.mark.parametrize('workers', [1, 2, 5])
def test_the_set_does_not_depend_on_the_number_of_workers(attempted, tmp_path, workers):
    attempts = list(make(tmp_path, RECIPE, 6, 0, workers))
    assert seeds_in(tmp_path) == [0, 1, 4, 5, 6, 8]
    assert sorted(a.seed for a in attempts if not a.kept) == [2, 3, 7]


def test_nothing_is_tried_twice(attempted, tmp_path):
    list(make(tmp_path, RECIPE, 3, 0, 1))
    assert seeds_in(tmp_path) == [0, 1, 4]
    attempted.clear()
    attempts = list(make(tmp_path, RECIPE, 5, 0, 1))
    assert attempted == [5, 6]
    assert [a.seed for a in attempts] == [0, 1, 2, 3, 4, 5, 6]
    assert [a.seed for a in attempts if a.new] == [5, 6]


def test_a_stop_in_the_middle_loses_nothing(attempted, tmp_path):
    attempts = make(tmp_path, RECIPE, 8, 0, 1)
    for _ in range(4):
        next(attempts)
    attempts.close()
    (tmp_path / 'episode-0000005.99.tmp').touch()
    (tmp_path / 'thesis.tmp').touch()  # somebody else's
    with (tmp_path / DISCARDED).open('a') as file:
        file.write('{"se')  # killed in the middle of a line
    list(make(tmp_path, RECIPE, 6, 0, 1))
    assert seeds_in(tmp_path) == [0, 1, 4, 5, 6, 8]
    assert sorted(attempted) == list(range(9))
    assert [path.name for path in tmp_path.glob('*.tmp')] == ['thesis.tmp']


def test_another_seed_is_another_set_below_those_of_evaluation(attempted, tmp_path):
    list(make(tmp_path, RECIPE, 2, 9, 1))
    assert seeds_in(tmp_path) == [900_000, 900_001]
    with pytest.raises(ValueError, match='take 0 to 9: layouts beyond are for evaluation'):
        next(make(tmp_path, RECIPE, 2, 10, 1))


@pytest.mark.parametrize(('change', 'sentence'), [
    ({'noise': 0.3}, 'noise is 0.3; take 0 to 0.15'),
    ({'tasks': (4, 12)}, 'no task 12; it has 0 to 9'),
    ({'suite': 'libero_spatial'}, 'add --no-retarget'),
    ({'suite': 'libero_90'}, 'choose one of libero_object'),
])
def test_what_cannot_be_made_is_refused_before_anything_is(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        next(make(tmp_path / 'set', replace(RECIPE, **change), 1, 0, 1))
    assert not (tmp_path / 'set').exists()


def test_every_task_has_its_turn():
    assert [replace(RECIPE, tasks=(3, 5, 8)).task_of(seed) for seed in range(5)] == [3, 5, 8, 3, 5]


def test_the_command_records_reports_and_goes_on(tmp_path):
    def vla(*arguments):
        command = ['demos', '--out', str(tmp_path / 'set'), '--every', '40', '--tasks', '1',
                   '--workers', '1', *arguments]
        return CliRunner().invoke(cli.app, command)

    first = vla('--count', '1')
    assert first.exit_code == 0, first.output
    assert '1 demonstrations, 1 of them new' in first.output
    again = vla('--count', '1')
    assert '1 demonstrations, 0 of them new' in again.output
    data = Demonstrations(tmp_path / 'set')
    assert data.load(0).images['wrist'].shape == (224, 224, 3)
    assert (tmp_path / 'set' / 'dataset_statistics.json').is_file()
    other = vla('--count', '1', '--noise', '0')
    assert other.exit_code == 2
    assert 'choose the same options or another folder' in other.output
