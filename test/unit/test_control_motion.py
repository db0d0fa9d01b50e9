"""An ideal robot behind a commander: where it goes when poses are late, frozen or wrong.

The robot integrates what was sent, each command from its sending to the end of its period, and
tells where it was some time ago. Nothing here looks inside the commander.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_node.control.action_spec import ActionSpec, EndEffectorDelta, GripperLatch
from vla_policy_node.control.cameras import CameraWatch
from vla_policy_node.control.commander import Commander, CommanderParts
from vla_policy_node.control.end_effector import EndEffectorMover
from vla_policy_node.control.executors import create_executor
from vla_policy_node.control.hold import Hold, HoldReason
from vla_policy_node.control.limits import CommandLimiter, Limits
from vla_policy_node.control.motion import MotionLimits, MotionRecord
from vla_policy_node.control.pairing import ObservationPairer
from vla_policy_node.control.robot_state import MeasuredPose, Sighting
from vla_policy_node.control.session import Session

MS = 1_000_000
PERIOD = 50 * MS
START = 100_000 * MS
STREAMS = ('third_person', 'wrist', 'ee_pose', 'gripper_state')
HALF_M = 0.1
REAL_ARM = Limits(0.0125, 0.025, 0.25, 0.5, 1.0, 2.0, (-HALF_M,) * 3, (HALF_M,) * 3)
# As fast as the small box leaves room for, so that everything happens near a wall.
FAST_ARM = Limits(0.05, 0.25, 1.0, 5.0, 20.0, 100.0, (-HALF_M,) * 3, (HALF_M,) * 3)
ROUNDING_M = 1e-9


class Cell:
    """A commander, a robot that does what it is told, and a source of poses that need not.

    delay_ns: age of the poses. lag_ns: how much later than sent a command is carried out.
    """

    def __init__(self, limits=REAL_ARM, motion=MotionLimits(), delay_ns=0, lag_ns=0):  # noqa: B008
        session = Session()
        session.activate()
        self.delay_ns, self.lag_ns, self.now = delay_ns, lag_ns, START
        self.position_m = np.zeros(3)  # once all is carried out
        self._done = [(START - 10_000 * MS, START - 10_000 * MS, np.zeros(3))]
        self.commander = Commander(
            session, CommanderParts(
                ObservationPairer(STREAMS[:2], STREAMS[2:], 20 * MS, 10_000 * MS, 20 * MS,
                                  state_tolerance_ns=10_000 * MS),
                CameraWatch(STREAMS[:2], 0), create_executor('async', PERIOD),
                EndEffectorMover(
                    ActionSpec('base_link', 'axis_angle', 1.0, 1.0, 1.0, 0.0),
                    CommandLimiter(limits, PERIOD / 1e9), GripperLatch(), motion), 0))
        self.begin()

    def begin(self):
        self.commander.end(0)
        self.goal = self.commander.begin('go', 10**18)

    def where(self, time_ns):
        """Return where the robot was at a time."""
        time_ns -= self.lag_ns
        position_m = np.zeros(3)
        for begin_ns, end_ns, delta_m in self._done:
            share = np.clip((time_ns - begin_ns) / max(1, end_ns - begin_ns), 0.0, 1.0)
            position_m = position_m + share * delta_m
        return position_m

    def tick(self, wanted_m, measured=None, turn_rad=0.0):
        """One control period later, with a policy that wants a displacement; return the command.

        measured: gives a MeasuredPose from the time (ns); None: an honest one.
        """
        self.now += PERIOD
        action = np.array([[*wanted_m, turn_rad, 0.0, 0.0, 1.0]] * 2)
        self.commander.parts.executor.push(action, self.now - PERIOD, self.goal.epoch)
        stamp_ns = self.now - self.delay_ns
        pose = measured(self.now) if measured else MeasuredPose(
            stamp_ns, self.where(stamp_ns), np.zeros(3))
        self.commander.parts.mover.measured.observe(pose)
        for stream in STREAMS:
            self.commander.parts.pairer.file(stream, self.now, b'')
        command = self.commander.tick(self.now, self.now + PERIOD)
        delta_m = command.motion.translation_m
        assert command.hold.code is HoldReason.NONE or not delta_m.any()
        self.position_m = self.position_m + delta_m
        self._done.append((self.now, self.now + PERIOD, np.array(delta_m)))
        return command


directions = st.lists(st.sampled_from([-1.0, -0.03, 0.0, 0.03, 1.0]), min_size=3, max_size=3)
plans = st.lists(st.tuples(directions, st.integers(1, 12)), min_size=1, max_size=10)


@settings(deadline=None, max_examples=100)
@given(plans, st.integers(0, 300), st.sampled_from([REAL_ARM, FAST_ARM]))
def test_an_ideal_arm_whose_poses_are_late_never_leaves_the_workspace(plan, delay_ms, limits):
    cell = Cell(limits, delay_ns=delay_ms * MS)
    for wanted_m, ticks in plan:
        for _ in range(ticks):
            cell.tick(wanted_m)
            assert (np.abs(cell.position_m) <= HALF_M + ROUNDING_M).all()


@settings(deadline=None, max_examples=100)
@given(plans, st.integers(0, 300), st.integers(0, 100), st.sampled_from([REAL_ARM, FAST_ARM]))
def test_an_arm_that_lags_within_the_tolerance_never_leaves_the_workspace(
    plan, delay_ms, lag_ms, limits
):
    cell = Cell(limits, delay_ns=delay_ms * MS, lag_ns=lag_ms * MS)
    for wanted_m, ticks in plan:
        for _ in range(ticks):
            cell.tick(wanted_m)
            assert (np.abs(cell.position_m) <= HALF_M + ROUNDING_M).all()


@settings(deadline=None, max_examples=100)
@given(plans, st.integers(1, 12), st.booleans(), st.sampled_from([REAL_ARM, FAST_ARM]))
def test_with_a_frozen_pose_the_arm_never_leaves_the_workspace(plan, healthy, stamps, limits):
    """Whether the source repeats its stamps or, as a broken driver does, makes new ones."""
    cell = Cell(limits)
    for _ in range(healthy):
        cell.tick((0.03, 0.01, 0.0))
    frozen_m, frozen_ns = cell.where(cell.now), cell.now

    def measured(now_ns):
        return MeasuredPose(now_ns if stamps else frozen_ns, frozen_m, np.zeros(3))

    for wanted_m, ticks in plan:
        for _ in range(ticks):
            cell.tick(wanted_m, measured)
            assert (np.abs(cell.position_m) <= HALF_M + ROUNDING_M).all()


@settings(deadline=None, max_examples=50)
@given(plans, st.integers(0, 300), st.integers(0, 100))
def test_an_arm_that_follows_is_never_held_for_how_it_moves(plan, delay_ms, lag_ms):
    cell = Cell(delay_ns=delay_ms * MS, lag_ns=lag_ms * MS)
    for wanted_m, ticks in plan:
        for _ in range(ticks):
            assert cell.tick(wanted_m).hold.code is HoldReason.NONE


def drive(cell, measured, ticks=100, wanted_m=(0.03, 0.0, 0.0), turn_rad=0.0):
    """Tick until a hold; return it and the time until then in s."""
    start = cell.now
    for _ in range(ticks):
        command = cell.tick(wanted_m, measured, turn_rad)
        if command.hold.code is not HoldReason.NONE:
            return command.hold, (cell.now - start) / 1e9
    return None, ticks * PERIOD / 1e9


WIDE = Limits(0.0125, 0.025, 0.25, 0.5, 1.0, 2.0, (-5.0,) * 3, (5.0,) * 3)


def noisy(position_of):
    """A source with noise of 10 micrometres and microradians, as real ones have."""
    noise = np.random.default_rng(0)
    return lambda now_ns: MeasuredPose(
        now_ns, position_of(now_ns) + noise.normal(0.0, 1e-5, 3), noise.normal(0.0, 1e-5, 3))


@pytest.mark.parametrize(('name', 'factor'), [
    ('blocked', 0.0), ('the other way', -1.0), ('three times as far', 3.0)])
def test_an_arm_that_does_not_follow_is_held_until_the_next_goal(name, factor):
    cell = Cell(WIDE)
    measured = noisy(lambda now_ns: factor * cell.where(now_ns))
    hold, seconds = drive(cell, measured)
    assert hold == Hold(HoldReason.MOTION_MISMATCH)
    assert seconds <= 1.0
    # Standing still it "follows" again, and must not set off once more.
    for _ in range(100):
        command = cell.tick((0.03, 0.0, 0.0), measured)
        assert command.hold.code is HoldReason.MOTION_MISMATCH
        assert 'should have moved by' in command.detail
    cell.begin()
    there_m = measured(cell.now).position_m - cell.where(cell.now)
    hold, _ = drive(cell, noisy(lambda now_ns: there_m + cell.where(now_ns)))
    assert hold is None


def test_an_arm_that_is_pushed_while_it_should_stand_is_held():
    cell = Cell(WIDE)
    hold, _ = drive(cell, noisy(lambda now_ns: np.array([0.0, (now_ns - START) / 1e10, 0.0])),
                    wanted_m=(0.0, 0.0, 0.0))
    assert hold == Hold(HoldReason.MOTION_MISMATCH)


def test_a_compliant_arm_follows_within_its_gain():
    motion = MotionLimits(max_tracking_error_m=0.15, tracking_gain=0.25)
    cell = Cell(WIDE, motion)
    assert drive(cell, noisy(lambda now_ns: 0.25 * cell.where(now_ns)))[0] is None
    cell = Cell(WIDE)
    assert drive(cell, noisy(lambda now_ns: 0.25 * cell.where(now_ns)))[0] is not None


@pytest.mark.parametrize(('wanted_m', 'turn_rad'), [((0.002, 0.0, 0.0), 0.0), ((0.0,) * 3, 0.01)])
def test_a_pose_that_never_changes_while_the_arm_moves_is_frozen(wanted_m, turn_rad):
    cell = Cell(WIDE)

    def measured(now_ns):
        return MeasuredPose(now_ns, np.zeros(3), np.zeros(3))

    hold, seconds = drive(cell, measured, wanted_m=wanted_m, turn_rad=turn_rad)
    assert hold == Hold(HoldReason.INPUT_FROZEN, 'ee_pose')
    assert seconds <= 0.9  # time to command enough of a motion, and half a second to see it
    for _ in range(20):
        assert cell.tick(wanted_m, measured).hold == hold, 'it went on although nothing changed'
    assert cell.tick(wanted_m, noisy(lambda now_ns: np.zeros(3))).hold.code in (
        HoldReason.NONE, HoldReason.AWAITING_INFERENCE)


@pytest.mark.parametrize('lag_ms', [0, 100, 200, 300])
def test_an_arm_with_quantised_encoders_that_sets_off_late_is_not_frozen(lag_ms):
    """At rest such a pose is the same to the last bit, for as long as the arm stands."""
    cell = Cell(WIDE, delay_ns=20 * MS, lag_ns=lag_ms * MS)

    def measured(now_ns):
        stamp_ns = now_ns - cell.delay_ns
        return MeasuredPose(stamp_ns, np.round(cell.where(stamp_ns), 5), np.zeros(3))

    for _ in range(2):
        cell.begin()
        for wanted_m in ((0.0, 0.0, 0.0), (0.03, 0.0, 0.0), (0.0, 0.0, 0.0)):
            hold, _ = drive(cell, measured, 20, wanted_m)
            assert hold is None


def test_an_arm_that_is_told_to_stand_may_report_the_same_pose_for_ever():
    cell = Cell(WIDE)
    assert drive(cell, None, wanted_m=(0.0, 0.0, 0.0))[0] is None


def test_a_recording_is_not_compared_with_commands():
    cell = Cell(WIDE, MotionLimits(max_tracking_error_m=0.0))
    assert drive(cell, lambda now_ns: MeasuredPose(now_ns, np.zeros(3), np.zeros(3)))[0] is None


def test_after_the_clock_went_back_what_was_sent_is_not_under_way_for_ever():
    cell = Cell(delay_ns=100 * MS)
    for _ in range(20):
        cell.tick((0.03, 0.0, 0.0))
    before_m = cell.position_m[0]
    cell.now -= 60_000 * MS
    cell._done = [(b - 60_000 * MS, e - 60_000 * MS, d) for b, e, d in cell._done]
    for _ in range(40):
        cell.tick((-0.03, 0.0, 0.0))
    assert before_m > 0.05
    assert cell.position_m[0] == pytest.approx(-HALF_M, abs=2e-3)


def test_commands_after_a_pause_begin_at_rest():
    """The arm has stopped meanwhile: commands expire."""
    cell = Cell(WIDE)
    for _ in range(20):
        command = cell.tick((0.03, 0.0, 0.0))
    assert np.linalg.norm(command.motion.translation_m) > 0.01
    cell.now += 10 * PERIOD
    command = cell.tick((0.03, 0.0, 0.0))
    assert command.hold.code is HoldReason.NONE
    assert np.linalg.norm(command.motion.translation_m) <= 1.0 * 0.05**2 * (1 + 1e-9)


numbers = st.integers(-50, 50)


@settings(deadline=None)
@given(commands=st.lists(st.tuples(numbers, numbers), max_size=60),
       start=st.integers(0, 60), end=st.integers(0, 60))
def test_what_was_commanded_is_the_plain_sum(commands, start, end):
    record = MotionRecord()
    for index, (x, turn) in enumerate(commands):
        delta = EndEffectorDelta(
            np.array([x / 1e3, 0.0, 0.0]), np.array([0.0, turn / 1e2, 0.0]), 0.0)
        record.add(delta, START + index * PERIOD, START + (index + 1) * PERIOD)
    within = [command for i, command in enumerate(commands, 1) if start < i <= end]
    moved_m, turned_rad = record.commanded(START + start * PERIOD, START + end * PERIOD)
    np.testing.assert_allclose(moved_m, [sum(x for x, _ in within) / 1e3, 0, 0], atol=1e-12)
    np.testing.assert_allclose(turned_rad, [0, sum(t for _, t in within) / 1e2, 0], atol=1e-12)


def test_a_tick_looks_at_few_commands_however_long_the_pose_stays_the_same():
    """The arm stands, told nothing else, for 20 s at 200 Hz; looked at are those under way."""
    record, limits, period = MotionRecord(), MotionLimits(max_tracking_error_m=100.0), 5 * MS
    looked_at = []

    class Counted(np.ndarray):
        """A translation that tells when it takes part in arithmetic."""

        def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
            looked_at.append(ufunc)
            return getattr(ufunc, method)(*[np.asarray(value) for value in inputs], **kwargs)

    for index in range(4000):
        at = START + index * period
        still = EndEffectorDelta(np.zeros(3).view(Counted), np.zeros(3).view(Counted), 0.0)
        record.add(still, at, at + period)
    pose = Sighting(MeasuredPose(at, np.zeros(3), np.zeros(3)), START, START)
    looked_at.clear()
    record.check(pose, at, limits)
    record.locate(pose, at, limits)
    assert len(looked_at) <= 200
