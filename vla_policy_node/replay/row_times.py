"""Rows at a constant rate, and what of a stream counts for each of them.

A row takes the newest sample that is not later than itself, as a policy would have had it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_policy_node.replay.bag import BagError
from vla_policy_node.replay.bag_summary import RecordedGoal

MOST_ROWS = 10**7
_NEVER, _ENDLESS = np.iinfo(np.int64).min, np.iinfo(np.int64).max


class RowTimes:
    """The times of rows in all goals of a bag. times_ns: [N] ascending; goal: [N], which one."""

    def __init__(self, goals: Sequence[RecordedGoal], fps: int):
        counts = [max(0, (goal.end_ns - goal.start_ns) * fps // 1_000_000_000 + 1)
                  for goal in goals]
        if sum(counts) > MOST_ROWS:
            raise BagError(f'The goals of the bag last {sum(counts) / fps:.0f} s by their stamps, '
                           f'which is more than {MOST_ROWS:,} rows; give --instruction, or '
                           'repair the stamps.')
        parts = [goal.start_ns + np.arange(count) * 1_000_000_000 // fps
                 for goal, count in zip(goals, counts, strict=True)]
        self.times_ns = np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64)
        self.goal = np.repeat(np.arange(len(counts)), counts)
        order = np.argsort(self.times_ns, kind='stable')
        self.times_ns, self.goal = self.times_ns[order], self.goal[order]

    def __len__(self) -> int:
        return len(self.times_ns)


class Newest:
    """The newest sample of a stream for each row. size: of its numbers."""

    def __init__(self, grid: RowTimes, size: int):
        self._grid = grid
        self._stamps = np.full(len(grid), _NEVER)
        self._values = np.zeros((len(grid), size))

    def put(self, stamp_ns: int, value: np.ndarray | float) -> None:
        """Take a sample; of those between two rows the newest one is kept."""
        row = int(np.searchsorted(self._grid.times_ns, stamp_ns))
        if row < len(self._stamps) and stamp_ns >= self._stamps[row]:
            self._stamps[row], self._values[row] = stamp_ns, value

    def ages_and_values(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the age [N] (ns) of what each row has, endless for nothing, and that, [N, size].
        """
        rows = np.arange(len(self._stamps))
        last = np.maximum.accumulate(np.where(self._stamps > _NEVER, rows, -1))
        there = last >= 0
        ages = np.full(len(rows), _ENDLESS)
        ages[there] = (self._grid.times_ns - self._stamps[last])[there]
        return ages, self._values[np.maximum(last, 0)]


class Nearest:
    """The sample of a stream that is nearest to each row, up to half a row away."""

    def __init__(self, grid: RowTimes, size: int):
        self._grid = grid
        self._apart = np.full(len(grid), _ENDLESS)
        self.values = np.full((len(grid), size), np.nan)

    def put(self, stamp_ns: int, value: np.ndarray) -> None:
        """Take a sample."""
        times = self._grid.times_ns
        right = int(np.searchsorted(times, stamp_ns))
        for row in (right - 1, right):
            if 0 <= row < len(times) and abs(int(times[row]) - stamp_ns) < self._apart[row]:
                self._apart[row] = abs(int(times[row]) - stamp_ns)
                self.values[row] = value

    def near(self, within_ns: int) -> np.ndarray:
        """Return for which rows [N] there is one."""
        return self._apart <= within_ns


def runs(valid: np.ndarray, goal: np.ndarray) -> list[tuple[int, int]]:
    """Return first row and end of each stretch of valid rows within one goal."""
    found, start = [], None
    for row in range(len(valid) + 1):
        ends = row == len(valid) or not valid[row] or (row > 0 and goal[row] != goal[row - 1])
        if start is not None and ends:
            found.append((start, row))
            start = None
        if start is None and row < len(valid) and valid[row]:
            start = row
    return found
