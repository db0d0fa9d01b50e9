"""What the numbers of an action mean on a joint-controlled robot.

A gripper with separate commands is a joint like the others, except that its actions mean open or
closed and the joint goes to one of two positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vla_policy_node.control.action_spec import ActionLayout

# Actions of a training set may lie outside a joint's bounds by this share of its range.
_OUTSIDE_SHARE = 0.25


@dataclass(frozen=True)
class JointGripper:
    """How actions open and close a gripper.

    open, closed: the actions that mean so. threshold, dead_band: as of `GripperLatch`.
    open_position, closed_position: of the joint.
    """

    open: float
    closed: float
    threshold: float
    dead_band: float
    open_position: float
    closed_position: float


@dataclass(frozen=True)
class MovedJoint:
    """One joint that is commanded: rad or m, per s, per s^2.

    scale: what an action of 1.0 is, a position or, `by_velocity`, a velocity.
    max_step: per control period. max_tracking_error: how far the measured position may be from
    the commanded one; 0: they are not compared.
    """

    name: str
    unit: str
    min_position: float
    max_position: float
    max_velocity: float
    max_acceleration: float
    max_step: float
    max_tracking_error: float
    scale: float = 1.0
    by_velocity: bool = False
    gripper: JointGripper | None = None


@dataclass(frozen=True, eq=False)
class JointMotion:
    """What the joints do in one control period; order of the specification.

    values: [N] where each joint is to be at the end of the period (rad or m; NaN before the first
    command), or, of those moved by velocity, how fast it goes (per s). steps: [N] the same as
    changes of position.
    """

    values: np.ndarray
    steps: np.ndarray


@dataclass(frozen=True)
class JointSpec:
    """The joints of a robot in the order of the numbers of an action."""

    joints: tuple[MovedJoint, ...]
    frame_id: str = ''  # joints have none

    @property
    def names(self) -> tuple[str, ...]:
        """Joints by name."""
        return tuple(joint.name for joint in self.joints)

    @cached_property
    def by_velocity(self) -> np.ndarray:
        """Whether each joint is moved by velocity, [N]."""
        return np.array([joint.by_velocity for joint in self.joints])

    @property
    def layout(self) -> ActionLayout:
        """Dimension, and which numbers are no grippers."""
        return ActionLayout(len(self.joints), [
            place for place, joint in enumerate(self.joints) if joint.gripper is None])

    def column(self, name: str) -> np.ndarray:
        """Return one field of all joints, [N]."""
        return np.array([getattr(joint, name) for joint in self.joints], np.float64)

    def check_range(self, low: Sequence[float], high: Sequence[float]) -> None:
        """Raise ValueError if actions in this range cannot mean what the specification says.

        low, high: [N] each, 1st and 99th percentile of the actions a policy was trained on.
        """
        if len(low) != len(self.joints) or len(high) != len(self.joints):
            raise ValueError(
                f'The checkpoint was trained on actions of {len(low)} dimensions; this robot '
                f'takes {len(self.joints)}.')
        for joint, ends in zip(self.joints, zip(low, high, strict=True), strict=True):
            if joint.gripper is not None or joint.by_velocity:
                continue
            least, most = sorted(end * joint.scale for end in ends)
            spare = _OUTSIDE_SHARE * (joint.max_position - joint.min_position)
            if least < joint.min_position - spare or most > joint.max_position + spare:
                raise ValueError(
                    f"The actions of the checkpoint move the joint '{joint.name}' from {least:g} "
                    f'to {most:g} {joint.unit}; its bounds are {joint.min_position:g} to '
                    f'{joint.max_position:g}. Check its scale, its bounds and the order of the '
                    'joints.')
