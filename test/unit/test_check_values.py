"""What `vla check` says of statistics that do not mean, or do not fit, what they are taken for."""

import re

import numpy as np
import pytest
from value_files import ACTION, STATE, made_up, write_assets, write_processors

from vla_policy_node.checkpoints.conventions import ALOHA_PI0
from vla_policy_node.checkpoints.value_files import load_statistics, read_values
from vla_policy_node.checks.findings import FAIL, PASS, SKIP, WARN
from vla_policy_node.checks.values import (
    check_extremes,
    check_fit,
    check_modes,
    check_names,
    check_reference,
)
from vla_policy_node.policy.interface import PolicySpec, Quantity

NAMES = tuple(map(Quantity, 'abc'))


class Config:
    """Just what the checks ask for."""

    spec = PolicySpec(state=NAMES, actions=NAMES[:2])


def findings(folder, sizes=(3, 2), mode='MEAN_STD'):
    statistics, files = load_statistics(folder, '', sizes, mode, ALOHA_PI0), read_values(folder)
    return (check_modes(folder, files, statistics), check_extremes(files, statistics, Config),
            check_reference(files, statistics))


def numbers(mean, std=0.1):
    mean = np.array(mean, np.float32)
    return {'mean': mean, 'std': np.full_like(mean, std), 'min': mean - 3 * std,
            'max': mean + 3 * std, 'q01': mean - 2 * std, 'q99': mean + 2 * std}


def write(folder, state=(2.0, -3.0, 0.0), actions=(0.0, 0.0), modes=('MEAN_STD',) * 2, **more):
    write_processors(folder, {STATE: numbers(state), ACTION: numbers(actions)}, modes, **more)


def test_good_files_pass(tmp_path):
    write(tmp_path)
    assert [finding.verdict for finding in findings(tmp_path)] == [PASS, PASS, PASS]


def test_files_that_contradict_each_other_are_named(tmp_path):
    write(tmp_path, normalization_mapping={'STATE': 'QUANTILES', 'ACTION': 'MEAN_STD'})
    config = (tmp_path / 'config.json').read_text()
    write_assets(tmp_path, {'other': (made_up(3, 1), made_up(2, 2))})
    (tmp_path / 'config.json').write_text(config)
    modes = findings(tmp_path)[0]
    assert modes.verdict == WARN
    assert 'config.json says QUANTILES of STATE' in modes.text and 'assets/' in modes.text


def test_a_state_without_statistics_is_named(tmp_path):
    write_processors(tmp_path, {ACTION: numbers((0.0, 0.0))})
    modes = findings(tmp_path)[0]
    assert modes.verdict == WARN and 'no statistics of the state' in modes.text


def test_a_number_that_hardly_ever_changed_is_named(tmp_path):
    still = numbers((2.0, -3.0, 0.0))
    still['std'][1], still['q99'][1] = 1e-6, still['q01'][1] + 1e-6
    for modes in (('MEAN_STD',) * 2, ('QUANTILES',) * 2):
        folder = tmp_path / modes[0]
        write_processors(folder, {STATE: still, ACTION: numbers((0.0, 0.0))}, modes)
        extremes = findings(folder)[1]
        assert extremes.verdict == WARN and 'b up to' in extremes.text


@pytest.mark.parametrize(('actions', 'mask', 'verdict', 'words'), [
    ((2.0, -3.0), None, PASS, 'as they are'),
    ((0.0, 0.0), [2], PASS, '2 numbers count from the state'),
    ((-2.0, 3.0), [2], PASS, '2 numbers'),
    ((-2.0, 0.0), None, WARN, 'numbers 0 look as if .*delta_action_mask'),
    ((2.0, 0.0), [2], WARN, 'numbers 0 .*added twice')])
def test_what_actions_count_from_must_be_what_their_statistics_look_like(
    tmp_path, actions, mask, verdict, words
):
    write(tmp_path, actions=actions, **({} if mask is None else {'delta_action_mask': mask}))
    reference = findings(tmp_path)[2]
    assert reference.verdict == verdict
    assert re.search(words, reference.text)


def test_statistics_near_zero_tell_nothing_of_the_reference(tmp_path):
    write(tmp_path, state=(0.0, 0.05, 0.0))
    assert findings(tmp_path)[2].verdict == SKIP


@pytest.mark.parametrize(('shift', 'verdict'), [(0.0, PASS), (0.5, WARN), (5.0, FAIL)])
def test_data_that_does_not_fit_is_said_number_by_number(shift, verdict):
    values = {'a': np.linspace(0, 1, 1000), 'b': np.linspace(0, 1, 1000) + shift}
    low, high = np.zeros(3), np.array([1.0, 1.2, 1.0])
    finding = check_fit('states', values, NAMES, low, high)
    assert finding.verdict == verdict
    assert (': b ' in finding.text) == (verdict != PASS)


def test_without_ranges_or_values_nothing_is_claimed():
    assert check_fit('states', {}, NAMES, np.empty(0), np.empty(0)).verdict == SKIP
    assert check_fit('states', {}, NAMES, np.zeros(3), np.ones(3)).verdict == SKIP


def test_what_cameras_were_called_in_training_is_said():
    text = check_names({'observation.images.top': 'observation.images.camera1'}).text
    assert 'camera1 was top' in text
