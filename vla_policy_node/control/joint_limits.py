"""The joint limiter: step, velocity, acceleration and position bounds for each joint.

Like the end-effector limiter, it is not a safety function: it bounds what a wrong action can do.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

import numpy as np

from vla_policy_node.control.joint_spec import JointSpec
from vla_policy_node.control.limits import stoppable_step

# Scaling to a limit lands this far inside it, so that rounding never lands outside.
_INSIDE = 1.0 - 1e-12


@dataclass(frozen=True, eq=False)
class JointRoom:
    """Where the joints may be already, each [N]: nowhere below `low` and nowhere above `high`."""

    low: np.ndarray
    high: np.ndarray


class JointLimiter:
    """Brings the steps of all joints inside all limits at once; quantities are per period.

    1. Step and velocity bound the length of a step.
    2. A joint that goes to a position brakes in front of it, else it would overshoot.
    3. Position bounds: braking at the acceleration limit still stops in front of them. The way
       back inside is always open.
    4. Acceleration: the result goes as far from the last step as the limit allows, within the set
       that 3 left over. They only conflict if the measured position contradicts the commands; the
       bounds then win and the joint brakes harder.
    Not thread-safe, except `counts`.
    """

    def __init__(self, spec: JointSpec, period_s: float):
        self._by_velocity = spec.by_velocity
        self._low, self._high = spec.column('min_position'), spec.column('max_position')
        self._max_step = spec.column('max_step')
        self._max_velocity_step = spec.column('max_velocity') * period_s
        self._longest = np.minimum(self._max_step, self._max_velocity_step) * _INSIDE
        self._change = spec.column('max_acceleration') * period_s**2
        self._last = np.zeros(len(spec.joints))
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def apply(
        self, wanted: np.ndarray, room: JointRoom
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the steps [N] to send, and the rules that changed those wanted; remember them.

        wanted: [N], finite. room: of joints that go to positions, the commanded ones.
        """
        length = np.abs(wanted)
        rules = []
        if (length > self._max_step).any():
            rules.append('joint_step')
        if (length > self._max_velocity_step).any():
            rules.append('joint_velocity')
        short = np.clip(wanted, -self._longest, self._longest)
        stops = np.where(
            self._by_velocity, short, np.copysign(stoppable_step(length, self._change), wanted))
        braked = np.where(np.abs(stops) < np.abs(short), stops, short)
        low = -np.minimum(stoppable_step(room.low - self._low, self._change), self._longest)
        high = np.minimum(stoppable_step(self._high - room.high, self._change), self._longest)
        inside = np.clip(braked, low, high)
        if (inside != braked).any():
            rules.append('joint_position')
        most = self._change * _INSIDE
        steps = np.clip(np.clip(inside, self._last - most, self._last + most), low, high)
        if (steps != inside).any() or (braked != short).any():
            rules.append('joint_acceleration')
        self._last = steps
        with self._lock:
            self._counts.update(rules)
        return steps, tuple(rules)

    def count(self, rule: str) -> None:
        """Count a rule that was applied elsewhere."""
        with self._lock:
            self._counts[rule] += 1

    def reset(self) -> None:
        """Assume that the robot stands still; call this after every hold."""
        self._last = np.zeros(len(self._last))

    def count_on(self, former: JointLimiter) -> None:
        """Continue the counts of another limiter of the same joints."""
        counts = former.counts()
        with self._lock:
            self._counts = Counter(counts)

    def counts(self) -> dict[str, int]:
        """Return how often each rule changed a command, by name (any thread)."""
        with self._lock:
            return dict(self._counts)
