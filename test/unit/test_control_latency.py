"""Latency percentiles over a window. Regression pinned: a warm-up call poisons them (D8)."""

import math
import threading

import numpy as np
import pytest

from vla_policy_node.control.latency import LatencyStats


def test_d8_warm_up_leaves_no_trace_after_reset():
    stats = LatencyStats()
    stats.add(9_000.0)
    stats.reset()
    for value in (10.0, 20.0, 30.0):
        stats.add(value)
    summary = stats.summary()
    assert (summary.count, summary.mean_ms, summary.p50_ms, summary.max_ms) == (3, 20, 20, 30)


def test_d8_one_slow_call_leaves_the_window():
    stats = LatencyStats(window=10)
    stats.add(9_000.0)
    for _ in range(10):
        stats.add(10.0)
    assert stats.summary().max_ms == 10.0


def test_percentiles_are_those_of_the_window():
    stats = LatencyStats(window=100)
    values = np.random.default_rng(0).exponential(50.0, 250)
    for value in values:
        stats.add(value)
    summary = stats.summary()
    expected = np.percentile(values[-100:], [50, 95, 99])
    np.testing.assert_allclose([summary.p50_ms, summary.p95_ms, summary.p99_ms], expected)


def test_empty_is_nan_and_not_zero():
    summary = LatencyStats().summary()
    assert summary.count == 0
    assert math.isnan(summary.p95_ms) and math.isnan(summary.max_ms)
    with pytest.raises(ValueError, match='at least one'):
        LatencyStats(window=0)


def test_reading_while_another_thread_adds():
    stats = LatencyStats(window=1_000)
    stats.add(1.0)
    writer = threading.Thread(target=lambda: [stats.add(1.0) for _ in range(5_000)])
    writer.start()
    while writer.is_alive():
        assert stats.summary().p99_ms == 1.0
    writer.join()
    assert stats.summary().count == 1_000
