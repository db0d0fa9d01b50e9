"""Clocks of a simulated world: wall time, simulated real time, and lock-step."""

import time

_NS = 1_000_000_000
# rclpy takes 0 for "no time yet".
_START_NS = _NS


class SystemClock:
    """The time of day, on which every node without `use_sim_time` lives."""

    def now_ns(self) -> int:
        """Return the present time (any thread)."""
        return time.time_ns()

    def step(self, ns: int) -> None:
        """Let a control step pass (world thread); time passes by itself here."""

    def jump(self, ns: int) -> None:
        """Leap ahead, so that everything before is old (world thread); impossible here."""


class PacedClock(SystemClock):
    """Simulated time at the pace of the wall."""

    def __init__(self):
        self._offset_ns = _START_NS - time.monotonic_ns()

    def now_ns(self) -> int:
        """Return the present time (any thread)."""
        return time.monotonic_ns() + self._offset_ns

    def jump(self, ns: int) -> None:
        """Leap ahead (world thread)."""
        self._offset_ns += ns


class SteppedClock(SystemClock):
    """Simulated time that stands still between two steps of the world."""

    def __init__(self):
        self._now_ns = _START_NS

    def now_ns(self) -> int:
        """Return the present time (any thread)."""
        return self._now_ns

    def step(self, ns: int) -> None:
        """Let a control step pass (world thread)."""
        self._now_ns += ns

    jump = step
