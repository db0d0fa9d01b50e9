"""The command limiter: step, velocity, acceleration and workspace bounds on every command.

This is not a safety function. It bounds what a wrong action can do; it does not replace an
emergency stop in hardware.
"""

import math
import threading
from collections import Counter
from dataclasses import dataclass, fields

import numpy as np

from vla_policy_node.control.action_spec import EndEffectorDelta
from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.robot_state import POSE

# Scaling to a limit lands this far inside it, so that rounding never lands outside.
_INSIDE = 1.0 - 1e-12
# A bound outside this range is a typing error.
_SMALLEST, _LARGEST = 1e-6, 1e6
_SHORTEST_PERIOD_S, _LONGEST_PERIOD_S = 1e-4, 100.0
_FURTHEST_M = 1e3
# A pose further outside the workspace than this is wrong: the arm cannot be there.
_REACH_OUTSIDE_M = 1.0


@dataclass(frozen=True, eq=False)
class Box:
    """Positions low_m to high_m [3], both inclusive."""

    low_m: np.ndarray
    high_m: np.ndarray


@dataclass(frozen=True)
class Limits:
    """Bounds of the end-effector motion; the workspace is in the frame of the deltas.

    Velocities and accelerations follow from the deltas and the control period.
    workspace_min_m, workspace_max_m: all zeros in both: not set; then the workspace is
        default_workspace_half_m to each side of where the goal began.
    Raises ValueError for a bound that is not positive or absurd, and for an empty workspace.
    """

    max_step_translation_m: float
    max_step_rotation_rad: float
    max_linear_velocity_m_s: float
    max_angular_velocity_rad_s: float
    max_linear_acceleration_m_s2: float
    max_angular_acceleration_rad_s2: float
    workspace_min_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    workspace_max_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    default_workspace_half_m: float = 0.15

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if not f.name.startswith('workspace')):
            value = getattr(self, name)
            if not _SMALLEST <= value <= _LARGEST:
                raise ValueError(
                    f'{name} is {value}; it must lie between {_SMALLEST:g} and {_LARGEST:g}.'
                )
        for name in ('workspace_min_m', 'workspace_max_m'):
            corner = getattr(self, name)
            if len(corner) != 3 or not all(abs(value) <= _FURTHEST_M for value in corner):
                raise ValueError(
                    f'{name} is {corner}; it needs three finite numbers (x, y, z) within '
                    f'{_FURTHEST_M:g} m.'
                )
        if not self.has_workspace:
            return
        for axis, low, high in zip('xyz', self.workspace_min_m, self.workspace_max_m, strict=True):
            if low >= high:
                raise ValueError(
                    f'The workspace is empty in {axis}: its minimum {low} m is not below its '
                    f'maximum {high} m.'
                )

    @property
    def has_workspace(self) -> bool:
        """Whether a workspace was set."""
        return any(self.workspace_min_m) or any(self.workspace_max_m)

    def workspace(self, origin_m: np.ndarray) -> Box:
        """Return the workspace of a goal that began at origin_m [3]."""
        if self.has_workspace:
            return Box(np.array(self.workspace_min_m), np.array(self.workspace_max_m))
        half_m = self.default_workspace_half_m
        return Box(origin_m - half_m, origin_m + half_m)


@dataclass(frozen=True, eq=False)
class LimitedDelta:
    """What may be sent, and the names of the rules that changed it (empty if none did)."""

    delta: EndEffectorDelta
    rules: tuple[str, ...]


class CommandLimiter:
    """Brings every delta inside all limits at once.

    1. Step and velocity: the vector is shortened, its direction stays.
    2. Workspace: each axis is clipped so that braking at the acceleration limit still stops in
       front of the wall. Clipping at the wall itself would be too late: the acceleration limit
       would then forbid the stop. The way back inside is always open.
    3. Acceleration: the result goes as far from the last sent delta as the limit allows, within
       the set that 1 and 2 left over.

    2 and 3 can only conflict if the measured position contradicts the commands (the arm was
    pushed); the workspace then wins and the arm brakes harder.
    Not thread-safe, except `counts`: the commander calls it under its lock.
    """

    def __init__(self, limits: Limits, period_s: float):
        if not _SHORTEST_PERIOD_S <= period_s <= _LONGEST_PERIOD_S:
            raise ValueError(
                f'The control period is {period_s} s; it must lie between {_SHORTEST_PERIOD_S:g} '
                f'and {_LONGEST_PERIOD_S:g} s.'
            )
        self.limits = limits
        self.period_s = period_s
        wall = 'workspace' if limits.has_workspace else 'default_workspace'
        self._linear = _VectorLimiter(
            ('step_translation', 'linear_velocity', wall, 'linear_acceleration'),
            max_step=limits.max_step_translation_m,
            max_velocity_step=limits.max_linear_velocity_m_s * period_s,
            max_change=limits.max_linear_acceleration_m_s2 * period_s**2,
        )
        self._angular = _VectorLimiter(
            ('step_rotation', 'angular_velocity', 'never', 'angular_acceleration'),
            max_step=limits.max_step_rotation_rad,
            max_velocity_step=limits.max_angular_velocity_rad_s * period_s,
            max_change=limits.max_angular_acceleration_rad_s2 * period_s**2,
        )
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def apply(
        self, delta: EndEffectorDelta, position_m: np.ndarray, workspace: Box, source: str = POSE
    ) -> LimitedDelta:
        """Return the delta to send, and remember it as sent.

        position_m: [3], where the end effector is before it, as `source` says. Raises HoldError
        for a delta that is not finite (ACTION_INVALID) and for a position that is not, or is far
        outside of the workspace (INPUT_INVALID); what was sent last is then unchanged.
        """
        _check_finite(delta)
        _check_near(position_m, workspace, source)
        # Three axes that each brake by 1/sqrt(3) of the limit stay within it together.
        axis_change_m = self._linear.max_change / math.sqrt(3.0)
        low_m = -stoppable_step(position_m - workspace.low_m, axis_change_m)
        high_m = stoppable_step(workspace.high_m - position_m, axis_change_m)
        translation_m, linear = self._linear.apply(delta.translation_m, low_m, high_m)
        rotation_rad, angular = self._angular.apply(delta.rotation_rad, -np.inf, np.inf)
        rules = (*linear, *angular)
        with self._lock:
            self._counts.update(rules)
        return LimitedDelta(EndEffectorDelta(translation_m, rotation_rad, delta.gripper), rules)

    def reset(self) -> None:
        """Assume that the robot stands still; call this after every hold."""
        self._linear.last = np.zeros(3)
        self._angular.last = np.zeros(3)

    def count_on(self, former: 'CommandLimiter') -> None:
        """Continue the counts of a limiter with other limits."""
        counts = former.counts()
        with self._lock:
            self._counts = Counter(counts)

    def counts(self) -> dict[str, int]:
        """Return how often each rule changed a command, by name (any thread)."""
        with self._lock:
            return dict(self._counts)


class _VectorLimiter:
    """The rules that translation and rotation share; all quantities are per control period."""

    def __init__(
        self,
        rules: tuple[str, str, str, str],
        max_step: float,
        max_velocity_step: float,
        max_change: float,
    ):
        self._step_rule, self._velocity_rule, self._wall_rule, self._acceleration_rule = rules
        self._max_step = max_step
        self._max_velocity_step = max_velocity_step
        self.max_change = max_change
        self.last = np.zeros(3)

    def apply(
        self, vector: np.ndarray, low: np.ndarray | float, high: np.ndarray | float
    ) -> tuple[np.ndarray, list[str]]:
        """Return the limited vector [3] and the rules that changed it; low <= 0 <= high."""
        rules = []
        vector = np.array(vector, dtype=np.float64)  # a copy: `last` must not change afterwards
        norm = math.hypot(*vector)
        if norm > self._max_step:
            rules.append(self._step_rule)
        if norm > self._max_velocity_step:
            rules.append(self._velocity_rule)
        if rules:
            vector = vector * (min(self._max_step, self._max_velocity_step) / norm * _INSIDE)
        goal = np.clip(vector, low, high)
        if np.array_equal(goal, vector):
            goal = vector  # bit for bit: the clipped one has lost the sign of a zero
        else:
            rules.append(self._wall_rule)
        # Where the last delta ends up if only the workspace acts: the gentlest way to obey it.
        start = np.clip(self.last, low, high)
        if math.hypot(*(goal - self.last)) > self.max_change:
            rules.append(self._acceleration_rule)
            goal = np.clip(_leave_ball(start, goal, self.last, self.max_change), low, high)
        self.last = goal
        return goal, rules


def _leave_ball(
    start: np.ndarray, goal: np.ndarray, centre: np.ndarray, radius: float
) -> np.ndarray:
    """Return the point on the way from start to goal where it leaves the ball.

    start itself if it is not inside; goal must be outside.
    """
    offset, way = start - centre, goal - start
    radius *= _INSIDE
    remaining = radius**2 - float(offset @ offset)
    if remaining <= 0.0:
        return start
    along, length2 = float(offset @ way), float(way @ way)
    return start + way * ((math.sqrt(along**2 + length2 * remaining) - along) / length2)


def stoppable_step(distance: np.ndarray, change: np.ndarray | float) -> np.ndarray:
    """Return the longest step [N] after which steps that shrink by `change` stop in `distance`.

    Steps v, v - a, v - 2a, ... down to zero cover (n + 1) v - a n (n + 1) / 2 with n = floor(v/a).
    Zero where the distance is negative.
    """
    distance = np.maximum(distance, 0.0)
    n = np.floor((np.sqrt(1.0 + 8.0 * distance / change) - 1.0) / 2.0)
    return (distance + change * n * (n + 1.0) / 2.0) / (n + 1.0)


def _check_finite(delta: EndEffectorDelta) -> None:
    if not (
        np.isfinite(delta.translation_m).all()
        and np.isfinite(delta.rotation_rad).all()
        and math.isfinite(delta.gripper)
    ):
        raise HoldError(
            Hold(HoldReason.ACTION_INVALID),
            'The end-effector delta is not finite; check the policy and its statistics.',
        )


def _check_near(position_m: np.ndarray, workspace: Box, source: str) -> None:
    if not (
        (position_m >= workspace.low_m - _REACH_OUTSIDE_M).all()
        and (position_m <= workspace.high_m + _REACH_OUTSIDE_M).all()
    ):
        raise HoldError(
            Hold(HoldReason.INPUT_INVALID, source),
            f'The end effector is said to be at {position_m} m, not within {_REACH_OUTSIDE_M:g} m '
            'of the workspace; check the state publisher, its frame and the workspace.',
        )
