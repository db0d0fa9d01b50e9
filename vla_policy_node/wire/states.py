"""Converts serialised messages of the robot's state to numbers."""

import math

import numpy as np

from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.robot_state import MeasuredPose
from vla_policy_node.control.rotations import quaternion_to_axis_angle
from vla_policy_node.wire.cdr import MessageError, read_joint_state, read_pose_stamped
from vla_policy_node.wire.streams import GRIPPER, POSE


def decode_pose(raw: bytes, frame_id: str) -> MeasuredPose:
    """Return the pose of a serialised PoseStamped; some 15 microseconds, any thread.

    Raises HoldError (INPUT_INVALID) if it is not a finite pose with a unit quaternion in the
    frame of the commands: a workspace checked in another frame protects nothing.
    """
    try:
        stamp_ns, frame, position_m, quaternion = read_pose_stamped(raw)
    except MessageError as error:
        raise _unusable(POSE, str(error)) from error
    if frame != frame_id:
        raise _unusable(
            POSE,
            f"The end-effector pose is in frame '{frame}', commands are in '{frame_id}'; publish "
            'the pose in that frame or set frame_id.')
    norm = math.hypot(*quaternion)
    if not (all(map(math.isfinite, position_m)) and abs(norm - 1.0) < 0.01):
        raise _unusable(
            POSE,
            'The end-effector pose is not finite or its quaternion has not length 1; check the '
            'state publisher.')
    rotation_rad = quaternion_to_axis_angle(np.array(quaternion) / norm)
    return MeasuredPose(stamp_ns, np.array(position_m), rotation_rad)


def decode_gripper(raw: bytes) -> np.ndarray:
    """Return both finger positions (m) [2] of a serialised JointState, any thread.

    Raises HoldError (INPUT_INVALID) if it does not hold exactly two finite positions.
    """
    try:
        _, _, positions_m = read_joint_state(raw)
    except MessageError as error:
        raise _unusable(GRIPPER, str(error)) from error
    if len(positions_m) != 2 or not all(map(math.isfinite, positions_m)):
        raise _unusable(
            GRIPPER,
            'The gripper state needs exactly two finite joint positions; publish the two fingers '
            'alone, without the joints of the arm.')
    return np.array(positions_m)


def _unusable(stream: str, sentence: str) -> HoldError:
    return HoldError(Hold(HoldReason.INPUT_INVALID, stream), sentence)
