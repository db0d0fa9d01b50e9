"""No command leaves the limiter that breaks a limit, whatever goes in."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_node.control.action_spec import EndEffectorDelta
from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.limits import CommandLimiter, Limits

PERIOD_S = 0.05
LIMITS = Limits(
    max_step_translation_m=0.05,
    max_step_rotation_rad=0.3,
    max_linear_velocity_m_s=0.8,
    max_angular_velocity_rad_s=4.0,
    max_linear_acceleration_m_s2=4.0,
    max_angular_acceleration_rad_s2=30.0,
    workspace_min_m=(-0.3, -0.3, 0.0),
    workspace_max_m=(0.3, 0.3, 0.5),
)
CENTRE = np.array([0.0, 0.0, 0.25])
STEP_M, STEP_RAD = 0.8 * PERIOD_S, 4.0 * PERIOD_S  # velocity is the tighter bound
CHANGE_M, CHANGE_RAD = 4.0 * PERIOD_S**2, 30.0 * PERIOD_S**2
TOLERANCE = 1e-9

anything = st.floats(allow_nan=False, allow_infinity=False)
plausible = st.floats(-0.2, 0.2)
full = st.sampled_from([-1.0, 0.0, 1.0])  # drives into walls and corners when repeated
vectors = st.one_of(
    st.lists(number, min_size=3, max_size=3) for number in (anything, plausible, full)
).map(np.array)
positions = st.lists(st.floats(-1.0, 1.0), min_size=3, max_size=3).map(np.array)


def make_delta(translation_m=(0, 0, 0), rotation_rad=(0, 0, 0), gripper=1.0):
    return EndEffectorDelta(
        np.array(translation_m, dtype=float), np.array(rotation_rad, dtype=float), gripper
    )


def apply(limiter, delta, position_m):
    """Limit a delta from a position, in the workspace that was set."""
    here = np.asarray(position_m, dtype=float)
    return limiter.apply(delta, here, LIMITS.workspace(here))


def settled_limiter(delta, position_m=CENTRE):
    """Return a limiter that has been sending this delta for a while, far from any wall."""
    limiter = CommandLimiter(LIMITS, PERIOD_S)
    for _ in range(20):
        apply(limiter, delta, position_m)
    return limiter


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(vectors, vectors, st.integers(1, 15)), min_size=1, max_size=8))
def test_a_robot_that_follows_never_exceeds_any_limit(sequence):
    check_following([(t, r) for t, r, repeats in sequence for _ in range(repeats)])


def test_every_turn_in_front_of_every_wall_stays_inside_all_limits():
    directions = [np.array(d, dtype=float) for d in itertools.product((-1, 0, 1), repeat=3)]
    for first, second in itertools.product(directions, directions):
        check_following([(first, first)] * 8 + [(second, second)] * 5)


def check_following(sequence):
    limiter = CommandLimiter(LIMITS, PERIOD_S)
    position, last_m, last_rad = CENTRE, np.zeros(3), np.zeros(3)
    for translation, rotation in sequence:
        delta = apply(limiter, make_delta(translation, rotation), position).delta
        position = position + delta.translation_m
        assert np.linalg.norm(delta.translation_m) <= STEP_M + TOLERANCE
        assert np.linalg.norm(delta.rotation_rad) <= STEP_RAD + TOLERANCE
        assert np.linalg.norm(delta.translation_m - last_m) <= CHANGE_M + TOLERANCE
        assert np.linalg.norm(delta.rotation_rad - last_rad) <= CHANGE_RAD + TOLERANCE
        assert (position >= np.array(LIMITS.workspace_min_m) - TOLERANCE).all()
        assert (position <= np.array(LIMITS.workspace_max_m) + TOLERANCE).all()
        last_m, last_rad = delta.translation_m, delta.rotation_rad


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(vectors, positions), min_size=1, max_size=20))
def test_a_robot_that_is_pushed_anywhere_is_never_driven_out(sequence):
    limiter = CommandLimiter(LIMITS, PERIOD_S)
    low, high = np.array(LIMITS.workspace_min_m), np.array(LIMITS.workspace_max_m)
    for translation, position in sequence:
        delta = apply(limiter, make_delta(translation), position).delta
        after = position + delta.translation_m
        assert np.isfinite(after).all()
        assert np.linalg.norm(delta.translation_m) <= STEP_M + TOLERANCE
        assert (after >= np.minimum(low, position) - TOLERANCE).all()
        assert (after <= np.maximum(high, position) + TOLERANCE).all()


@settings(deadline=None)
@given(vectors, vectors, positions)
def test_limiting_twice_changes_nothing_more(translation, rotation, position):
    once = apply(CommandLimiter(LIMITS, PERIOD_S), make_delta(translation, rotation), position)
    twice = apply(CommandLimiter(LIMITS, PERIOD_S), once.delta, position)
    assert twice.rules == ()
    np.testing.assert_array_equal(twice.delta.translation_m, once.delta.translation_m)
    np.testing.assert_array_equal(twice.delta.rotation_rad, once.delta.rotation_rad)


small = st.lists(st.floats(-0.005, 0.005), min_size=3, max_size=3).map(np.array)


@given(small, small)
def test_a_delta_inside_all_limits_is_unchanged_bit_for_bit(translation, rotation):
    limited = apply(CommandLimiter(LIMITS, PERIOD_S), make_delta(translation, rotation), CENTRE)
    assert limited.rules == ()
    assert limited.delta.translation_m.tobytes() == translation.tobytes()
    assert limited.delta.rotation_rad.tobytes() == rotation.tobytes()
    assert limited.delta.gripper == 1.0


@given(positions)
def test_zero_stays_zero_from_rest(position):
    limited = apply(CommandLimiter(LIMITS, PERIOD_S), make_delta(), position)
    assert limited.rules == ()
    assert not limited.delta.translation_m.any() and not limited.delta.rotation_rad.any()


def test_shortening_keeps_the_direction_and_names_both_rules():
    wanted = np.array([0.3, -0.4, 1.2])
    limiter = settled_limiter(make_delta(wanted))
    limited = apply(limiter, make_delta(wanted), CENTRE)
    assert limited.rules == ('step_translation', 'linear_velocity')
    np.testing.assert_allclose(limited.delta.translation_m, wanted / 1.3 * STEP_M)


def test_acceleration_counts_from_the_last_sent_delta_and_from_rest_after_a_hold():
    fast = make_delta((STEP_M, 0.0, 0.0), (0.0, STEP_RAD, 0.0))
    limiter = CommandLimiter(LIMITS, PERIOD_S)
    sent = [apply(limiter, fast, CENTRE).delta.translation_m[0] for _ in range(6)]
    np.testing.assert_allclose(np.diff(sent[:4]), CHANGE_M, rtol=1e-9)
    assert sent[-1] == STEP_M
    limiter.reset()
    limited = apply(limiter, fast, CENTRE)
    assert limited.rules == ('linear_acceleration', 'angular_acceleration')
    assert limited.delta.translation_m[0] == pytest.approx(CHANGE_M)
    assert limited.delta.rotation_rad[1] == pytest.approx(CHANGE_RAD)
    assert limiter.counts()['linear_acceleration'] == 5


def test_driving_into_a_wall_brakes_in_time_and_slides_along_it():
    wanted = make_delta((1.0, 0.3, 0.0))
    limiter, position = CommandLimiter(LIMITS, PERIOD_S), CENTRE
    for _ in range(40):
        limited = apply(limiter, wanted, position)
        position = position + limited.delta.translation_m
    assert position[0] == pytest.approx(0.3, abs=1e-9)
    assert position[1] == pytest.approx(0.3, abs=1e-9), 'the other axis was not stopped'
    assert 'workspace' in limited.rules


@pytest.mark.parametrize('outside_m', [0.001, 0.2])
def test_the_way_back_inside_is_open_and_the_way_out_closed(outside_m):
    position = np.array([0.3 + outside_m, 0.0, 0.25])
    limiter = CommandLimiter(LIMITS, PERIOD_S)
    assert apply(limiter, make_delta((0.005, 0, 0)), position).delta.translation_m[0] == 0.0
    inward = apply(limiter, make_delta((-0.005, 0, 0)), position)
    assert inward.rules == () and inward.delta.translation_m[0] == -0.005


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('where', ['translation_m', 'rotation_rad', 'gripper', 'position'])
def test_non_finite_input_is_a_hold_and_never_a_number(where, bad):
    limiter = CommandLimiter(LIMITS, PERIOD_S)
    vector = np.array([0.0, bad, 0.0])
    fields = {where: bad if where == 'gripper' else vector} if where != 'position' else {}
    with pytest.raises(HoldError) as error:
        apply(limiter, make_delta(**fields), vector if where == 'position' else CENTRE)
    expected = HoldReason.INPUT_INVALID if where == 'position' else HoldReason.ACTION_INVALID
    assert error.value.hold.code is expected
    assert limiter.counts() == {}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'max_step_translation_m': 0.0}, 'max_step_translation_m is 0.0'),
        ({'max_angular_velocity_rad_s': -1.0}, 'max_angular_velocity_rad_s'),
        ({'max_linear_acceleration_m_s2': math.nan}, 'max_linear_acceleration_m_s2'),
        ({'max_step_rotation_rad': math.inf}, 'between'),
        ({'workspace_min_m': (0.0, 0.0)}, 'three finite numbers'),
        ({'workspace_max_m': (0.3, -0.3, 0.5)}, 'empty in y'),
        ({'workspace_max_m': (0.3, 0.3, 1e9)}, 'within 1000 m'),
        ({'default_workspace_half_m': 0.0}, 'default_workspace_half_m is 0.0'),
    ],
)
def test_unusable_limits_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LIMITS, **changes)


@pytest.mark.parametrize('period_s', [0.0, -0.05, 5e-324, 1e308, math.nan, math.inf])
def test_an_unusable_period_is_refused(period_s):
    with pytest.raises(ValueError, match='control period'):
        CommandLimiter(LIMITS, period_s)


@pytest.mark.parametrize('axis', range(3))
@pytest.mark.parametrize('position', [1.31, -2.0, 1e6, 1e306, -1.7e308])
def test_a_pose_far_outside_of_the_workspace_is_none(axis, position):
    here = CENTRE.copy()
    here[axis] = math.copysign(abs(position) + 0.25, position)
    limiter = CommandLimiter(LIMITS, PERIOD_S)
    with pytest.raises(HoldError, match='not within 1 m of the workspace') as error:
        apply(limiter, make_delta((-0.005, -0.005, -0.005)), here)
    assert error.value.hold == Hold(HoldReason.INPUT_INVALID, 'ee_pose')


def test_without_a_workspace_there_is_a_small_one_round_the_origin_of_the_goal():
    limits = dataclasses.replace(
        LIMITS, workspace_min_m=(0.0,) * 3, workspace_max_m=(0.0,) * 3,
        default_workspace_half_m=0.1)
    limiter = CommandLimiter(limits, PERIOD_S)
    workspace, position = limits.workspace(np.array([5.0, 6.0, 7.0])), np.array([5.0, 6.0, 7.0])
    for _ in range(60):
        limited = limiter.apply(make_delta((1.0, 0, 0)), position, workspace)
        position = position + limited.delta.translation_m
    assert position[0] == pytest.approx(5.1, abs=1e-9)
    assert 'default_workspace' in limited.rules
    assert limiter.counts()['default_workspace'] > 0
