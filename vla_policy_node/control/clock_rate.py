"""Judges simulated time: whether it comes, in fine steps, and nearly in real time."""

from collections import deque

# Arrivals from which the rate is judged, and the fewest.
_WINDOW, _FEWEST = 20, 5
# With steps longer than this control periods are skipped.
_COARSE_PERIODS = 1.5


class ClockRate:
    """Watches a clock that messages set. One thread tells it, any may ask.

    period_ns: control period. patience_ns: real time between two commands that is allowed.
    stopped_ns: real time after which a clock that does not move is said to stand still. All
        three None: somebody waits for us with each step of the clock, so any rate is right.
    """

    def __init__(self, period_ns: int | None, patience_ns: int | None, stopped_ns: int | None):
        self._period_ns = period_ns
        self._patience_ns = patience_ns
        self._stopped_ns = stopped_ns
        self._arrivals: deque[tuple[int, int]] = deque(maxlen=_WINDOW)

    def arrived(self, now_ns: int, steady_ns: int) -> None:
        """Take a time that the clock was set to, and the real time when it was."""
        if self._arrivals:
            last_ns, heard_ns = self._arrivals[-1]
            paused = self._stopped_ns and steady_ns - heard_ns > self._stopped_ns
            if now_ns < last_ns or paused:  # neither says anything of the rate from now on
                self._arrivals.clear()
        self._arrivals.append((now_ns, steady_ns))

    def trouble(self, now_ns: int, steady_ns: int) -> tuple[str, str]:
        """Return what is wrong with the clock and a sentence part that says so, or two ''."""
        arrivals = tuple(self._arrivals)
        if now_ns == 0:
            return 'none', 'no /clock: nothing has come on it yet, and use_sim_time is true'
        if not (self._period_ns and self._patience_ns and self._stopped_ns and arrivals):
            return '', ''
        silent_ns = steady_ns - arrivals[-1][1]
        if silent_ns > self._stopped_ns:
            return 'stopped', f'no /clock for {silent_ns / 1e9:.1f} s'
        if len(arrivals) < _FEWEST:
            return '', ''
        went_ns, passed_ns = (arrivals[-1][i] - arrivals[0][i] for i in (0, 1))
        step_ns = went_ns / (len(arrivals) - 1)
        if step_ns > _COARSE_PERIODS * self._period_ns:
            return 'coarse', (
                f'/clock is too slow: it comes every {step_ns / 1e9:.3g} s of its time, and the '
                f'control period is {self._period_ns / 1e9:.3g} s; publish it at '
                f'{1e9 / self._period_ns:.3g} Hz or more')
        share = max(went_ns / max(passed_ns, 1), 1e-3)
        if share * self._patience_ns < self._period_ns:  # it is a hold before each command
            return 'slow', (
                f'/clock is too slow: it runs at {share:.2f} of real time; set clock_timeout_s to '
                f'{1.5 * self._period_ns / share / 1e9:.2g} or more')
        return '', ''
