"""What else ran on the machine while something was measured: wall times depend on it."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path('/proc/stat')
_IDLE = slice(3, 5)  # of the first line of /proc/stat: idle, and waiting for a disk
_COUNTED = 8  # what follows, the time of guests, is counted in the first two already


class LoadMeter:
    """Counts from its making on how busy the machine is besides this process; any thread."""

    def __init__(self) -> None:
        self._average = os.getloadavg()[0]
        self._since_s, self._own_s, self._busy_s = time.monotonic(), _own_s(), _busy_s()

    def read(self) -> dict[str, float | None]:
        """Return the figures of a report.

        cores: of the machine. load_average_before: over the minute before the meter was made.
        busy_with_others_cores: how many cores ran other processes since then, on average; None
        where Linux does not tell.
        """
        spent_s = time.monotonic() - self._since_s
        busy_s, others = _busy_s(), None
        if busy_s is not None and self._busy_s is not None and spent_s > 0.0:
            others = max(0.0, busy_s - self._busy_s - (_own_s() - self._own_s)) / spent_s
        return {'cores': os.cpu_count() or 1, 'load_average_before': self._average,
                'busy_with_others_cores': others}


def _own_s() -> float:
    """Processor time of this process, and of those of its children that have ended."""
    return sum(os.times()[:4])


def _busy_s() -> float | None:
    """Processor time of all processes since the machine started."""
    try:
        with _STAT.open(encoding='ascii') as lines:
            ticks = [int(count) for count in lines.readline().split()[1:1 + _COUNTED]]
    except (OSError, ValueError):
        return None
    if len(ticks) < _COUNTED:
        return None
    return (sum(ticks) - sum(ticks[_IDLE])) / os.sysconf('SC_CLK_TCK')
