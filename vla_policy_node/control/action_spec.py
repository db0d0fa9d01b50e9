"""Units, frame and gripper polarity of actions, and their conversion into end-effector motion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.rotations import euler_xyz_to_axis_angle

ACTION_DIMENSION = 7
GRIPPER = 6
# The longest chunk that vla_msgs/ActionChunk can describe.
MAX_CHUNK_LENGTH = 255
# Beyond this, a number is not an action in any unit, and its square would overflow.
_LARGEST_ACTION = 1e6
ROTATION_FORMS = ('axis_angle', 'euler_xyz')
# Displacements per control period: larger than any arm makes, and too small to notice.
_LARGEST_STEP_M, _LARGEST_STEP_RAD, _SMALLEST_STEP_M = 0.5, np.pi, 1e-4


@dataclass(frozen=True)
class ActionLayout:
    """How many numbers an action has, and which of them are motion, to be averaged.

    What is no motion is a gripper, which is open or closed.
    """

    dimension: int
    motion: slice | list[int]


# Translation, rotation, gripper.
END_EFFECTOR_LAYOUT = ActionLayout(ACTION_DIMENSION, slice(0, GRIPPER))


@dataclass(frozen=True, eq=False)
class EndEffectorDelta:
    """Motion of the end effector over one control period, in the frame of its ActionSpec.

    translation_m: [3]. rotation_rad: [3], rotation vector. gripper: 1 open, 0 closed.
    """

    translation_m: np.ndarray
    rotation_rad: np.ndarray
    gripper: float


@dataclass(frozen=True)
class ActionSpec:
    """Units, frame and gripper polarity of the actions a policy was trained on.

    Dimensions 0-2 are a translation, 3-5 a rotation in `rotation_form`, 6 the gripper. They
    differ between data sets and a wrong guess moves the robot the wrong way, so nothing is
    inferred. Raises ValueError for an unusable combination.
    """

    frame_id: str
    rotation_form: str
    translation_scale_m: float
    rotation_scale_rad: float
    gripper_open: float
    gripper_closed: float
    names: tuple[str, ...] = ('x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper')
    units: tuple[str, ...] = ('normalised',) * ACTION_DIMENSION
    layout: ClassVar[ActionLayout] = END_EFFECTOR_LAYOUT

    def __post_init__(self) -> None:
        if not self.frame_id:
            raise ValueError('The action frame_id is empty; name the frame of the deltas.')
        if self.rotation_form not in ROTATION_FORMS:
            raise ValueError(
                f"rotation_form '{self.rotation_form}' is unknown; "
                f'use one of {", ".join(ROTATION_FORMS)}.'
            )
        for name in ('translation_scale_m', 'rotation_scale_rad'):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise ValueError(f'{name} is {value}; it must be a positive number.')
        if not math.isfinite(self.gripper_open - self.gripper_closed):
            raise ValueError('gripper_open and gripper_closed must be finite numbers.')
        if self.gripper_open == self.gripper_closed:
            raise ValueError(
                f'gripper_open and gripper_closed are both {self.gripper_open}; '
                'they must differ to tell open from closed.'
            )
        for name in ('names', 'units'):
            if len(getattr(self, name)) != ACTION_DIMENSION:
                raise ValueError(
                    f'{name} has {len(getattr(self, name))} entries; '
                    f'an action has {ACTION_DIMENSION} dimensions.'
                )

    @classmethod
    def libero(cls, frame_id: str = 'base_link') -> 'ActionSpec':
        """Return the specification of the LIBERO data sets.

        The operational-space controller of robosuite maps [-1, 1] to 0.05 m and 0.5 rad in the
        frame of the robot base; OpenVLA-OFT stores the gripper as 1 open, 0 closed.
        """
        return cls(
            frame_id=frame_id,
            rotation_form='axis_angle',
            translation_scale_m=0.05,
            rotation_scale_rad=0.5,
            gripper_open=1.0,
            gripper_closed=0.0,
        )

    def check_range(self, low: Sequence[float], high: Sequence[float]) -> None:
        """Raise ValueError if actions in this range cannot mean what the specification says.

        low, high: [7] each, 1st and 99th percentile of the actions a policy was trained on.
        A fit proves nothing; a misfit means a wrong scale or another gripper convention.
        """
        ends_low, ends_high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if ends_low.shape != (ACTION_DIMENSION,) or ends_high.shape != ends_low.shape:
            raise ValueError(
                f'The checkpoint was trained on actions of {ends_low.size} dimensions; this robot '
                f'takes {ACTION_DIMENSION}.'
            )
        reach = np.maximum(np.abs(ends_low), np.abs(ends_high))
        step_m = self.translation_scale_m * reach[0:3].max()
        step_rad = self.rotation_scale_rad * reach[3:6].max()
        if not _SMALLEST_STEP_M <= step_m <= _LARGEST_STEP_M:
            raise ValueError(
                f'translation_scale_m {self.translation_scale_m:g} does not fit the checkpoint: '
                f'its translations reach {reach[0:3].max():g}, which would be {step_m:g} m in one '
                'control period.'
            )
        if step_rad > _LARGEST_STEP_RAD:
            raise ValueError(
                f'rotation_scale_rad {self.rotation_scale_rad:g} does not fit the checkpoint: its '
                f'rotations reach {reach[3:6].max():g}, which would be {step_rad:g} rad in one '
                'control period.'
            )
        ends, span = sorted((self.gripper_open, self.gripper_closed)), high[-1] - low[-1]
        # Data in which the gripper never moved says nothing about its end positions.
        if span > 0 and np.abs(np.array(ends) - (low[-1], high[-1])).max() > 0.25 * span:
            raise ValueError(
                f'gripper_open {self.gripper_open:g} and gripper_closed {self.gripper_closed:g} '
                'do not fit the checkpoint, whose gripper actions go from '
                f'{low[-1]:g} to {high[-1]:g}.'
            )

    def to_command(self, action: np.ndarray) -> EndEffectorDelta:
        """Convert one action [7] into metres, radians and a gripper opening of 0 to 1.

        Raises HoldError (ACTION_INVALID) for a non-finite or absurd action. Any thread.
        """
        action = checked_actions(np.asarray(action, dtype=np.float64)[None])[0]
        rotation = action[3:6] * self.rotation_scale_rad
        if self.rotation_form == 'euler_xyz':
            rotation = euler_xyz_to_axis_angle(rotation)
        opening = (action[GRIPPER] - self.gripper_closed) / (
            self.gripper_open - self.gripper_closed
        )
        return EndEffectorDelta(
            translation_m=action[0:3] * self.translation_scale_m,
            rotation_rad=rotation,
            gripper=min(1.0, max(0.0, float(opening))),
        )


def check_chunk_length(length: int) -> None:
    """Raise ValueError for a chunk that is too long for its message."""
    if length > MAX_CHUNK_LENGTH:
        raise ValueError(
            f'A chunk of {length} actions is too long; {MAX_CHUNK_LENGTH} are the most. '
            'Set chunk_length, or use another checkpoint.'
        )


def checked_actions(actions: np.ndarray, dimension: int = ACTION_DIMENSION) -> np.ndarray:
    """Return a read-only float64 copy of actions [K, dimension].

    Raises ValueError for another shape and for a chunk that is too long, HoldError
    (ACTION_INVALID) for numbers that are NaN, infinite or absurd.
    """
    actions = np.asarray(actions)
    if actions.ndim != 2 or actions.shape[0] < 1 or actions.shape[1] != dimension:
        raise ValueError(
            f'Actions have shape {actions.shape}; a chunk is [K, {dimension}] with K >= 1.'
        )
    check_chunk_length(len(actions))
    actions = np.array(actions, dtype=np.float64)
    if not (np.abs(actions) <= _LARGEST_ACTION).all():
        raise HoldError(
            Hold(HoldReason.ACTION_INVALID),
            f'The policy returned NaN or a number beyond {_LARGEST_ACTION:g}; check its '
            'checkpoint and statistics.',
        )
    actions.setflags(write=False)
    return actions


class GripperLatch:
    """Turns a continuous opening into open (1.0) or closed (0.0) without chatter.

    threshold: opening between closed and open. dead_band: full width of the band around it in
    which the last state is kept. Not thread-safe: the commander calls it under its lock.
    """

    def __init__(self, threshold: float = 0.5, dead_band: float = 0.2):
        self._close_below = threshold - 0.5 * dead_band
        self._open_above = threshold + 0.5 * dead_band
        if not (dead_band >= 0.0 and 0.0 <= self._close_below <= self._open_above <= 1.0):
            raise ValueError(
                f'Gripper threshold {threshold} with dead band {dead_band} leaves the range '
                '0 to 1; make the band narrower.'
            )
        self._threshold = threshold
        self._state: float | None = None

    def update(self, opening: float) -> float:
        """Return 1.0 or 0.0 for an opening of 0 to 1."""
        if self._state is None:
            self._state = float(opening >= self._threshold)
        elif opening > self._open_above:
            self._state = 1.0
        elif opening < self._close_below:
            self._state = 0.0
        return self._state

    def reset(self) -> None:
        """Forget the state; the next opening decides by the threshold alone."""
        self._state = None
