"""Latency percentiles over a sliding window."""

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def percentiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return 'p50', 'p95' and 'p99' of the values, NaN if there are none."""
    if not len(values):
        return dict.fromkeys(('p50', 'p95', 'p99'), math.nan)
    return {f'p{q}': float(np.percentile(values, q)) for q in (50, 95, 99)}


@dataclass(frozen=True)
class LatencySummary:
    """Statistics in ms of the values in the window; NaN when it is empty."""

    count: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class LatencyStats:
    """Percentiles over the last `window` values.

    A window, not a running maximum: one slow inference must leave the statistics again. Call
    `reset()` after the warm-up, so that the first slow calls never enter them.
    """

    def __init__(self, window: int = 200):
        if window < 1:
            raise ValueError(f'The latency window is {window}; it needs at least one value.')
        self._lock = threading.Lock()
        self._values_ms: deque[float] = deque(maxlen=window)

    def add(self, milliseconds: float) -> None:
        """Record one duration in ms (any thread)."""
        with self._lock:
            self._values_ms.append(float(milliseconds))

    def summary(self) -> LatencySummary:
        """Return the statistics of the present window (any thread)."""
        with self._lock:
            values_ms = list(self._values_ms)
        if not values_ms:
            return LatencySummary(0, *[math.nan] * 5)
        mean = sum(values_ms) / len(values_ms)
        p50, p95, p99 = percentiles(values_ms).values()
        return LatencySummary(len(values_ms), mean, p50, p95, p99, max(values_ms))

    def reset(self) -> None:
        """Forget everything (any thread)."""
        with self._lock:
            self._values_ms.clear()
