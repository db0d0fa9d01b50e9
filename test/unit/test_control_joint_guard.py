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
                    stream, tuple(self.position[place] for place in places),
                    self.step * PERIOD_S)

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
    assert robot.bounds.still()[2] == 0.0


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


def test_after_somebody_moved_a_joint_it_goes_on_from_there_and_nothing_draws_it_back():
    robot = Robot()
    assert robot.take(0.0, 0.02, 0.0) is GuardVerdict.FORWARD
    assert robot.bounds.still() == (0.0, 0.02, 0.0)
    robot.position[0] = 0.6
    robot.step += 100
    robot.measure()
    assert math.isnan(robot.bounds.still()[0]) and robot.bounds.still()[1:] == (0.02, 0.0)
    assert robot.take(0.0, 0.02, 0.0) == INVALID
    assert robot.take(0.6 + STEP, 0.02, 0.0) is GuardVerdict.FORWARD


def test_a_hand_that_holds_something_keeps_its_command():
    robot = Robot()
    for finger in (0.015, 0.01, 0.005, 0.0):
        assert robot.take(0.0, finger, 0.0) is GuardVerdict.FORWARD
    assert robot.bounds.still()[1] == 0.0
    assert robot.take(0.0, 0.0, 0.0, periods=50) is GuardVerdict.FORWARD


def test_a_hold_passes_unless_it_moves():
    robot = Robot()
    assert robot.take(math.nan, math.nan, 0.0, hold=True) is GuardVerdict.FORWARD
    assert robot.take(math.nan, math.nan, 0.1, hold=True, periods=3) == INVALID


def test_before_any_action_nothing_is_sent_but_stops():
    still = Robot().bounds.still()
    assert math.isnan(still[0]) and math.isnan(still[1]) and still[2] == 0.0


def test_an_action_of_an_older_goal_and_one_for_a_served_period_never_pass():
    robot = Robot()
    assert robot.take(0.0, 0.02, 0.0, epoch=3) is GuardVerdict.FORWARD
    assert robot.take(0.0, 0.02, 0.0, epoch=2) is GuardVerdict.IGNORE
    same = action(1, 0.0, 0.02, 0.0, epoch=3)
    assert robot.guard.take(same, frozenset(['policy']), START_NS + 2 * PERIOD_NS,
                            0.1) is GuardVerdict.IGNORE
