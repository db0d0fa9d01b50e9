"""States that the training data never had: found by name, said once per goal, counted."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_node.checkpoints.statistics import read_statistics
from vla_policy_node.loop.state_range import StateWatch, outside
from vla_policy_node.policy.interface import PolicyDescription, PolicySpec, Quantity

SPEC = PolicySpec(state=(Quantity('rx', 'rad'), Quantity('right_finger', 'm'), Quantity('pad')))
LOW, HIGH = (1.9, -0.04, 0.0), (3.5, -0.001, 0.0)
GOOD, FRANKA = np.array([3.1, -0.02, 0.0]), np.array([3.1, 0.04, 0.0])
numbers = st.floats(-1e6, 1e6)


def watch(**said):
    return StateWatch(PolicyDescription(
        **{'architecture': 'a', 'chunk_length': 1, 'spec': SPEC, 'state_range': (LOW, HIGH),
           **said}))


@given(st.lists(st.tuples(numbers, numbers, st.floats(-0.5, 1.5)), max_size=8))
def test_what_lies_in_the_range_is_never_outside_and_what_lies_far_from_it_always(rows):
    low = np.array([min(a, b) for a, b, _ in rows])
    high = np.array([max(a, b) for a, b, _ in rows])
    share = np.array([share for *_, share in rows])
    state = low + share * (high - low)
    names = [Quantity(f'q{i}') for i in range(len(rows))]
    found = {one.quantity.name for one in outside(state, names, low, high)}
    for i, one in enumerate(share):
        beyond = max(-one, one - 1.0) * (high[i] - low[i])
        if 0.0 <= one <= 1.0:
            assert f'q{i}' not in found
        elif beyond > 0.06 * (high[i] - low[i]) + 2e-6:
            assert f'q{i}' in found


@given(st.integers(0, 2), st.sampled_from([np.nan, np.inf, -np.inf, 1e300, -1e300]))
def test_each_number_is_found_by_its_name_whatever_it_is(place, value):
    state = GOOD.copy()
    state[place] = value
    (found,) = outside(state, SPEC.state, LOW, HIGH)
    assert found.quantity is SPEC.state[place]
    assert found.text.startswith(f'{SPEC.state[place].name} is ') and found.text.endswith('.')


def test_a_sign_that_is_turned_is_said_for_a_joint_but_not_for_a_part_of_a_rotation():
    (finger,) = outside(FRANKA, SPEC.state, LOW, HIGH)
    assert finger.text == (
        'right_finger is 0.04 m, outside of what the policy was trained with (-0.04 to -0.001 m); '
        'with the other sign it would fit: `scale: -1.0` turns it.')
    (turned,) = outside(GOOD * [-1, 1, 1], SPEC.state, LOW, HIGH)
    assert 'rx is -3.1 rad' in turned.text and 'sign of the quaternion' in turned.text


def test_each_number_is_said_once_per_goal_and_counted_every_time():
    seen = watch()
    said = [seen.look(state, epoch) for epoch in (1, 2)
            for state in (GOOD, FRANKA, FRANKA * [0, 1, 1], FRANKA)]
    assert [len(sentences) for sentences in said] == [0, 1, 1, 0] * 2
    assert seen.counts() == {'state_outside.right_finger': 6, 'state_outside.rx': 2}
    finger, turned = seen.remarks()
    assert finger.startswith('The state, in 6 of 8 observations: right_finger is 0.04 m')
    assert turned.startswith('The state, in 2 of 8 observations: rx is 0 rad')
    seen.reset()
    assert not seen.counts() and not seen.remarks()
    assert seen.look(FRANKA, 2)


@pytest.mark.parametrize('said', [
    {'state_range': ((), ())}, {'spec': PolicySpec(state=())}, {'state_range': ((0.0,), (1.0,))}])
def test_without_a_range_of_each_number_nothing_is_compared(said):
    assert watch(**said).look(FRANKA, 1) == [] and not watch(**said).counts()


def test_a_description_keeps_the_range_on_its_way_and_an_older_one_has_none():
    description = PolicyDescription(
        architecture='a', chunk_length=1, spec=SPEC, state_range=(LOW, HIGH))
    plain = json.loads(json.dumps(description.to_dict()))
    assert PolicyDescription.from_dict(plain) == description
    plain.pop('state_range')
    assert PolicyDescription.from_dict(plain).state_range == ((), ())


@pytest.mark.parametrize(('more', 'seen'), [
    ({}, (0.0, 1.0)),
    ({'min': [-1.0], 'max': [2.0]}, (-1.0, 2.0)),
    ({'min': [0.5], 'max': [0.6]}, (0.0, 1.0)),  # damaged: within the percentiles
    ({'min': [-1.0], 'max': 'far'}, (-1.0, 1.0)),
    ({'min': [float('nan')], 'max': [2.0, 2.0]}, (0.0, 1.0))])
def test_the_range_is_of_the_whole_data_set_where_that_says_so(more, seen):
    spec = PolicySpec(state=(Quantity('a'),), actions=(Quantity('b'),))
    ends = {'q01': [0.0], 'q99': [1.0]}
    read = read_statistics({'x': {'action': ends, 'proprio': ends | more}}, spec=spec)
    assert tuple(read.proprio_seen.ravel()) == seen
    assert (read.proprio_low, read.proprio_high) == ([0.0], [1.0])
