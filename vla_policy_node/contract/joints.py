"""What a contract says of the joints that are moved, in the terms of `control`."""

from __future__ import annotations

from vla_policy_node.contract.parts import GripperGroup, Joint, JointGroup
from vla_policy_node.contract.robot import RobotContract
from vla_policy_node.contract.state import JOINT_STATE_TYPE
from vla_policy_node.control.joint_spec import JointGripper, JointSpec, MovedJoint


def is_moved_by_joints(robot: RobotContract) -> bool:
    """Return whether every group of the actions moves joints, grippers included."""
    return all(isinstance(group, JointGroup) or (
        isinstance(group, GripperGroup) and group.joint is not None) for group in robot.actions)


def joint_spec(robot: RobotContract) -> JointSpec:
    """Return the joints of a robot for which `is_moved_by_joints`, in the order of an action."""
    joints: list[MovedJoint] = []
    for group in robot.actions:
        if isinstance(group, JointGroup):
            joints += [_moved(joint, group.kind == 'joint_velocity') for joint in group.joints]
        elif isinstance(group, GripperGroup) and group.joint is not None:
            joints.append(_moved(group.joint, gripper=JointGripper(
                group.open, group.closed, group.threshold, group.dead_band,
                group.open_position, group.closed_position)))
    return JointSpec(tuple(joints))


def joint_streams(robot: RobotContract) -> dict[str, tuple[int, ...]]:
    """Return the sources that measure moved joints, and the places of these in an action.

    A joint that two sources measure is the first one's.
    """
    left = {name: place for place, name in enumerate(joint_spec(robot).names)}
    streams = {}
    for source in robot.state:
        if source.type == JOINT_STATE_TYPE:
            measured = {value.joint for value in source.values if value.field == 'position'}
            if places := tuple(left.pop(name) for name in [*left] if name in measured):
                streams[source.name] = places
    return streams


def _moved(
    joint: Joint, by_velocity: bool = False, gripper: JointGripper | None = None
) -> MovedJoint:
    return MovedJoint(
        joint.name, joint.unit, joint.min_position, joint.max_position, joint.max_velocity,
        joint.max_acceleration, joint.max_step, joint.max_tracking_error, joint.scale,
        by_velocity, gripper)
