"""What is sent in each control period, without ROS, threads or clocks.

Regressions pinned: a late result moves the robot for another goal (D9); a dead or broken input
lets the old plan go on (D1, D5); a stop that is overtaken by an action; a huge action.
"""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_node.control.action_spec import ActionSpec, GripperLatch
from vla_policy_node.control.cameras import CameraWatch
from vla_policy_node.control.commander import Commander, CommanderParts
from vla_policy_node.control.end_effector import EndEffectorMover
from vla_policy_node.control.executors import create_executor
from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.limits import CommandLimiter, Limits
from vla_policy_node.control.pairing import ObservationPairer
from vla_policy_node.control.robot_state import MeasuredPose
from vla_policy_node.control.session import Outcome, Session

MS = 1_000_000
PERIOD = 50 * MS
START = 100_000 * MS
STREAMS = ('third_person', 'wrist', 'ee_pose', 'gripper_state')
MAX_AGE = 200 * MS


def make_parts(**changes):
    arguments = {
        'pairer': ObservationPairer(STREAMS[:2], STREAMS[2:], 20 * MS, MAX_AGE, 20 * MS),
        'cameras': CameraWatch(STREAMS[:2], 0),
        'executor': create_executor('async', PERIOD),
        'mover': EndEffectorMover(
            ActionSpec.libero(), CommandLimiter(
                Limits(0.05, 0.25, 1.0, 5.0, 20.0, 100.0, (-1, -1, -1), (1, 1, 1)),
                PERIOD / 1e9),
            GripperLatch()),
        'input_timeout_ns': 0,
    }
    return CommanderParts(**{**arguments, **changes})


class Bench:
    """A commander with good inputs, and a clock that only `tick` moves."""

    def __init__(self, **parts):
        self.session = Session()
        self.session.activate()
        self.commander = Commander(self.session, make_parts(**parts))
        self.now = START
        self.dead = set()

    def begin(self, duration_ns=10**12):
        return self.commander.begin('pick up the bowl', duration_ns)

    def push(self, goal, value=0.1, gripper=1.0, stamp_ns=None):
        actions = np.full((8, 7), value)
        actions[:, 6] = gripper
        stamp_ns = self.now if stamp_ns is None else stamp_ns
        self.commander.parts.executor.push(actions, stamp_ns, goal.epoch)

    def tick(self, position_m=(0.0, 0.0, 0.0), steady_ns=None):
        """One control period later: inputs arrive, a command leaves."""
        self.now += PERIOD
        for stream in set(STREAMS) - self.dead:
            self.commander.parts.pairer.file(stream, self.now, b'')
        if isinstance(position_m, HoldError):
            self.commander.parts.mover.measured.reject(position_m)
        elif 'ee_pose' not in self.dead:
            self.commander.parts.mover.measured.observe(
                MeasuredPose(self.now, np.array(position_m), np.zeros(3)))
        return self.commander.tick(self.now, self.now + PERIOD, steady_ns)


@pytest.fixture
def bench():
    return Bench()


def is_still(command):
    return not command.motion.translation_m.any() and not command.motion.rotation_rad.any()


def test_an_action_says_where_it_comes_from(bench):
    goal = bench.begin()
    bench.push(goal)
    command = bench.tick()
    assert command.hold.code is HoldReason.NONE
    assert command.chunk_step == 1  # the tick is one period after the observation
    assert command.observation_stamp_ns == START
    assert command.target_time_ns == bench.now + PERIOD
    assert command.epoch == goal.epoch
    np.testing.assert_allclose(command.motion.translation_m, 0.1 * 0.05)


def test_a_goal_without_a_chunk_waits_and_one_with_a_used_chunk_says_so(bench):
    goal = bench.begin()
    assert bench.tick().hold.code is HoldReason.AWAITING_INFERENCE
    bench.push(goal, stamp_ns=bench.now - 20 * PERIOD)
    assert bench.tick().hold.code is HoldReason.CHUNK_EXHAUSTED


@pytest.mark.parametrize('dead', STREAMS)
def test_a_dead_stream_stops_the_plan_and_what_was_planned_before_never_goes_on(bench, dead):
    goal = bench.begin()
    bench.push(goal)
    assert bench.tick().hold.code is HoldReason.NONE
    bench.dead = {dead}
    while (command := bench.tick()).hold.code is HoldReason.NONE:
        bench.push(goal)  # the policy knows nothing of it
        assert bench.now < START + MAX_AGE + 3 * PERIOD
    assert (command.hold.code, command.hold.stream) == (HoldReason.INPUT_STALE, dead)
    assert is_still(command)
    bench.dead = set()
    assert bench.tick().hold.code is HoldReason.AWAITING_INFERENCE
    bench.push(goal)
    assert bench.tick().hold.code is HoldReason.NONE


def test_what_was_inferred_from_bad_inputs_never_goes_on_once_they_are_good_again(bench):
    """An inference takes longer than a short trouble, and its observation was part of it."""
    goal = bench.begin()
    bench.push(goal)
    assert bench.tick().hold.code is HoldReason.NONE
    bench.commander.parts.mover.measured.reject(
        HoldError(Hold(HoldReason.INPUT_INVALID, 'ee_pose'), 'no pose'))
    bench.dead = {'ee_pose'}
    observed_ns = bench.now
    assert bench.tick().hold.code is HoldReason.INPUT_INVALID
    bench.dead = set()
    bench.push(goal, stamp_ns=observed_ns)
    assert bench.tick().hold.code is HoldReason.AWAITING_INFERENCE
    assert bench.commander.parts.executor.counts()['chunks_of_bad_inputs'] == 1
    bench.push(goal)
    assert bench.tick().hold.code is HoldReason.NONE


def test_a_clock_that_goes_back_makes_no_dead_stream_young_again(bench):
    """A source that repeats its last stamp, and a clock that returns to it."""
    goal = bench.begin()
    bench.push(goal)
    assert bench.tick(steady_ns=bench.now + PERIOD).hold.code is HoldReason.NONE
    bench.dead = {'ee_pose'}
    steady_ns = bench.now
    for _ in range(8):
        steady_ns += PERIOD
        command = bench.tick(steady_ns=steady_ns)
    assert (command.hold.code, command.hold.stream) == (HoldReason.INPUT_STALE, 'ee_pose')
    bench.now -= 9 * PERIOD
    codes = set()
    for _ in range(4):
        bench.push(goal)
        steady_ns += PERIOD
        codes.add(bench.tick(steady_ns=steady_ns).hold.code)
    assert codes == {HoldReason.CLOCK_JUMP, HoldReason.INPUT_STALE}


@pytest.mark.parametrize('went_ms', [0, 4])
def test_when_a_clock_that_stood_still_goes_on_nothing_old_is_young(bench, went_ms):
    goal = bench.begin()
    bench.push(goal)
    steady_ns = bench.now + PERIOD
    assert bench.tick(steady_ns=steady_ns).hold.code is HoldReason.NONE
    bench.dead = {'wrist'}
    for _ in range(10):
        bench.now += went_ms * MS - PERIOD
        steady_ns += PERIOD
        assert bench.tick(steady_ns=steady_ns).hold.code is HoldReason.CLOCK_STOPPED
    bench.push(goal)
    command = bench.tick(steady_ns=steady_ns + PERIOD)
    assert (command.hold.code, command.hold.stream) == (HoldReason.INPUT_STALE, 'wrist')


def test_inputs_that_stay_bad_end_the_goal_once(bench):
    bench = Bench(input_timeout_ns=500 * MS)
    goal = bench.begin()
    bench.dead = {'wrist'}
    codes = [bench.tick().hold.code for _ in range(12)]
    assert codes[0] is HoldReason.INPUT_MISSING
    assert codes[-1] is HoldReason.GOAL_FINISHED
    assert bench.session.outcome(goal.epoch) is Outcome.INPUT_LOST


def test_time_with_bad_inputs_does_not_carry_over_to_the_next_goal():
    bench = Bench(input_timeout_ns=500 * MS)
    bench.begin()
    bench.dead = {'wrist'}
    for _ in range(9):
        bench.tick()
    bench.commander.end(Outcome.CANCELLED)
    bench.begin()
    bench.tick()
    assert bench.session.goal is not None


def test_the_duration_counts_periods_and_a_clock_that_goes_back_gives_nothing_back(bench):
    goal = bench.begin(duration_ns=10 * PERIOD)
    for tick in range(10):
        if tick == 5:
            bench.now -= 1000 * PERIOD
        bench.tick()
    assert bench.session.goal == goal
    # The first tick and the one after the jump have no time before them.
    bench.tick()
    assert bench.session.goal == goal
    bench.tick()
    assert bench.session.outcome(goal.epoch) is Outcome.SUCCEEDED_DURATION


def test_stamps_that_go_back_hold_once_then_new_plans_count(bench):
    goal = bench.begin()
    bench.push(goal)
    bench.tick()
    bench.now -= 60_000 * MS
    assert bench.tick().hold.code is HoldReason.CLOCK_JUMP
    for _ in range(len(STREAMS)):
        if bench.tick().hold.code is HoldReason.AWAITING_INFERENCE:
            break
    bench.push(goal)
    assert bench.tick().hold.code is HoldReason.NONE


@pytest.mark.parametrize('stop', ['cancel', 'estop', 'deactivate'])
def test_d9_after_a_stop_the_next_tick_holds_and_a_late_result_changes_nothing(bench, stop):
    goal = bench.begin()
    bench.push(goal)
    assert bench.tick().hold.code is HoldReason.NONE
    {
        'cancel': lambda: bench.commander.end(Outcome.CANCELLED),
        'estop': bench.commander.estop,
        'deactivate': bench.session.deactivate,
    }[stop]()
    assert is_still(bench.tick())
    bench.push(goal)
    assert is_still(bench.tick())
    bench.session.reset_estop()
    bench.session.activate()
    bench.begin()
    assert bench.tick().hold.code is HoldReason.AWAITING_INFERENCE
    bench.push(goal)
    assert bench.tick().hold.code is HoldReason.AWAITING_INFERENCE


def test_trouble_with_an_old_goal_is_no_reason_to_hold_the_new_one(bench):
    old = bench.begin()
    bench.commander.end(Outcome.CANCELLED)
    new = bench.begin()
    bench.commander.fault(Hold(HoldReason.INPUT_INVALID, 'wrist'), old.epoch)
    assert not bench.commander.end(Outcome.INFERENCE_FAILED, old.epoch)
    bench.push(new)
    assert bench.tick().hold.code is HoldReason.NONE


def test_ending_a_goal_that_has_ended_leaves_the_plan_of_the_new_one(bench):
    old = bench.begin()
    bench.commander.end(Outcome.CANCELLED)
    new = bench.begin()
    bench.push(new)
    bench.commander.end(Outcome.CANCELLED, old.epoch)
    assert bench.tick().hold.code is HoldReason.NONE


def test_a_fault_of_the_worker_holds_until_it_is_over(bench):
    goal = bench.begin()
    bench.push(goal)
    bench.commander.fault(Hold(HoldReason.INPUT_INVALID, 'wrist'), goal.epoch)
    assert bench.tick().hold == Hold(HoldReason.INPUT_INVALID, 'wrist')
    bench.commander.fault(None, goal.epoch)
    assert bench.tick().hold.code is HoldReason.AWAITING_INFERENCE  # the plan was dropped


def test_a_pose_that_cannot_be_used_holds_and_says_why_until_a_good_one_comes(bench):
    goal = bench.begin()
    bench.push(goal)
    broken = HoldError(Hold(HoldReason.INPUT_INVALID, 'ee_pose'), 'The pose is broken.')
    command = bench.tick(broken)
    assert command.hold == Hold(HoldReason.INPUT_INVALID, 'ee_pose')
    assert command.detail == 'The pose is broken.'
    assert is_still(command)
    assert bench.tick().hold.code is HoldReason.AWAITING_INFERENCE  # the plan was dropped
    bench.push(goal)
    assert bench.tick().hold.code is HoldReason.NONE


@pytest.mark.parametrize('stop', [False, True])
def test_an_exception_while_deciding_is_a_hold_with_its_traceback(bench, monkeypatch, stop):
    goal = bench.begin()
    bench.push(goal)
    if stop:
        bench.commander.estop()

    def fail(now_ns, steady_ns):
        raise ZeroDivisionError('by chance')

    monkeypatch.setattr(bench.commander.parts.pairer, 'health', fail)
    command = bench.tick()
    assert command.hold.code is (HoldReason.ESTOP if stop else HoldReason.ACTION_INVALID)
    assert 'ZeroDivisionError: by chance' in command.detail
    assert is_still(command)
    monkeypatch.undo()
    if not stop:
        assert bench.tick().hold.code is HoldReason.AWAITING_INFERENCE  # the plan was dropped


def test_a_clock_of_stamps_that_stands_or_steps_does_not_stretch_the_goal(bench):
    goal = bench.begin(duration_ns=10 * PERIOD)
    for tick in range(11):
        assert bench.session.goal == goal
        bench.now -= PERIOD if tick % 2 else 60_000 * MS
        bench.tick(steady_ns=tick * PERIOD)
    assert bench.session.outcome(goal.epoch) is Outcome.SUCCEEDED_DURATION


def test_a_clock_of_stamps_that_stands_still_holds_and_says_so(bench):
    goal = bench.begin()
    for tick in range(4):
        bench.push(goal)
        assert bench.tick(steady_ns=tick * PERIOD).hold.code is HoldReason.NONE
    bench.now -= PERIOD  # undoes what `tick` adds: the clock shows the same again
    command = bench.tick(steady_ns=4 * PERIOD)
    assert command.hold.code is HoldReason.CLOCK_STOPPED
    assert bench.tick(steady_ns=5 * PERIOD).hold.code is HoldReason.AWAITING_INFERENCE


def test_a_clock_of_stamps_that_steps_does_not_stretch_the_time_of_bad_inputs():
    bench = Bench(input_timeout_ns=500 * MS)
    goal = bench.begin()
    bench.dead = {'wrist'}
    for tick in range(11):
        assert bench.session.goal == goal
        bench.now -= 60_000 * MS
        bench.tick(steady_ns=tick * PERIOD)
    assert bench.session.outcome(goal.epoch) is Outcome.INPUT_LOST


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6))
def test_whatever_the_policy_says_no_command_breaks_a_limit(values):
    bench = Bench()
    goal = bench.begin()
    for value in values:
        bench.push(goal, value)
        command = bench.tick()
        assert np.linalg.norm(command.motion.translation_m) <= 0.05
        assert np.linalg.norm(command.motion.rotation_rad) <= 0.25
    if max(map(abs, values)) > 2:
        assert bench.commander.parts.mover.counts()['step_translation'] > 0


def test_other_limits_keep_the_counts_and_one_rest_though_changed_twice(bench):
    goal = bench.begin()
    bench.push(goal, value=0.9)
    bench.tick()
    counts = bench.commander.parts.mover.counts()
    assert counts
    for _ in range(2):
        bench.commander.replace(replace(bench.commander.parts, mover=make_parts().mover))
    bench.commander.replace(replace(bench.commander.parts, input_timeout_ns=MS))
    assert bench.commander.parts.mover.counts() == counts
    assert is_still(bench.tick())
    assert not is_still(bench.tick())


@pytest.mark.parametrize('part', ['pairer', 'cameras', 'executor', 'input_timeout_ns'])
def test_an_arm_moves_on_when_something_other_than_its_limits_changes(bench, part):
    goal = bench.begin()
    bench.push(goal)
    bench.tick()
    before = bench.commander.parts
    counts = before.pairer.counts(), before.executor.counts()
    bench.commander.replace(replace(before, **{part: getattr(make_parts(), part)}))
    after = bench.commander.parts
    assert (after.pairer.counts(), after.executor.counts()) == counts
    assert not is_still(bench.tick())


def test_other_bounds_of_the_inputs_count_from_the_next_period_on(bench):
    bench.begin()
    bench.tick()
    bench.dead.add('wrist')
    strict = ObservationPairer(STREAMS[:2], STREAMS[2:], 20 * MS, 10 * MS, 20 * MS)
    bench.commander.replace(replace(bench.commander.parts, pairer=strict))
    assert bench.tick().hold == Hold(HoldReason.INPUT_STALE, 'wrist')


def test_an_executor_of_another_mode_goes_on_with_the_plan(bench):
    goal = bench.begin()
    bench.push(goal)
    steps = [bench.tick().chunk_step for _ in range(2)]
    bench.commander.replace(
        replace(bench.commander.parts, executor=create_executor('sync', PERIOD)))
    steps += [bench.tick().chunk_step for _ in range(2)]
    assert steps == [1, 2, 3, 4]


def test_a_hold_before_the_first_action_says_nothing_of_the_hand(bench):
    assert math.isnan(bench.tick().motion.gripper)
    bench.commander.replace(make_parts())
    assert math.isnan(bench.tick().motion.gripper)


def test_a_hold_keeps_the_hand_as_it_was_told_last(bench):
    goal = bench.begin()
    bench.push(goal, gripper=0.0)
    assert bench.tick().motion.gripper == 0.0
    bench.commander.end(Outcome.CANCELLED)
    assert bench.tick().motion.gripper == 0.0


def test_other_limits_begin_at_rest_and_do_not_open_the_hand(bench):
    goal = bench.begin()
    bench.push(goal, gripper=0.0)
    bench.tick()
    bench.commander.replace(make_parts())
    assert is_still(bench.tick())
    assert not is_still(bench.tick())
    bench.push(goal, gripper=0.55)  # within the dead band
    assert bench.tick().motion.gripper == 0.0


def test_steps_count_actions_of_the_goal_and_counts_all_ticks(bench):
    goal = bench.begin()
    bench.tick()
    bench.push(goal)
    bench.tick()
    assert bench.commander.steps == 1
    bench.commander.end(Outcome.CANCELLED)
    bench.begin()
    assert bench.commander.steps == 0
    assert bench.commander.counts() == {'awaiting_inference': 1, 'command': 1}


def test_a_start_cannot_slip_into_a_stop(bench, monkeypatch):
    """The stop would then make the executor discard every chunk of the goal that runs."""
    bench.begin()
    executor = bench.commander.parts.executor
    reset, begun = executor.reset, threading.Event()
    starter = threading.Thread(target=lambda: (bench.begin(), begun.set()))

    def slow_reset(epoch):
        monkeypatch.setattr(executor, 'reset', reset)
        starter.start()
        begun.wait(0.1)
        reset(epoch)

    monkeypatch.setattr(executor, 'reset', slow_reset)
    bench.commander.end(Outcome.CANCELLED)
    starter.join()
    bench.push(bench.session.goal)
    assert bench.tick().hold.code is HoldReason.NONE
