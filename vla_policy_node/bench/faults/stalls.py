"""How long this machine stopped everybody: no judge may blame a node for that."""

import bisect
import subprocess
import sys
import threading

_STEP_S = 0.005
_WATCH = f'''
import time
last = time.monotonic()
while True:
    time.sleep({_STEP_S})
    now = time.monotonic()
    if now - last > 4 * {_STEP_S}:
        print(last, now, flush=True)
    last = now
'''


class Stalls:
    """A process that does nothing but sleep, and notes when it was woken late.

    A context manager. Any thread may ask.
    """

    def __enter__(self) -> 'Stalls':
        """Begin to watch."""
        self._spans: list[tuple[float, float]] = []
        self._process = subprocess.Popen(
            [sys.executable, '-c', _WATCH], stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        """End."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._spans.append(tuple(map(float, line.split())))

    def longest_s(self, from_s: float, until_s: float) -> float:
        """Return the longest stall that touches a span of `time.monotonic`."""
        start = max(0, bisect.bisect_left(self._spans, (from_s,)) - 1)
        return max((min(b, until_s) - max(a, from_s) for a, b in self._spans[start:]
                    if a < until_s and b > from_s), default=0.0)
