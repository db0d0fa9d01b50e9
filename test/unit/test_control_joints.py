"""Laws of robots that are moved by their joints, with an ideal robot behind the commander."""

import contextlib
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_node.control.cameras import CameraWatch
from vla_policy_node.control.commander import Commander, CommanderParts
from vla_policy_node.control.executors import create_executor
from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.joint_mover import JointMover
from vla_policy_node.control.joint_spec import JointGripper, JointSpec, MovedJoint
from vla_policy_node.control.joint_state import MeasuredJoints
from vla_policy_node.control.pairing import ObservationPairer
from vla_policy_node.control.session import Outcome, Session

MS = 1_000_000
PERIOD = 50 * MS
PERIOD_S = 0.05
START = 100_000 * MS
ARM = MovedJoint('shoulder', 'rad', -2.0, 1.0, 0.8, 3.0, 0.03, 0.2)
FINGER = MovedJoint('finger', 'm', 0.0, 0.04, 0.05, 0.5, 0.005, 0.2, gripper=JointGripper(
    1.0, 0.0, 0.5, 0.2, 0.04, 0.0))
JOINTS = (
    ARM, replace(ARM, name='elbow', min_position=-1.0, max_position=2.0, max_acceleration=1.0),
    FINGER, replace(ARM, name='wrist', by_velocity=True))
# Two sources, the second one with the joints in another order than an action has them.
STREAMS = {'left': (0, 1), 'right': (2, 3)}
CAMERAS = ('front',)


class Cell:
    """A commander and a robot that carries out what it is told; it may lag and lie."""

    def __init__(self, joints=JOINTS, streams=STREAMS, lag=0, start=None):
        self.spec, self.streams, self.lag = JointSpec(joints), streams, lag
        session = Session()
        session.activate()
        self.now = START
        self.mover = JointMover(self.spec, PERIOD_S, streams)
        self.commander = Commander(session, CommanderParts(
            ObservationPairer(CAMERAS, tuple(streams), 20 * MS, 300 * MS, 20 * MS),
            CameraWatch(CAMERAS, 0), create_executor('async', PERIOD, layout=self.spec.layout),
            self.mover, 0))
        self.position = np.array(
            start or [0.0, 0.5, 0.02, 0.0], np.float64)[:len(joints)]
        self.waiting = []  # motions that are not carried out yet
        self.silent, self.lies = set(), {}
        self.last_steps = np.zeros(len(joints))
        self.goal = self.commander.begin('go', 10**18)

    def measure(self):
        for stream, places in self.streams.items():
            if stream not in self.silent:
                self.commander.parts.pairer.file(stream, self.now, b'')
                told = tuple(float(self.lies.get(place, self.position[place]))
                             for place in places)
                self.mover.measured.observe(MeasuredJoints(stream, self.now, told))
        self.commander.parts.pairer.file('front', self.now, b'')

    def tick(self, *action, push=True):
        """One control period later; return the command."""
        self.now += PERIOD
        if push:
            self.commander.parts.executor.push(
                np.array([action] * 2, np.float64), self.now - PERIOD, self.goal.epoch)
        self.measure()
        command = self.commander.tick(self.now, self.now + PERIOD)
        self.obey(command)
        return command

    def obey(self, command):
        self.check(command)
        self.waiting.append(command.motion)
        while len(self.waiting) > self.lag:
            motion = self.waiting.pop(0)
            self.position = np.where(
                self.spec.by_velocity, self.position + motion.values * PERIOD_S,
                np.where(np.isnan(motion.values), self.position, motion.values))

    def check(self, command):
        """What holds for every command, whatever was asked for."""
        values, steps = command.motion.values, command.motion.steps
        if command.hold.code is not HoldReason.NONE:
            assert not steps.any(), 'a hold moves'
            assert not values[self.spec.by_velocity].any(), 'a hold has a velocity'
            self.last_steps = steps
            return
        assert np.isfinite(values).all() and np.isfinite(steps).all()
        slack = 1 + 1e-6
        for name, by in (('max_step', 1.0), ('max_velocity', PERIOD_S)):
            assert (np.abs(steps) <= self.spec.column(name) * by * slack).all(), name
        brakes = (np.abs(steps) <= np.abs(self.last_steps)) & (steps * self.last_steps >= 0.0)
        change = np.abs(steps - self.last_steps)
        most = self.spec.column('max_acceleration') * PERIOD_S**2 * slack
        assert ((change <= most) | brakes).all(), 'acceleration'
        self.last_steps = steps


def reached(cell, action, ticks=400):
    for _ in range(ticks):
        command = cell.tick(*action)
        assert command.hold.code is HoldReason.NONE, command.detail
    return cell.position


wishes = st.floats(-10.0, 10.0) | st.sampled_from([-1e6, 1e6, 0.0, 1.0])
plans = st.lists(
    st.tuples(st.tuples(*[wishes] * 4), st.integers(1, 40)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=80)
@given(plans, st.integers(0, 2))
def test_whatever_the_policy_says_no_joint_breaks_a_bound_and_nothing_is_held(plan, lag):
    """`obey` checks step, velocity and acceleration; joints never leave their bounds."""
    cell = Cell(lag=lag)
    low, high = cell.spec.column('min_position'), cell.spec.column('max_position')
    for action, ticks in plan:
        for _ in range(ticks):
            command = cell.tick(*action)
            assert command.hold.code is HoldReason.NONE, command.detail
            assert (cell.position >= low - 1e-9).all(), 'a lower bound'
            assert (cell.position <= high + 1e-9).all(), 'an upper bound'


@settings(deadline=None, max_examples=50)
@given(plans, st.floats(0.001, 100.0), st.floats(0.001, 5.0), st.floats(1e-4, 3.0))
def test_a_joint_stops_in_front_of_a_bound_without_braking_harder_than_it_may(
    plan, acceleration, velocity, step
):
    joint = replace(ARM, max_acceleration=acceleration, max_velocity=velocity, max_step=step,
                    max_tracking_error=0.0)
    cell = Cell((joint,), {'left': (0,)}, start=[0.0])
    last = 0.0
    for action, ticks in plan:
        for _ in range(ticks):
            taken = float(cell.tick(action[0]).motion.steps[0])
            assert abs(taken - last) <= acceleration * PERIOD_S**2 * (1 + 1e-6) + 1e-9
            last = taken
            assert joint.min_position - 1e-9 <= cell.position[0] <= joint.max_position + 1e-9


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(
    st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 4),
    st.tuples(*[st.floats(allow_nan=True, allow_infinity=True) | st.floats(-2, 2)] * 4)),
    min_size=1, max_size=8))
def test_whatever_is_measured_and_asked_no_motion_is_unbounded_and_nothing_is_raised(sequence):
    cell = Cell()
    for action, measured in sequence:
        cell.lies = dict(enumerate(measured))
        with contextlib.suppress(ValueError):  # refused at the door: the worker reports it
            cell.commander.parts.executor.push(
                np.array([action] * 2), cell.now, cell.goal.epoch)
        command = cell.tick(push=False)
        assert 'Traceback' not in command.detail


def test_joints_reach_their_targets_exactly_and_without_overshoot():
    cell = Cell()
    for _ in range(400):
        command = cell.tick(0.7, -0.4, 1.0, 0.0)
        assert command.hold.code is HoldReason.NONE, command.detail
        assert cell.position[0] < 0.7 + 1e-9 and cell.position[1] > -0.4 - 1e-9
    assert cell.position[:3].tolist() == [0.7, -0.4, 0.04]
    assert command.rules == ()


def test_a_target_within_reach_is_sent_bit_for_bit():
    cell = Cell()
    assert cell.tick(0.001, 0.501, 0.0, 0.0).motion.values[:2].tolist() == [0.001, 0.501]


def test_the_first_command_begins_where_the_joints_are():
    cell = Cell(start=[-1.5, 1.5, 0.02, 0.0])
    values = cell.tick(1.0, -1.0, 1.0, 0.0).motion.values
    assert abs(values[0] + 1.5) < 0.03 and abs(values[1] - 1.5) < 0.03


def test_a_joint_that_was_measured_outside_its_bounds_may_only_come_back():
    cell = Cell(start=[1.1, 0.5, 0.02, 0.0])
    for _ in range(60):
        assert cell.tick(3.0, 0.5, 1.0, 0.0).motion.steps[0] < 1e-9
    assert cell.position[0] == 1.0
    assert reached(cell, (0.9, 0.5, 1.0, 0.0), 60)[0] == 0.9


def test_before_anything_was_sent_a_hold_names_no_position_and_afterwards_the_last_one():
    cell = Cell()
    held = cell.tick(push=False).motion.values
    assert np.isnan(held[:3]).all() and held[3] == 0.0
    sent = cell.tick(0.5, 0.5, 1.0, 0.5).motion.values
    cell.commander.estop()
    held = cell.tick(push=False)
    assert held.hold.code is HoldReason.ESTOP
    np.testing.assert_array_equal(held.motion.values[:3], sent[:3])
    assert held.motion.values[3] == 0.0


@pytest.mark.parametrize('stream', ['left', 'right'])
def test_one_arm_that_is_not_measured_holds_all(stream):
    cell = Cell()
    reached(cell, (0.5, 0.5, 1.0, 0.1), 5)
    cell.silent = {stream}
    for _ in range(7):
        command = cell.tick(0.5, 0.5, 1.0, 0.1)
    assert command.hold == Hold(HoldReason.INPUT_STALE, stream)
    assert not command.motion.steps.any()


@pytest.mark.parametrize('wrong', [math.nan, math.inf, 5.0])
def test_one_joint_that_is_nowhere_near_its_bounds_holds_all(wrong):
    cell = Cell()
    reached(cell, (0.5, 0.5, 1.0, 0.1), 5)
    cell.lies = {1: wrong}
    command = cell.tick(0.5, 0.5, 1.0, 0.1)
    assert command.hold == Hold(HoldReason.INPUT_INVALID, 'left')


def test_a_message_that_holds_no_positions_holds_until_a_good_one_comes():
    cell = Cell()
    reached(cell, (0.5, 0.5, 1.0, 0.1), 3)
    error = HoldError(Hold(HoldReason.INPUT_INVALID, 'left'), 'no joints')
    cell.silent = {'left'}
    cell.mover.measured.reject(error)
    command = cell.tick(0.5, 0.5, 1.0, 0.1)
    assert (command.hold, command.detail) == (error.hold, 'no joints')
    cell.silent = set()
    cell.tick(0.5, 0.5, 1.0, 0.1)
    assert cell.tick(0.5, 0.5, 1.0, 0.1).hold.code is HoldReason.NONE


def test_a_source_that_jumps_holds_until_it_has_not_for_half_a_second():
    cell = Cell()
    reached(cell, (0.5, 0.5, 1.0, 0.1), 3)
    cell.lies = {1: -0.9}
    codes = [cell.tick(0.5, 0.5, 1.0, 0.1).hold.code]
    cell.lies = {}
    codes += [cell.tick(0.5, 0.5, 1.0, 0.1).hold.code for _ in range(14)]
    assert codes[:10] == [HoldReason.INPUT_INVALID] * 10
    assert codes[-1] is HoldReason.NONE


@pytest.mark.parametrize('place', [0, 3])
def test_a_joint_that_is_blocked_holds_all_until_the_next_goal(place):
    cell = Cell()
    codes, noise = set(), np.random.default_rng(0)
    for _ in range(120):
        cell.position[place] = noise.normal(0.0, 1e-4)
        codes.add(cell.tick(0.9, 0.5, 1.0, 0.3).hold.code)
    assert HoldReason.MOTION_MISMATCH in codes
    assert cell.tick(0.0, 0.5, 1.0, 0.0).hold.code is HoldReason.MOTION_MISMATCH
    cell.position[place] = 0.0
    cell.commander.end(Outcome.CANCELLED)
    cell.goal = cell.commander.begin('go', 10**18)
    cell.tick(0.0, 0.5, 1.0, 0.0)
    command = cell.tick(0.0, 0.5, 1.0, 0.0)
    assert command.hold.code is HoldReason.NONE
    assert abs(cell.position[place]) < 0.05, 'it begins where the joint is'


def test_positions_that_never_change_by_a_bit_are_no_measurement():
    cell = Cell()
    cell.lies = {0: 0.0, 1: 0.5}
    codes = [cell.tick(0.15, 0.5, 1.0, 0.0).hold.code for _ in range(40)]
    assert HoldReason.INPUT_FROZEN in codes and HoldReason.MOTION_MISMATCH not in codes


def test_a_gripper_that_holds_something_is_no_mismatch_and_does_not_let_go():
    cell = Cell()
    reached(cell, (0.0, 0.5, 1.0, 0.0), 20)
    for _ in range(80):
        cell.lies = {2: 0.03}  # a thing between the fingers
        command = cell.tick(0.0, 0.5, 0.0, 0.0)
        assert command.hold.code is HoldReason.NONE
    assert command.motion.values[2] == 0.0
    cell.commander.end(Outcome.CANCELLED)
    cell.goal = cell.commander.begin('go', 10**18)
    assert cell.tick(push=False).motion.values[2] == 0.0
    assert cell.tick(0.0, 0.5, 0.0, 0.0).motion.values[2] == 0.0


def stand_by(cell, periods, silent=True):
    """Hold within a goal, as its inputs cease."""
    cell.silent = {'left'} if silent else set()
    for _ in range(periods):
        cell.tick(push=False)
    cell.silent = set()


def go_on(cell, *action):
    """Return the next motion that is no hold; brakes keep the joints where they are till then."""
    for _ in range(40):
        position = cell.position.copy()
        command = cell.tick(*action)
        if command.hold.code is HoldReason.NONE:
            return command.motion, position
        assert not (np.abs(command.motion.values - position)[:3] > 0.05).any(), 'a hold draws'
        cell.position = position
    raise AssertionError(command.detail)


@settings(deadline=None, max_examples=40)
@given(st.floats(-0.19, 0.19), st.floats(-0.19, 0.19), st.integers(3, 30),
       st.sampled_from([0.0, 0.2]), st.booleans())
def test_after_any_rest_no_joint_is_told_more_than_a_step_from_where_it_is(
        first, second, periods, error, has_ended):
    joints = tuple(replace(joint, max_tracking_error=error) for joint in JOINTS[:2])
    cell = Cell(joints, {'left': (0, 1)}, start=[0.0, 0.5])
    reached(cell, (0.1, 0.4), 40)
    if has_ended:
        cell.commander.end(Outcome.CANCELLED)
    stand_by(cell, periods)
    cell.position += [first, second]
    cell.waiting = []
    if has_ended:
        cell.goal = cell.commander.begin('go', 10**18)
    motion, position = go_on(cell, 0.1, 0.4)
    assert (np.abs(motion.values - position) <= 0.03 + 0.02 + 1e-9).all()


def test_a_joint_that_was_moved_during_a_hold_is_not_taken_for_frozen():
    cell = Cell()
    reached(cell, (0.3, 0.5, 1.0, 0.0), 40)
    stand_by(cell, 20)
    cell.position[0] = 0.15
    go_on(cell, 0.15, 0.5, 1.0, 0.0)
    reached(cell, (0.15, 0.5, 1.0, 0.0), 40)


def test_a_hand_that_somebody_opened_at_rest_begins_where_it_is():
    cell = Cell()
    reached(cell, (0.0, 0.5, 0.0, 0.0), 30)
    assert cell.position[2] == 0.0
    stand_by(cell, 10, silent=False)
    cell.position[2] = 0.04
    motion, _ = go_on(cell, 0.0, 0.5, 0.0, 0.0)
    assert 0.035 <= motion.values[2] < 0.04


def test_a_goal_goes_on_from_the_command_where_the_arm_sags_and_from_the_arm_where_it_was_moved():
    cell = Cell()
    reached(cell, (0.5, 0.5, 1.0, 0.0), 60)
    for moved, begins in ((0.01, 0.5), (0.4, 0.1)):
        cell.commander.end(Outcome.CANCELLED)
        cell.lies = {0: 0.5 - moved}
        cell.tick(push=False)
        cell.now += 10**9
        cell.goal = cell.commander.begin('go', 10**18)
        cell.mover.measured.begin()
        command = cell.tick(begins, 0.5, 1.0, 0.0)
        assert command.hold.code is HoldReason.NONE, command.detail
        assert command.motion.values[0] == pytest.approx(begins)


def test_a_goal_that_follows_another_at_once_goes_on_from_the_command_under_way():
    cell = Cell(lag=3)
    for _ in range(12):
        sent = cell.tick(0.9, 0.5, 1.0, 0.0).motion.values[0]
    assert sent - cell.position[0] > 0.05, 'the arm is on its way'
    cell.commander.end(Outcome.CANCELLED)
    cell.tick(push=False)
    cell.goal = cell.commander.begin('go', 10**18)
    command = cell.tick(0.9, 0.5, 1.0, 0.0)
    assert command.hold.code is HoldReason.NONE
    assert sent <= command.motion.values[0] <= sent + 0.01


def test_a_velocity_is_sent_as_such_and_stops_at_once_on_a_hold():
    cell = Cell()
    reached(cell, (0.0, 0.5, 1.0, 0.2), 10)
    assert cell.tick(0.0, 0.5, 1.0, 0.2).motion.values[3] == pytest.approx(0.2)
    cell.commander.estop()
    assert cell.tick(push=False).motion.values[3] == 0.0


def test_all_is_planned_before_anything_is_noted_as_sent(monkeypatch):
    """The limiter's arithmetic is taken away; what it lets through for one joint holds all."""
    cell = Cell()
    reached(cell, (0.0, 0.5, 1.0, 0.0), 3)
    before = cell.mover.still().values.copy()
    monkeypatch.setattr(
        cell.mover._limiter, 'apply', lambda wanted, room: (np.array([0.0, 0.0, 0.0, 9.0]), ()))
    command = cell.tick(0.0, 0.5, 1.0, 0.0)
    assert command.hold.code is HoldReason.ACTION_INVALID
    assert "'wrist'" in command.detail
    np.testing.assert_array_equal(command.motion.values[:3], before[:3])


def test_an_action_of_another_size_is_refused_at_the_door():
    cell = Cell()
    with pytest.raises(ValueError, match='a chunk is'):
        cell.commander.parts.executor.push(np.zeros((2, 7)), START, cell.goal.epoch)


def test_an_ensemble_averages_joints_and_takes_the_newest_gripper():
    executor = create_executor('temporal_ensemble', PERIOD, layout=JointSpec(JOINTS).layout)
    executor.reset(1)
    executor.push(np.array([[0.0, 0.0, 1.0, 0.0]] * 4), START, 1)
    executor.push(np.array([[1.0, 0.0, 0.0, 1.0]] * 4), START + PERIOD, 1)
    step = executor.pop(START + 2 * PERIOD)
    assert 0.4 < step.action[0] < 0.6 and step.action[2] == 0.0
    assert step.disagreement == pytest.approx(math.sqrt(0.5 / 3), rel=0.02)


@pytest.mark.parametrize(('low', 'high', 'named'), [
    ([0, 0, 0], [1, 1, 1], '3 dimensions'),
    ([-60, -0.5, 0, -1], [60, 0.5, 1, 1], "'shoulder'"),
])
def test_a_checkpoint_for_other_joints_is_refused(low, high, named):
    with pytest.raises(ValueError, match=named):
        JointSpec(JOINTS).check_range(low, high)


def test_a_checkpoint_for_these_joints_fits():
    JointSpec(JOINTS).check_range([-2.1, -1, 0, -9], [1.1, 2, 1, 9])


def test_every_joint_must_be_measured_once():
    with pytest.raises(ValueError, match='exactly one stream'):
        JointMover(JointSpec(JOINTS), PERIOD_S, {'left': (0, 1), 'right': (1, 2, 3)})
