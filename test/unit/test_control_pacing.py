"""When a command is due, whatever the clocks do."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_node.control.pacing import Beat, Pacer, Pacing

PERIOD = 50
SILENCE = 75
# How late the thread wakes, and how the node's clock moves meanwhile.
STEPS = st.lists(st.tuples(st.integers(1, 20), st.integers(-10_000, 10_000)), min_size=1,
                 max_size=200)


def beats(pacing, steps):
    """(steady time, beat) of a thread that wakes after each step, and the time of the last one."""
    steady = now = 0
    pacer = Pacer(pacing, PERIOD, SILENCE, steady, now)
    seen = []
    for late, clock_step in steps:
        steady += late
        now += clock_step
        if beat := pacer.poll(steady, now):
            seen.append((steady, beat))
    return seen, steady


@given(STEPS)
def test_the_system_clock_changes_nothing_for_a_robot(steps):
    seen, _ = beats(Pacing.STEADY, steps)
    unmoved, _ = beats(Pacing.STEADY, [(late, late) for late, _ in steps])
    assert seen == unmoved
    assert all(beat is Beat.TICK for _, beat in seen)


@given(STEPS, st.sampled_from([Pacing.STEADY, Pacing.CLOCK]))
def test_one_and_a_half_periods_never_pass_in_silence(steps, pacing):
    seen, end = beats(pacing, steps)
    times = [0, *(time for time, _ in seen), end]
    latest = max(late for late, _ in steps)
    assert max(b - a for a, b in pairwise(times)) < SILENCE + latest


@given(STEPS)
def test_a_period_is_commanded_once(steps):
    seen, _ = beats(Pacing.STEADY, steps)
    periods = [time // PERIOD for time, _ in seen]
    assert len(set(periods)) == len(periods)


def test_after_a_pause_of_the_thread_there_is_one_command_and_not_one_for_each_lost_period():
    pacer = Pacer(Pacing.STEADY, PERIOD, SILENCE, 0, 0)
    assert pacer.poll(7 * PERIOD + 3, 0) is Beat.TICK
    assert pacer.poll(7 * PERIOD + 4, 0) is None
    assert pacer.wait_ns(7 * PERIOD + 4) == PERIOD - 4
    assert pacer.poll(8 * PERIOD, 0) is Beat.TICK


def test_simulated_time_brings_its_own_periods_however_fast_it_is():
    pacer = Pacer(Pacing.CLOCK, PERIOD, SILENCE, 0, 1000)
    assert [pacer.poll(1, 1000 + step * 25) for step in range(5)] == [
        None, None, Beat.TICK, None, Beat.TICK]


def test_simulated_time_that_goes_back_starts_a_new_grid_with_a_command():
    pacer = Pacer(Pacing.CLOCK, PERIOD, SILENCE, 0, 10_000)
    assert pacer.poll(1, 500) is Beat.TICK
    assert pacer.poll(2, 549) is None
    assert pacer.poll(3, 550) is Beat.TICK


def test_simulated_time_that_stands_still_or_creeps_is_silence():
    pacer = Pacer(Pacing.CLOCK, PERIOD, SILENCE, 0, 0)
    assert pacer.poll(SILENCE - 1, 10) is None
    assert pacer.poll(SILENCE, 11) is Beat.SILENCE
    assert pacer.poll(SILENCE + 1, 12) is None
    assert pacer.poll(2 * SILENCE, 13) is Beat.SILENCE
    assert pacer.poll(2 * SILENCE + 1, PERIOD) is Beat.TICK


def test_in_lock_step_others_command_and_only_silence_is_noticed():
    pacer = Pacer(Pacing.OBSERVATION, PERIOD, SILENCE, 0, 0)
    assert pacer.poll(SILENCE - 1, 10 * PERIOD) is None
    pacer.sent(SILENCE - 1)
    assert pacer.poll(SILENCE + 1, 11 * PERIOD) is None
    assert pacer.poll(2 * SILENCE, 11 * PERIOD) is Beat.SILENCE


@pytest.mark.parametrize('period', [0, -1])
def test_a_period_that_is_none_is_refused(period):
    with pytest.raises(ValueError, match='must be positive'):
        Pacer(Pacing.STEADY, period, SILENCE, 0, 0)


def test_how_late_a_tick_is_counts_from_its_own_period():
    pacer = Pacer(Pacing.STEADY, PERIOD, SILENCE, 0, 0)
    assert pacer.poll(PERIOD, 0) is Beat.TICK and pacer.late_ns == 0
    assert pacer.poll(2 * PERIOD + 30, 0) is Beat.TICK and pacer.late_ns == 30
    assert pacer.poll(7 * PERIOD + 3, 0) is Beat.TICK and pacer.late_ns == 3
    assert pacer.poll(8 * PERIOD, 0) is Beat.TICK and pacer.late_ns == 0
