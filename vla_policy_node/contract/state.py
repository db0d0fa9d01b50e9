"""The state of a robot contract: topics with measurements, and the numbers taken of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vla_policy_node.contract.parts import (
    LONGEST,
    ContractError,
    check_choice,
    check_name,
    check_topic,
)

POSE_TYPE = 'geometry_msgs/msg/PoseStamped'
TRANSFORM_TYPE = 'tf2_msgs/msg/TFMessage'
JOINT_STATE_TYPE = 'sensor_msgs/msg/JointState'
STATE_TYPES = (POSE_TYPE, TRANSFORM_TYPE, JOINT_STATE_TYPE)
# Position in the frame of the commands, then its rotation: as a vector, as fixed-axis angles (x
# first), as a quaternion.
POSE_FIELDS = (
    'x', 'y', 'z', 'rx', 'ry', 'rz', 'euler_x', 'euler_y', 'euler_z', 'qx', 'qy', 'qz', 'qw')
JOINT_FIELDS = ('position', 'velocity', 'effort')


@dataclass(frozen=True)
class StateValue:
    """One number of the state that the policy is told: scale * measured + offset.

    field: one of POSE_FIELDS of a pose; of a joint one of JOINT_FIELDS. joint: its name in the
    message; '' in a source without joint names, whose messages are read by place.
    unit: of the number that the policy is told, for people.
    """

    name: str
    unit: str
    field: str
    joint: str = ''
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        check_name('name', self.name)
        if not self.unit or len(self.unit) > 20:
            raise ContractError(
                f"unit is '{self.unit[:60]}'; say in a word what the number is measured in.")
        if len(self.joint) > LONGEST:
            raise ContractError(f'joint has more than {LONGEST} characters; shorten the name.')
        if not (math.isfinite(self.scale) and self.scale != 0.0):
            raise ContractError(f'scale is {self.scale}; it must be a number other than zero.')
        if not math.isfinite(self.offset):
            raise ContractError(f'offset is {self.offset}; it must be a finite number.')


@dataclass(frozen=True)
class StateSource:
    """One topic with measurements, and the numbers that the policy is told of them, in order.

    A source of joints either names the joint of every value, and then the order in the message is
    of no importance, others may be in it, and one joint may be told twice: a gripper with one
    joint to a policy that knows two fingers. Or it names none, and then a message has exactly as
    many joints as there are values, in their order.

    parent, child: of transforms, the frames between which the pose is. Static transforms are read
    from '<topic>_static'.
    """

    name: str
    topic: str
    type: str
    values: tuple[StateValue, ...] = ()
    parent: str = ''
    child: str = ''

    def __post_init__(self) -> None:
        check_name('name', self.name)
        check_topic('topic', self.topic)
        check_choice('type', self.type, STATE_TYPES)
        for name in ('parent', 'child'):
            _check_frame(name, getattr(self, name), self.type == TRANSFORM_TYPE)
        if self.parent and self.parent == self.child:
            raise ContractError(f"child is '{self.child}' as parent is; name two frames.")
        fields = POSE_FIELDS if self.is_pose else JOINT_FIELDS
        for i, value in enumerate(self.values):
            check_choice(f'values[{i}].field', value.field, fields)
            if self.is_pose and value.joint:
                raise ContractError(
                    f"values[{i}].joint is '{value.joint}'; a pose has no joints, remove it.")
        if len({bool(value.joint) for value in self.values}) > 1:
            raise ContractError(
                'values name a joint here and none there; name the joint of every value, or of '
                'none if the messages have exactly these joints in this order.')
        if self.is_pose and len({value.field for value in self.values}) < len(
                self.values):
            raise ContractError('values have the same field of the pose twice; remove one.')

    @property
    def is_pose(self) -> bool:
        """Whether it measures a pose, by messages of that kind or by transforms."""
        return self.type != JOINT_STATE_TYPE

    @property
    def joints(self) -> tuple[str, ...]:
        """Joints by name, each once, in the order of the values; empty if read by place."""
        return tuple(dict.fromkeys(value.joint for value in self.values if value.joint))


def _check_frame(field: str, frame: str, is_wanted: bool) -> None:
    if not is_wanted and frame:
        raise ContractError(
            f"{field} is '{frame[:60]}'; only a source of {TRANSFORM_TYPE} has it, remove it.")
    if is_wanted and not frame:
        raise ContractError(f'{field} is missing; it must be a text, the name of a frame.')
    if frame[:1] == '/' or len(frame) > LONGEST:
        raise ContractError(
            f"{field} is '{frame[:60]}'; it must be the name of a frame, without leading slash.")
