"""What the guard lets through to joints: laws over everything that may come."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_node.control.guard import BURST, STREAM, Guard, GuardVerdict
from vla_policy_node.control.hold import Hold, HoldReason
from vla_policy_node.control.joint_guard import (
    MEASURED_S,
    POSITION,
    VELOCITY,
    JointBounds,
    SentJointCommand,
)
from vla_policy_node.control.joint_spec import JointGripper, JointSpec, MovedJoint

PERIOD_S = 0.05
PERIOD_NS = 50_000_000
START_NS = 1_000_000_000_000
ARM = MovedJoint('shoulder', 'rad', -2.0, 1.0, 0.4, 3.0, 0.03, 0.2)
FINGER = MovedJoint('finger', 'm', 0.0, 0.04, 0.1, 0.5, 0.005, 0.2, gripper=JointGripper(
    1.0, 0.0, 0.5, 0.2, 0.04, 0.0))
SPEC = JointSpec((ARM, FINGER, replace(ARM, name='wrist', by_velocity=True)))
STEP = 0.4 * PERIOD_S  # of the shoulder
INVALID = Hold(HoldReason.ACTION_INVALID, STREAM)


def action(step, *values, **changes):
    """An action as the policy sends it in control period `step`."""
    stamp_ns = START_NS + step * PERIOD_NS
    command = SentJointCommand(
        stamp_ns, '', SPEC.names, (POSITION, POSITION, VELOCITY), values, False, 0, '', '',
        stamp_ns - PERIOD_NS, stamp_ns + PERIOD_NS, 3, math.nan, 1, False)
    return replace(command, **changes)


class Robot:
    """Feeds a guard in simulated time; `step` counts control periods."""

    def __init__(self, position=(0.0, 0.02, 0.0)):
        self.bounds = JointBounds(SPEC, PERIOD_S, {'arm': (0, 2), 'hand': (1,)})
        self.guard = Guard(PERIOD_S, self.bounds)
        self.step = 0
        self.position = list(position)

    def measure(self, streams=('arm', 'hand')):
        for stream, places in (('arm', (0, 2)), ('hand', (1,))):
            if stream in streams:
                self.bounds.measure(
                    stream, START_NS + self.step * PERIOD_NS,
                    tuple(self.position[place] for place in places), self.step * PERIOD_S)

    def still(self):
        return self.bounds.still(self.step * PERIOD_S)

    def take(self, *values, periods=1, measure=True, **changes):
        self.step += periods
        if measure:
            self.measure()
        return self.guard.take(
            action(self.step, *values, **changes), frozenset(['policy']),
            START_NS + self.step * PERIOD_NS, self.step * PERIOD_S)


def test_an_action_near_the_joints_passes_and_so_do_its_successors():
    robot = Robot()
    for count in range(1, 20):
        assert robot.take(count * STEP, 0.02, 0.1) is GuardVerdict.FORWARD
    assert robot.still()[2] == 0.0


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.floats() | st.floats(-2.5, 1.5)] * 3), max_size=30),
       st.lists(st.integers(1, 8), min_size=30, max_size=30))
def test_whatever_comes_nothing_that_passes_breaks_a_bound_or_jumps(sequence, pauses):
    robot, last = Robot(), 0.0
    for values, periods in zip(sequence, pauses, strict=False):
        if robot.take(*values, periods=periods) is not GuardVerdict.FORWARD:
            continue
        position, finger, velocity = values
        assert ARM.min_position - 1e-6 <= position <= ARM.max_position + 1e-6
        assert 0.0 - 1e-6 <= finger <= 0.04 + 1e-6
        assert abs(velocity) <= 0.4 + 1e-6
        assert abs(position - last) <= BURST * STEP + 0.041
        last = robot.position[0] = position  # an ideal arm


@pytest.mark.parametrize('changes', [
    {'names': ('shoulder', 'wrist', 'finger')}, {'names': ()}, {'values': (0.0, 0.02)},
    {'kinds': (POSITION, POSITION, POSITION)}, {'kinds': (POSITION, POSITION)},
    {'values': (math.nan, 0.02, 0.0)}, {'values': (0.0, 0.02, math.inf)},
    {'values': (0.0, 0.02, 0.5)}, {'values': (0.1, 0.02, 0.0)}, {'values': (0.0, -0.01, 0.0)}])
def test_what_is_not_for_these_joints_is_a_hold(changes):
    values = changes.pop('values', (0.0, 0.02, 0.0))
    assert Robot().take(*values, **changes) == INVALID


def test_nothing_passes_until_all_joints_are_heard_and_when_one_source_ceases():
    robot = Robot()
    assert robot.take(0.0, 0.02, 0.0, measure=False) == Hold(HoldReason.INPUT_MISSING, 'arm')
    assert robot.take(0.0, 0.02, 0.0) is GuardVerdict.FORWARD
    robot.step += math.ceil(MEASURED_S / PERIOD_S)
    robot.measure(('arm',))
    assert robot.take(0.0, 0.02, 0.0, measure=False) == Hold(HoldReason.INPUT_STALE, 'hand')


def test_a_velocity_towards_a_bound_that_is_reached_is_a_hold_and_back_it_may():
    robot = Robot(position=(0.0, 0.02, 1.05))
    assert robot.take(0.0, 0.02, 0.1) == INVALID
    assert robot.take(0.0, 0.02, -0.1) is GuardVerdict.FORWARD


def test_two_steps_at_once_pass_only_where_one_was_lost():
    robot = Robot()
    assert robot.take(0.0, 0.02, 0.0) is GuardVerdict.FORWARD
    assert robot.take(2 * STEP, 0.02, 0.0) == INVALID
    assert robot.take(2 * STEP, 0.02, 0.0) is GuardVerdict.FORWARD


def test_after_a_rest_it_goes_on_from_the_command_if_the_joint_is_there():
    robot = Robot(position=(-0.1, 0.02, 0.0))  # it sags
    for position in (-0.1 + STEP, -0.1 + 2 * STEP):
        assert robot.take(position, 0.02, 0.0) is GuardVerdict.FORWARD
    assert robot.take(-0.1 + 3 * STEP, 0.02, 0.0, periods=100) is GuardVerdict.FORWARD


@settings(deadline=None)
@given(st.floats(-2.0, 1.0), st.floats(0.0, 0.04), st.floats(-0.25, 0.25), st.integers(3, 100),
       st.sampled_from([0.0, 0.2]))
def test_after_any_rest_nothing_is_told_that_is_not_about_a_step_from_the_joint(
        moved, finger, way, periods, error):
    robot = Robot()
    joints = [replace(joint, max_tracking_error=error) for joint in SPEC.joints]
    robot.bounds.spec = JointSpec(tuple(joints))
    assert robot.take(0.0, 0.02, 0.0) is GuardVerdict.FORWARD
    robot.position[:2] = moved, finger
    robot.step += periods
    robot.measure()
    told = robot.still()
    assert math.isnan(told[0]) or abs(told[0] - moved) <= STEP + 0.0401
    assert math.isnan(told[1]) or abs(told[1] - finger) <= 0.005 + 0.0041
    if robot.take(moved + way, 0.02, 0.0) is GuardVerdict.FORWARD:
        assert abs(way) <= STEP + 0.0401
        assert abs(robot.bounds.told[1] - finger) <= 0.005 + 0.0041


def test_a_joint_that_ceases_to_be_measured_is_told_nothing():
    robot = Robot()
    assert robot.take(0.0, 0.02, 0.0) is GuardVerdict.FORWARD
    robot.step += 20
    robot.measure(('hand',))
    assert math.isnan(robot.still()[0]) and robot.still()[1:] == (0.02, 0.0)


def test_after_a_rest_one_step_passes_and_on_the_way_no_more_than_were_lost():
    robot = Robot()
    assert robot.take(0.0, 0.02, 0.0) is GuardVerdict.FORWARD
    assert robot.take(3.1 * STEP, 0.02, 0.0, periods=3) == INVALID
    robot = Robot()
    assert robot.take(0.0, 0.02, 0.0) is GuardVerdict.FORWARD
    assert robot.take(1.4 * STEP, 0.02, 0.0) == INVALID


@pytest.mark.parametrize(('position', 'stream'), [
    ((90.0, 0.02, 0.0), 'arm'), ((0.0, 0.06, 0.0), 'hand'), ((0.0, 0.02, -90.0), 'arm')])
def test_a_joint_that_is_said_to_be_far_outside_its_bounds_is_a_hold(position, stream):
    robot = Robot(position)
    assert robot.take(*position[:2], 0.0) == Hold(HoldReason.INPUT_INVALID, stream)


def test_an_encoder_that_is_frozen_lets_no_velocity_out_of_the_bounds():
    robot, travelled = Robot((0.0, 0.02, 0.9)), 0.9
    for _ in range(100):
        if robot.take(0.0, 0.02, 0.4) is GuardVerdict.FORWARD:
            travelled += 0.4 * PERIOD_S
    assert travelled <= 1.0 + 0.041
    assert robot.take(0.0, 0.02, -0.4) is GuardVerdict.FORWARD


def test_a_message_that_is_repeated_is_no_measurement_and_one_of_a_restarted_clock_is():
    robot = Robot()
    robot.measure()
    for _ in range(20):
        robot.step += 1
        robot.bounds.measure('arm', START_NS, (0.0, 0.0), robot.step * PERIOD_S)
        robot.bounds.measure('hand', START_NS, (0.02,), robot.step * PERIOD_S)
    verdict = robot.take(0.0, 0.02, 0.0, measure=False)
    assert verdict == Hold(HoldReason.INPUT_STALE, 'arm')
    for stream, positions in (('arm', (0.0, 0.0)), ('hand', (0.02,))):
        robot.bounds.measure(stream, 5, positions, (robot.step + 1) * PERIOD_S)
    assert robot.take(0.0, 0.02, 0.0, measure=False) is GuardVerdict.FORWARD


def test_after_somebody_moved_a_joint_it_goes_on_from_there_and_nothing_draws_it_back():
    robot = Robot()
    assert robot.take(0.0, 0.02, 0.0) is GuardVerdict.FORWARD
    assert robot.still() == (0.0, 0.02, 0.0)
    robot.position[0] = 0.6
    robot.step += 100
    robot.measure()
    assert math.isnan(robot.still()[0]) and robot.still()[1:] == (0.02, 0.0)
    assert robot.take(0.0, 0.02, 0.0) == INVALID
    assert robot.take(0.6 + STEP, 0.02, 0.0) is GuardVerdict.FORWARD


def grip(robot):
    """Close on a thing that keeps the fingers 0.02 apart."""
    for finger in (0.015, 0.01, 0.005, 0.0):
        assert robot.take(0.0, finger, 0.0) is GuardVerdict.FORWARD


def test_a_hand_that_holds_something_keeps_its_command():
    robot = Robot()
    grip(robot)
    assert robot.still()[1] == 0.0
    assert robot.take(0.0, 0.0, 0.0, periods=50) is GuardVerdict.FORWARD
    assert robot.still()[1] == 0.0


def test_a_hand_that_somebody_opened_at_rest_is_told_nothing_and_closes_step_by_step():
    robot = Robot()
    grip(robot)
    robot.step += 10
    robot.measure()
    robot.position[1] = 0.04
    robot.step += 10
    robot.measure()
    assert math.isnan(robot.still()[1])
    told = []
    for _ in range(9):
        assert robot.take(0.0, 0.0, 0.0) is GuardVerdict.FORWARD
        told.append(robot.bounds.told[1])
    assert told == pytest.approx([0.035, 0.03, 0.025, 0.02, 0.015, 0.01, 0.005, 0.0, 0.0],
                                 abs=1e-6)


def test_a_guard_that_starts_while_something_is_held_closes_step_by_step():
    robot = Robot((0.0, 0.03, 0.0))
    told = []
    for _ in range(6):
        assert robot.take(0.0, 0.0, 0.0) is GuardVerdict.FORWARD
        told.append(robot.bounds.told[1])
    assert told == pytest.approx([0.025, 0.02, 0.015, 0.01, 0.005, 0.0], abs=1e-6)


def test_a_policy_that_starts_while_something_is_held_does_not_let_go():
    robot = Robot()
    grip(robot)
    robot.step += 20
    robot.measure()
    told = []
    for finger in (0.019, 0.016, 0.012, 0.008, 0.004, 0.0):
        assert robot.take(0.0, finger, 0.0) is GuardVerdict.FORWARD
        told.append(robot.bounds.told[1])
    assert max(told) <= 0.0051
    for finger in (0.005, 0.01, 0.015, 0.02, 0.025, 0.03):
        assert robot.take(0.0, finger, 0.0) is GuardVerdict.FORWARD
    assert robot.bounds.told[1] == 0.03, 'it opens when it is asked to'


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 0.04), st.floats(0.0, 0.04), st.integers(1, 6)),
                min_size=2, max_size=20))
def test_whatever_a_hand_is_asked_it_is_told_a_step_at_a_time(sequence):
    robot, last = Robot(), None
    for asked, opening, periods in sequence:
        robot.position[1] = opening
        assert robot.take(0.0, asked, 0.0, periods=periods) is GuardVerdict.FORWARD
        told = robot.bounds.told[1]
        bases = [opening] if last is None else [last, opening]
        reach = 0.005 * (periods if periods < 3 else 1) + 1e-6
        assert min(abs(told - base) for base in bases) <= reach
        last = told


def test_a_hold_passes_unless_it_moves():
    robot = Robot()
    assert robot.take(math.nan, math.nan, 0.0, hold=True) is GuardVerdict.FORWARD
    assert robot.take(math.nan, math.nan, 0.1, hold=True, periods=3) == INVALID


def test_before_any_action_nothing_is_sent_but_stops():
    still = Robot().still()
    assert math.isnan(still[0]) and math.isnan(still[1]) and still[2] == 0.0


def test_an_action_of_an_older_goal_and_one_for_a_served_period_never_pass():
    robot = Robot()
    assert robot.take(0.0, 0.02, 0.0, epoch=3) is GuardVerdict.FORWARD
    assert robot.take(0.0, 0.02, 0.0, epoch=2) is GuardVerdict.IGNORE
    same = action(1, 0.0, 0.02, 0.0, epoch=3)
    assert robot.guard.take(same, frozenset(['policy']), START_NS + 2 * PERIOD_NS,
                            0.1) is GuardVerdict.IGNORE
