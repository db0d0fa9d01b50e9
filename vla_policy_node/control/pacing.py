"""Decides when a command is due: once per control period, and never later than the silence bound.

A robot that gets no commands keeps doing what it did last. The gap between two commands is
therefore bounded on a steady clock, which no step of the system clock, stopped `/clock` or busy
peer delays.
"""

from enum import Enum

# After so many periods of a steady clock without a command the robot is told to stand still: soon
# enough that two never pass in silence, looked at every quarter of one. Shorter, and the jitter of
# a busy machine would be silence.
SILENCE_PERIODS = 1.5


class Beat(Enum):
    """Why a command is due."""

    TICK = 'tick'  # the next control period has come
    SILENCE = 'silence'  # the node's clock does not get there: hold


class Pacing(Enum):
    """Which clock starts the next control period."""

    STEADY = 'steady'  # the steady clock, for a robot on the system's clock
    CLOCK = 'clock'  # the node's clock, for simulated time
    OBSERVATION = 'observation'  # somebody else commands, in lock-step; only silence is watched


class Pacer:
    """Says when a command is due.

    period_ns: control period. silence_ns: time on the steady clock without any command after
    which one is due whatever the node's clock says; unused for Pacing.STEADY.
    All times are integer nanoseconds: `steady_ns` on a clock that never steps, `now_ns` on the
    node's. Not thread-safe, except `sent`.
    """

    def __init__(self, pacing: Pacing, period_ns: int, silence_ns: int, steady_ns: int,
                 now_ns: int):
        if period_ns <= 0 or silence_ns <= 0:
            raise ValueError(f'The control period ({period_ns} ns) and the longest silence '
                             f'({silence_ns} ns) must be positive.')
        self._pacing = pacing
        self._period_ns = period_ns
        self._silence_ns = silence_ns
        self._due_ns = (steady_ns if pacing is Pacing.STEADY else now_ns) + period_ns
        self._seen_ns = now_ns
        self._sent_ns = steady_ns
        self.late_ns = 0  # at the last Beat.TICK: how long its period had begun

    def sent(self, steady_ns: int) -> None:
        """Record that a command was sent, whoever sent it (any thread)."""
        self._sent_ns = steady_ns

    def poll(self, steady_ns: int, now_ns: int) -> Beat | None:
        """Return why a command is due now, or None. Each beat is reported once."""
        if self._pacing is not Pacing.OBSERVATION and self._period_is_over(steady_ns, now_ns):
            return Beat.TICK
        if self._pacing is not Pacing.STEADY and steady_ns - self._sent_ns >= self._silence_ns:
            self._sent_ns = steady_ns
            return Beat.SILENCE
        return None

    def wait_ns(self, steady_ns: int) -> int:
        """Return how long nothing will be due unless the node's clock moves."""
        due_ns = (self._due_ns if self._pacing is Pacing.STEADY
                  else self._sent_ns + self._silence_ns)
        return max(0, due_ns - steady_ns)

    def _period_is_over(self, steady_ns: int, now_ns: int) -> bool:
        clock_ns = steady_ns if self._pacing is Pacing.STEADY else now_ns
        if clock_ns < self._seen_ns and self._pacing is Pacing.CLOCK:
            self._due_ns = clock_ns  # it went back: the old grid may be an hour away
        self._seen_ns = clock_ns
        if clock_ns < self._due_ns:
            return False
        # Missed periods are dropped: two commands at once would be one displacement too many.
        self.late_ns = (clock_ns - self._due_ns) % self._period_ns
        self._due_ns = clock_ns - self.late_ns + self._period_ns
        self._sent_ns = steady_ns
        return True
