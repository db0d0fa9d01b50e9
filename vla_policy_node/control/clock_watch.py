"""Detects that the clock behind the stamps stops or steps, by comparison with a steady clock."""

from vla_policy_node.control.hold import Hold, HoldReason

# A clock that departs this far from the steady one was stepped; time servers slew by less.
_STEP_NS = 10_000_000
# A clock slower than this share of the steady one stands still.
_STANDING_SHARE = 0.1
_SHORTEST_NS = 1_000_000


class ClockWatch:
    """Compares both clocks every control period. Not thread-safe: only the commander uses it."""

    def __init__(self):
        self._last: tuple[int, int] | None = None
        self._offset_ns = 0
        self._stands = False

    def look(self, now_ns: int, steady_ns: int) -> int:
        """Return by how many ns the clock was stepped since the last call, usually 0."""
        if self._last is None:
            self._last, self._offset_ns = (now_ns, steady_ns), now_ns - steady_ns
            return 0
        went_ns, passed_ns = now_ns - self._last[0], steady_ns - self._last[1]
        self._last = now_ns, steady_ns
        if passed_ns >= _SHORTEST_NS:
            self._stands = 0 <= went_ns < _STANDING_SHARE * passed_ns
        step_ns = now_ns - steady_ns - self._offset_ns
        if abs(step_ns) <= _STEP_NS:
            return 0
        self._offset_ns += step_ns
        return step_ns

    def health(self) -> Hold | None:
        """Return a hold while the clock stands still."""
        return Hold(HoldReason.CLOCK_STOPPED) if self._stands else None
