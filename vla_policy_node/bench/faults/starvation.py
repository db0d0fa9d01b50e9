"""Measures how long processes waited for a CPU, which no judge may blame on a node."""

import contextlib
import os
import threading
import time
from pathlib import Path

SAMPLE_S = 0.02
_STEAL = 7  # among the figures of a line 'cpu' of /proc/stat


class Starvation:
    """Samples the run delay of all threads of this process and of another one, and stolen time.

    A context manager. Linux counts per thread how long it could have run and was not let, and per
    virtual CPU how long its host ran something else, which no thread's delay contains; the sum is
    more than what delayed any one of them, and nothing on a machine with CPUs to spare.
    zero_s: `time.monotonic` at the beginning of all times here.
    """

    def __init__(self, zero_s: float):
        self._zero_s = zero_s
        self._pid = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name='starvation', daemon=True)
        self.samples: list[tuple[float, float]] = [(0.0, 0.0)]  # time, total so far (s)

    def __enter__(self) -> 'Starvation':
        """Begin to sample."""
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def watch(self, pid: int) -> None:
        """Choose the other process (any thread)."""
        self._pid = pid

    def _run(self) -> None:
        total_s, before, stolen_s = 0.0, {}, _stolen_s()
        while not self._stop.wait(SAMPLE_S):
            now = {**_run_delays_ns(os.getpid()), **_run_delays_ns(self._pid)}
            total_s += sum(max(0, delay - before.get(task, delay))
                           for task, delay in now.items()) / 1e9
            before = now
            stolen_before_s, stolen_s = stolen_s, _stolen_s()
            total_s += max(0.0, stolen_s - stolen_before_s)
            self.samples.append((time.monotonic() - self._zero_s, total_s))


def _stolen_s() -> float:
    """Return for how long the host has let this machine's CPUs wait, all of them together."""
    _, *ticks = Path('/proc/stat').read_text().splitlines()[0].split()
    return int(ticks[_STEAL]) / os.sysconf('SC_CLK_TCK')


def _run_delays_ns(pid: int) -> dict[str, int]:
    delays = {}
    with contextlib.suppress(OSError):
        for task in Path(f'/proc/{pid}/task').iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended
                delays[task.name] = int((task / 'schedstat').read_text().split()[1])
    return delays
