"""What passes the guard, and when it says stop: laws over everything that may come."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_node.control.guard import (
    BURST,
    CONFLICT_S,
    PACE,
    Ceilings,
    Guard,
    GuardVerdict,
    SentCommand,
)
from vla_policy_node.control.hold import Hold, HoldReason

PERIOD_S = 0.05
PERIOD_NS = 50_000_000
LOOK_S = PERIOD_S / 4  # as the node does
CEILINGS = Ceilings(0.05, 0.25)
START_NS = 1_000_000_000_000
ONE = frozenset(['policy'])
OTHER = frozenset(['somebody'])


def action(step=0, **changes):
    """An action as the policy sends it in control period `step`."""
    stamp_ns = START_NS + step * PERIOD_NS
    command = SentCommand(
        stamp_ns, 'base_link', (0.01, 0.0, 0.0), (0.0, 0.0, 0.1), 1.0, False, 0, '', '',
        stamp_ns - PERIOD_NS, stamp_ns + PERIOD_NS, 3, math.nan, 1, False)
    return replace(command, **changes)


def hold(step=0, **changes):
    return action(step, translation_m=(0.0,) * 3, rotation_rad=(0.0,) * 3, gripper=math.nan,
                  hold=True, hold_code=int(HoldReason.AWAITING_INFERENCE), **changes)


class Robot:
    """Feeds a guard in simulated time, and keeps what the robot is told."""

    def __init__(self):
        self.guard = Guard(PERIOD_S, CEILINGS)
        self.now_s = 0.0
        self.told = []  # (time, SentCommand or Hold)

    def clock_ns(self):
        return START_NS + round(self.now_s * 1e9)

    def take(self, command, senders=ONE):
        verdict = self.guard.take(command, senders, self.clock_ns(), self.now_s)
        if verdict is GuardVerdict.FORWARD:
            self.told.append((self.now_s, command))
        elif isinstance(verdict, Hold):
            self.told.append((self.now_s, verdict))
        return verdict

    def advance(self, to_s):
        """Look as often as the node does; its looks are not in step with what comes."""
        while self.now_s < to_s:
            self.now_s = min(to_s, (math.floor(self.now_s / LOOK_S + 1e-6) + 1) * LOOK_S)
            if due := self.guard.tick(self.now_s):
                self.told.append((self.now_s, due))

    def move(self, steps=range(4)):
        for step in steps:
            self.advance(step * PERIOD_S)
            assert self.take(action(step)) is GuardVerdict.FORWARD
        return self

    def reasons(self):
        return [said.code for _, said in self.told if isinstance(said, Hold)]


def test_a_good_policy_passes_whole_and_nothing_is_added():
    robot = Robot().move(range(200))
    assert [said.stamp_ns for _, said in robot.told] == [action(n).stamp_ns for n in range(200)]
    assert robot.reasons() == []


def test_before_the_first_command_the_robot_is_told_to_stand_still():
    robot = Robot()
    robot.advance(10 * PERIOD_S)
    assert set(robot.reasons()) == {HoldReason.INPUT_MISSING}
    assert len(robot.told) == pytest.approx(10, abs=1)


@pytest.mark.parametrize('phase', [0.0, 0.1, 0.24, 0.26, 0.5, 0.9])
def test_silence_is_a_hold_within_two_periods_and_in_every_period_after(phase):
    robot = Robot()
    robot.advance(phase * PERIOD_S)
    robot.take(action())
    silent_s = robot.now_s
    robot.advance(silent_s + 20 * PERIOD_S)
    times = [time_s - silent_s for time_s, said in robot.told if isinstance(said, Hold)]
    times = [time_s for time_s in times if time_s > 0]
    assert times[0] <= 2 * PERIOD_S
    assert max(b - a for a, b in pairwise(times)) <= 1.25 * PERIOD_S + 1e-9
    assert robot.reasons()[-1] is HoldReason.INPUT_STALE


@pytest.mark.parametrize(('changes', 'reason'), [
    ({'translation_m': (math.nan, 0.0, 0.0)}, HoldReason.ACTION_INVALID),
    ({'rotation_rad': (0.0, math.inf, 0.0)}, HoldReason.ACTION_INVALID),
    ({'translation_m': (1e306, 1e306, 1e306)}, HoldReason.ACTION_INVALID),
    ({'translation_m': (0.04, 0.04, 0.0)}, HoldReason.ACTION_INVALID),
    ({'rotation_rad': (0.0, 0.0, 0.26)}, HoldReason.ACTION_INVALID),
    ({'gripper': math.nan}, HoldReason.ACTION_INVALID),
    ({'gripper': 7.0}, HoldReason.ACTION_INVALID),
    ({'target_time_ns': START_NS}, HoldReason.INPUT_STALE),
    ({'target_time_ns': START_NS + 60 * PERIOD_NS}, HoldReason.CLOCK_JUMP),
    ({'stamp_ns': START_NS + 60 * PERIOD_NS}, HoldReason.CLOCK_JUMP),
])
def test_what_no_robot_should_do_is_a_hold_at_once_and_the_next_good_command_passes(
    changes, reason
):
    robot = Robot().move()
    robot.advance(4 * PERIOD_S)
    assert robot.take(action(4, **changes)) == Hold(reason, 'command')
    robot.advance(5 * PERIOD_S)
    assert robot.take(action(5)) is GuardVerdict.FORWARD


def test_a_hold_that_moves_is_a_hold_of_the_guard():
    robot = Robot().move()
    robot.advance(4 * PERIOD_S)
    moving = replace(hold(4), translation_m=(0.01, 0.0, 0.0))
    assert robot.take(moving) == Hold(HoldReason.ACTION_INVALID, 'command')


def test_a_hold_passes_however_late_it_is():
    robot = Robot().move()
    assert robot.take(hold(3, target_time_ns=START_NS)) is GuardVerdict.FORWARD


@pytest.mark.parametrize('old', [
    action(3), action(2), action(4, target_time_ns=action(3).target_time_ns),
    action(4, epoch=0), hold(4, epoch=0), hold(1),
], ids=['duplicate', 'reordered', 'same period', 'old goal', 'hold of an old goal', 'old hold'])
def test_what_is_older_than_the_last_command_is_ignored(old):
    robot = Robot().move()
    assert robot.take(old) is GuardVerdict.IGNORE
    robot.advance(3.9 * PERIOD_S)
    assert robot.take(old) is GuardVerdict.IGNORE
    robot.advance(5 * PERIOD_S)
    assert robot.reasons() == [HoldReason.INPUT_STALE]  # and soon there is nothing fresh


def test_two_senders_hold_the_robot_as_long_as_both_are_there():
    robot = Robot().move()
    robot.advance(4 * PERIOD_S)
    conflict = Hold(HoldReason.SOURCE_CONFLICT, 'command')
    assert robot.take(action(4), OTHER) == conflict
    robot.advance(5 * PERIOD_S)
    assert robot.take(action(5)) == conflict
    both = frozenset([*ONE, *OTHER])  # a middleware that does not tell who
    robot.advance(6 * PERIOD_S)
    assert robot.take(action(6), both) is not GuardVerdict.FORWARD
    assert {said for time_s, said in robot.told if time_s >= 4 * PERIOD_S} == {conflict}
    after = round((6 * PERIOD_S + CONFLICT_S) / PERIOD_S) + 1
    robot.advance(after * PERIOD_S)
    assert robot.take(action(after)) is GuardVerdict.FORWARD


def test_a_policy_that_was_started_again_begins_anew():
    robot = Robot()
    for step in range(3):
        robot.advance(step * PERIOD_S)
        robot.take(action(step, epoch=7))
    step = 3 + round(CONFLICT_S / PERIOD_S)
    robot.advance(step * PERIOD_S)
    assert robot.take(action(step, epoch=1)) is GuardVerdict.IGNORE  # the same one went back
    assert robot.take(action(step, epoch=1), OTHER) == Hold(HoldReason.SOURCE_CONFLICT, 'command')
    step += 1 + round(CONFLICT_S / PERIOD_S)
    robot.advance(step * PERIOD_S)
    assert robot.take(action(step, epoch=1), OTHER) is GuardVerdict.FORWARD


def test_after_a_step_back_of_the_clock_nothing_moves_before_the_next_goal():
    robot = Robot().move(range(40))
    robot.clock_ns = lambda: START_NS + round(robot.now_s * 1e9) - 30 * PERIOD_NS
    robot.advance(40 * PERIOD_S)
    assert robot.take(action(10)) is GuardVerdict.IGNORE
    robot.advance(41 * PERIOD_S)
    assert robot.take(action(11, epoch=2)) is GuardVerdict.FORWARD


def test_a_middleware_that_does_not_name_senders_does_not_let_a_command_pass_twice():
    robot = Robot()
    robot.take(action(), frozenset())
    robot.advance(PERIOD_S)
    assert robot.take(action(), frozenset()) is GuardVerdict.IGNORE


def test_bytes_that_are_no_command_are_a_hold():
    robot = Robot().move()
    assert robot.guard.refuse(robot.now_s) == Hold(HoldReason.INPUT_INVALID, 'command')


def test_the_guard_s_own_holds_leave_the_gripper_and_name_the_goal():
    robot = Robot().move()
    assert (robot.guard.gripper, robot.guard.epoch, robot.guard.frame_id) == (1.0, 1, 'base_link')
    robot.take(hold(4, epoch=2))
    assert (robot.guard.gripper, robot.guard.epoch) == (1.0, 2)


numbers = st.one_of(st.floats(-0.06, 0.06), st.floats())
vectors = st.tuples(numbers, numbers, numbers)
quarters = st.one_of(st.integers(-4, 4), st.integers(-(10**6), 10**6))
times = quarters.map(lambda count: count * PERIOD_NS // 4)
anything = st.builds(
    lambda stamp, target, **changes: lambda now_ns: replace(
        hold() if changes['hold'] else action(), stamp_ns=max(0, now_ns + stamp),
        target_time_ns=max(0, now_ns + target), **changes),
    times, times, epoch=st.integers(0, 3), hold=st.booleans(),
    translation_m=st.one_of(st.just((0.01, 0.0, 0.0)), st.just((0.0,) * 3), vectors),
    rotation_rad=st.one_of(st.just((0.0,) * 3), vectors),
    gripper=st.sampled_from([0.0, 1.0, math.nan, 9.0]))
good = st.just(lambda now_ns: action(stamp_ns=now_ns, target_time_ns=now_ns + PERIOD_NS))
events = st.lists(st.tuples(
    st.one_of(st.just(PERIOD_S), st.floats(0.0, 4 * PERIOD_S)),
    st.one_of(good, good, anything), st.sampled_from([ONE, ONE, ONE, OTHER])), max_size=60)


@given(events)
def test_whatever_comes_what_passes_is_safe_and_the_robot_is_told_within_two_periods(sequence):
    robot = Robot()
    clocks = []
    for wait_s, make, sender in sequence:
        robot.advance(robot.now_s + wait_s)
        before = len(robot.told)
        robot.take(make(robot.clock_ns()), sender)
        clocks += [robot.clock_ns()] * (len(robot.told) - before)
    robot.advance(robot.now_s + 3 * PERIOD_S)

    said = [(0.0, None), *robot.told]
    assert max(b - a for (a, _), (b, _) in pairwise(said)) <= 2 * PERIOD_S
    passed = [(time_s, c) for time_s, c in robot.told
              if isinstance(c, SentCommand) and not c.hold]
    for time_s, command in passed:
        now_ns = START_NS + round(time_s * 1e9)
        assert math.hypot(*command.translation_m) <= CEILINGS.max_step_translation_m + 1e-9
        assert math.hypot(*command.rotation_rad) <= CEILINGS.max_step_rotation_rad + 1e-9
        assert 0.0 <= command.gripper <= 1.0
        assert now_ns <= command.target_time_ns + PERIOD_NS
        assert command.stamp_ns <= now_ns + PERIOD_NS
    for i, (first_s, _) in enumerate(passed):
        for count, (last_s, _) in enumerate(passed[i:], 1):
            assert count <= BURST + PACE * (last_s - first_s) / PERIOD_S + 1e-6
    for _, command in robot.told:
        if isinstance(command, SentCommand) and command.hold:
            assert command.translation_m == command.rotation_rad == (0.0,) * 3


@given(st.lists(st.integers(0, 12), max_size=40))
def test_no_action_passes_twice_and_none_after_a_later_one(order):
    robot = Robot()
    passed = []
    for step in order:
        robot.now_s += 0.1 * PERIOD_S
        if robot.take(action(step)) is GuardVerdict.FORWARD:
            passed.append(step)
    assert passed == sorted(set(passed))


def test_a_hold_says_for_how_long_there_was_no_command():
    robot = Robot().move()
    robot.advance(robot.now_s + 1.0)
    assert isinstance(robot.told[-1][1], Hold)
    assert re.search(r'\(none for (0\.9|1)[0-9.]* s\)', robot.told[-1][1].text)
