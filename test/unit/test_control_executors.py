"""Which action is due when.

Regressions pinned: a chunk that restarts at element 0 after a slow inference; the rate halved by
collecting one tick late (D3); a merge that races with the control loop (D4); chunks of an earlier
episode.
"""

import threading
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_node.control.executors import DELAY_WINDOW, create_executor
from vla_policy_node.control.hold import HoldError, HoldReason
from vla_policy_node.policy.interface import EXECUTION_MODES, Execution

PERIOD = 50_000_000  # 20 Hz
MS = 1_000_000


def make_chunk(length=8, first=0):
    """Return a chunk whose values are the number of the control period they are meant for."""
    return np.repeat(np.arange(first, first + length, dtype=float)[:, None], 7, axis=1)


@pytest.mark.parametrize('mode', EXECUTION_MODES)
def test_after_300_ms_of_inference_at_20_hz_the_first_element_is_6(mode):
    executor = create_executor(mode, PERIOD)
    stamp = 1_000 * MS
    for tick in range(6):
        assert executor.pop(stamp + tick * PERIOD + PERIOD) is None
    executor.push(make_chunk(), stamp, epoch=0)
    step = executor.pop(stamp + 300 * MS + PERIOD)
    assert (step.chunk_step, step.action[0]) == (6, 6.0)
    assert step.observation_stamp_ns == stamp
    assert step.target_time_ns == stamp + 350 * MS
    assert executor.counts()['late_elements'] == 6


@pytest.mark.parametrize('mode', EXECUTION_MODES)
def test_an_observation_taken_at_the_tick_starts_at_element_0_and_ends_with_the_chunk(mode):
    executor = create_executor(mode, PERIOD)
    executor.push(make_chunk(3), 0, epoch=0)
    steps = [executor.pop(tick * PERIOD + PERIOD) for tick in range(4)]
    assert [step.chunk_step for step in steps[:3]] == [0, 1, 2]
    assert steps[3] is None


@pytest.mark.parametrize('mode', EXECUTION_MODES)
@settings(deadline=None)
@given(jitter=st.lists(st.integers(-24, 24), min_size=8, max_size=8))
def test_jitter_below_half_a_period_neither_skips_nor_repeats(mode, jitter):
    executor = create_executor(mode, PERIOD)
    executor.push(make_chunk(9), 0, epoch=0)
    served = [executor.pop(PERIOD)]
    for tick, jitter_ms in enumerate(jitter, start=1):
        served.append(executor.pop((tick + 1) * PERIOD + jitter_ms * MS))
    assert [step.chunk_step for step in served] == list(range(9))


def test_a_missed_tick_skips_its_element_and_a_pause_starts_a_new_grid():
    executor = create_executor('async', PERIOD)
    executor.push(make_chunk(40), 0, epoch=0)
    assert executor.pop(PERIOD).chunk_step == 0
    assert executor.pop(3 * PERIOD + 9 * MS).target_time_ns == 3 * PERIOD
    assert executor.pop(20 * PERIOD + 9 * MS).target_time_ns == 20 * PERIOD + 9 * MS


@pytest.mark.parametrize('mode', EXECUTION_MODES)
def test_no_target_is_served_twice_nor_backwards(mode):
    executor = create_executor(mode, PERIOD)
    executor.push(make_chunk(), 0, epoch=0)
    assert executor.pop(3 * PERIOD).chunk_step == 2
    assert executor.pop(3 * PERIOD) is None
    assert executor.pop(PERIOD) is None
    assert executor.pop(4 * PERIOD).chunk_step == 3
    assert executor.counts()['repeated_targets'] == 2


@pytest.mark.parametrize('mode', EXECUTION_MODES)
def test_a_chunk_of_an_earlier_epoch_never_moves_the_robot(mode):
    executor = create_executor(mode, PERIOD)
    executor.push(make_chunk(), 0, epoch=0)
    executor.reset(epoch=1)
    assert not executor.has_chunk
    executor.push(make_chunk(), 0, epoch=0)
    assert executor.pop(PERIOD) is None
    executor.push(make_chunk(), PERIOD, epoch=1)
    assert executor.has_chunk
    assert executor.pop(2 * PERIOD).chunk_step == 0
    assert executor.counts()['chunks_of_other_epoch'] == 1


def test_reset_lets_time_start_again_after_a_clock_jump():
    executor = create_executor('async', PERIOD)
    executor.push(make_chunk(), 100 * PERIOD, epoch=0)
    assert executor.pop(101 * PERIOD).chunk_step == 0
    executor.reset(epoch=1)
    executor.push(make_chunk(), 0, epoch=1)
    assert executor.pop(PERIOD).chunk_step == 0


@pytest.mark.parametrize('mode', EXECUTION_MODES)
def test_an_inference_that_outlived_a_clock_jump_does_not_block_the_next_chunks(mode):
    executor = create_executor(mode, PERIOD)
    executor.reset(epoch=0)
    executor.push(make_chunk(), 100 * PERIOD, epoch=0)  # observed before the clock went back
    assert executor.pop(PERIOD) is None
    executor.push(make_chunk(), PERIOD, epoch=0)
    assert executor.pop(2 * PERIOD).chunk_step == 0
    assert executor.counts()['chunks_from_the_future'] == 1


def test_an_older_or_repeated_observation_is_discarded():
    executor = create_executor('temporal_ensemble', PERIOD)
    executor.push(make_chunk(first=100), PERIOD, epoch=0)
    executor.push(make_chunk(), 0, epoch=0)
    executor.push(make_chunk(), PERIOD, epoch=0)
    assert executor.pop(2 * PERIOD).action[0] == 100.0
    assert executor.counts()['chunks_out_of_order'] == 2


def test_async_takes_over_at_the_element_whose_time_has_come():
    executor = create_executor('async', PERIOD)
    executor.push(make_chunk(), 0, epoch=0)
    assert executor.pop(PERIOD).action[0] == 0.0
    executor.push(make_chunk(first=100), PERIOD, epoch=0)
    assert executor.pop(3 * PERIOD).action[0] == 101.0


def test_async_keeps_the_last_chunk_until_the_first_period_of_the_new_one():
    executor = create_executor('async', PERIOD)
    executor.push(make_chunk(), 0, epoch=0)
    executor.push(make_chunk(first=100), 2 * PERIOD, epoch=0)  # its camera clock runs ahead
    assert [executor.pop(k * PERIOD).action[0] for k in (1, 2, 3)] == [0.0, 1.0, 100.0]


def test_sync_infers_only_when_the_chunk_is_used_up():
    executor = create_executor('sync', PERIOD)
    assert executor.needs_inference(PERIOD)
    executor.push(make_chunk(3), 0, epoch=0)
    for tick in range(3):
        assert not executor.needs_inference(tick * PERIOD + PERIOD)
        executor.pop(tick * PERIOD + PERIOD)
    assert executor.needs_inference(3 * PERIOD), 'the last element was served'


def test_sync_infers_again_when_the_chunk_expired_unused():
    executor = create_executor('sync', PERIOD)
    executor.push(make_chunk(3), 0, epoch=0)
    assert executor.needs_inference(4 * PERIOD)


@pytest.mark.parametrize('mode', ['async', 'temporal_ensemble'])
@pytest.mark.parametrize('inference_periods', [1, 2, 3, 4])
def test_d3_every_tick_moves_and_inferences_run_back_to_back(mode, inference_periods):
    # A chunk must last for two inferences: its own and that of the chunk that follows.
    executor = create_executor(mode, PERIOD)
    started, inferences, moved = 0, 0, []
    for tick in range(60):
        now = tick * PERIOD
        if now - started == inference_periods * PERIOD:  # done: deliver, start the next at once
            executor.push(make_chunk(8, first=started // PERIOD), started, epoch=0)
            assert executor.needs_inference(now + PERIOD)
            started, inferences = now, inferences + 1
        step = executor.pop(now + PERIOD)
        moved.append(step is not None)
        if step is not None:
            assert step.action[6] == tick
            assert step.action[0] == pytest.approx(tick)
    assert moved == [False] * inference_periods + [True] * (60 - inference_periods)
    assert inferences == 59 // inference_periods


@pytest.mark.parametrize('mode', EXECUTION_MODES)
@settings(deadline=None)
@given(delays=st.lists(st.integers(0, 600), min_size=1, max_size=15))
def test_any_delay_leaves_every_action_at_its_own_time(mode, delays):
    executor = create_executor(mode, PERIOD)
    delays = iter(delays)
    started, done = 0, next(delays) * MS
    for tick in range(80):
        now = tick * PERIOD
        if started is not None and now >= done:
            executor.push(make_chunk(8, first=started // PERIOD), started, epoch=0)
            started = None
        if started is None and executor.needs_inference(now + PERIOD):
            started, done = now, now + next(delays, 100) * MS
        step = executor.pop(now + PERIOD)
        if step is not None:
            assert step.action[0] == pytest.approx(tick)
            assert step.target_time_ns == now + PERIOD


@pytest.mark.parametrize('mode', EXECUTION_MODES)
def test_d4_two_threads_popping_while_one_pushes_serve_each_target_once(mode):
    executor = create_executor(mode, PERIOD)
    ticks = 3_000
    served: list[list[tuple[int, float]]] = [[], []]
    start = threading.Barrier(3)

    def pop_all(steps):
        start.wait()
        for tick in range(ticks):
            step = executor.pop((tick + 1) * PERIOD)
            if step is not None:
                steps.append((step.target_time_ns, step.action[6]))

    def push_all():
        start.wait()
        for tick in range(0, ticks, 2):
            executor.push(make_chunk(16, first=tick), tick * PERIOD, epoch=0)

    threads = [threading.Thread(target=pop_all, args=(steps,)) for steps in served]
    threads.append(threading.Thread(target=push_all))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    targets = [target for steps in served for target, _ in steps]
    assert len(targets) == len(set(targets))
    for steps in served:
        assert [target for target, _ in steps] == sorted(target for target, _ in steps)
        assert all(value == target // PERIOD - 1 for target, value in steps)
    counts = executor.counts()
    assert counts.get('actions', 0) == len(targets)
    assert counts['chunks'] == ticks // 2


def test_a_chunk_is_copied_and_a_step_cannot_change_it():
    executor = create_executor('async', PERIOD)
    chunk = make_chunk()
    executor.push(chunk, 0, epoch=0)
    chunk[:] = 99.0
    step = executor.pop(PERIOD)
    assert step.action[0] == 0.0
    with pytest.raises(ValueError, match='read-only'):
        step.action[0] = 1.0


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_non_finite_chunk_is_an_action_invalid_hold(bad):
    executor = create_executor('async', PERIOD)
    chunk = make_chunk()
    chunk[3, 2] = bad
    with pytest.raises(HoldError) as error:
        executor.push(chunk, 0, epoch=0)
    assert error.value.hold.code is HoldReason.ACTION_INVALID
    assert not executor.has_chunk


@pytest.mark.parametrize('shape', [(7,), (8, 6), (0, 7), (1, 8, 7)])
def test_a_chunk_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match='a chunk is'):
        create_executor('async', PERIOD).push(np.zeros(shape), 0, epoch=0)


def test_unusable_settings_are_refused():
    with pytest.raises(ValueError, match="'fast' is unknown"):
        create_executor('fast', PERIOD)
    with pytest.raises(ValueError, match='control period'):
        create_executor('sync', 0)


# --- what execution knows as an inference begins ---


@dataclass
class Told:
    """One inference: what the policy was told, and what became of it."""

    execution: Execution
    started: int  # tick
    ended: int
    chunk: np.ndarray
    skipped: int


def drive(mode, delays, ticks=60, length=8, age=0):
    """A robot at 20 Hz whose inferences take so many ticks; what was told, and served by tick.

    Chunk n says 1000 n + the number of the period; normalised it says the negative of that.
    age: ticks between the capture of an observation and its inference.
    """
    executor = create_executor(mode, PERIOD)
    told, served, delays = [], {}, iter(delays)
    running = None
    for tick in range(ticks):
        if running is not None and tick >= running.ended:
            before = executor.counts().get('late_elements', 0)
            executor.push(running.chunk, running.started * PERIOD, 0, -running.chunk)
            running.skipped = executor.counts().get('late_elements', 0) - before
            told.append(running)
            running = None
        seen = tick - age
        newest = told[-1].started if told else -1
        if running is None and seen > newest and executor.needs_inference((seen + 1) * PERIOD):
            chunk = make_chunk(length, first=1000 * (len(told) + 1) + seen)
            running = Told(
                executor.execution(seen * PERIOD), seen, tick + next(delays, 1), chunk, 0)
        step = executor.pop((tick + 1) * PERIOD)
        if step is not None:
            served[tick] = step.action
    return told, served


@pytest.mark.parametrize('mode', EXECUTION_MODES)
@settings(deadline=None, max_examples=60)
@given(delays=st.lists(st.integers(0, 5), min_size=1, max_size=30), age=st.integers(0, 2))
def test_executed_is_what_was_served_between_two_observations(mode, delays, age):
    told, served = drive(mode, delays, age=age)
    for last, this in pairwise(told):
        between = [served[t] for t in range(last.started, this.started) if t in served]
        np.testing.assert_array_equal(this.execution.executed, np.reshape(between, (-1, 7)))
    assert not len(told[0].execution.executed)


@pytest.mark.parametrize('mode', EXECUTION_MODES)
@settings(deadline=None, max_examples=60)
@given(delays=st.lists(st.integers(0, 5), min_size=1, max_size=30), age=st.integers(0, 2))
def test_leftover_is_the_rest_of_the_newest_chunk_from_the_first_period_of_the_answer_on(
    mode, delays, age
):
    told, _ = drive(mode, delays, age=age)
    for last, this in pairwise(told):
        first = min(this.started - last.started, len(last.chunk))
        np.testing.assert_array_equal(this.execution.leftover, -last.chunk[first:])
    assert not len(told[0].execution.leftover)


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 12), executed=st.integers(0, 12))
def test_executed_and_leftover_together_are_the_chunk_that_was_pushed(length, executed):
    executor = create_executor('async', PERIOD)
    chunk = make_chunk(length)
    executor.push(chunk, 0, 0, -chunk)
    for tick in range(executed):
        executor.pop((tick + 1) * PERIOD)
    known = executor.execution(executed * PERIOD)
    np.testing.assert_array_equal(np.concatenate([known.executed, -known.leftover]), chunk)


@pytest.mark.parametrize('mode', EXECUTION_MODES)
@settings(deadline=None, max_examples=60)
@given(delays=st.lists(st.integers(0, 5), min_size=1, max_size=30), age=st.integers(0, 2))
def test_the_delay_is_the_most_that_was_skipped_lately(mode, delays, age):
    told, _ = drive(mode, delays, age=age)
    for index, this in enumerate(told):
        lately = [earlier.skipped for earlier in told[max(0, index - DELAY_WINDOW):index]]
        # A period of the observation's age has passed before anything begins.
        assert this.execution.delay == max([*lately, age if this.started + age else 0])


@pytest.mark.parametrize('mode', EXECUTION_MODES)
@settings(deadline=None, max_examples=60)
@given(delay=st.integers(0, 4), age=st.integers(0, 2))
def test_what_is_committed_is_what_comes_before_a_chunk_as_late_as_the_last(mode, delay, age):
    told, served = drive(mode, [delay] * 60, age=age)
    for this in told[2:]:
        periods = range(this.started, this.started + this.execution.delay)
        np.testing.assert_array_equal(
            this.execution.committed,
            np.reshape([served[t] for t in periods if t in served], (-1, 7)))
        assert this.skipped == this.execution.delay


@pytest.mark.parametrize('mode', EXECUTION_MODES)
def test_with_no_chunk_and_after_a_reset_nothing_is_known_but_the_mode(mode):
    executor = create_executor(mode, PERIOD)
    executor.push(make_chunk(), 0, 0, make_chunk())
    executor.pop(PERIOD)
    executor.reset(epoch=0)
    for known in (create_executor(mode, PERIOD).execution(0), executor.execution(PERIOD)):
        assert known.mode == mode
        assert [len(known.executed), len(known.committed), len(known.leftover)] == [0, 0, 0]
        assert known.delay == 0


def test_a_chunk_that_nobody_normalised_leaves_nothing_over():
    executor = create_executor('async', PERIOD)
    executor.push(make_chunk(), 0, epoch=0)
    assert executor.execution(PERIOD).leftover.shape == (0, 7)


def test_of_a_chunk_that_is_not_used_nothing_counts_as_executed_again():
    executor = create_executor('async', PERIOD)
    executor.push(make_chunk(), 0, epoch=0)
    executor.pop(PERIOD)
    executor.push(make_chunk(), 0, epoch=0)  # out of order
    assert len(executor.execution(PERIOD).executed) == 1
