"""Serialised messages of one pair to what the policy takes."""

import math

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Header

from vla_policy_node.control.freeze import FreezeDetector
from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.pairing import Pair
from vla_policy_node.control.rotations import quaternion_to_axis_angle
from vla_policy_node.nodes.images import ImageError, decode_compressed, decode_image
from vla_policy_node.nodes.streams import CAMERAS, GRIPPER, POSE
from vla_policy_node.policy import Observation

# Encapsulation and stamp of a serialised message: they differ where the picture does not.
_STAMP_BYTES = 12


def decode_pair(
    pair: Pair, instruction: str, frame_id: str, compressed: bool, freeze: FreezeDetector
) -> tuple[Observation, dict[str, Header]]:
    """Return the observation and the header of each camera's message (worker thread).

    Raises HoldError (INPUT_INVALID) naming the stream that cannot be used.
    """
    images, headers = {}, {}
    for camera in CAMERAS:
        raw = pair.payloads[camera]
        freeze.observe(camera, memoryview(raw)[_STAMP_BYTES:])
        msg = deserialize_message(raw, CompressedImage if compressed else Image)
        try:
            images[camera] = decode_compressed(msg) if compressed else decode_image(msg)
        except ImageError as error:
            raise HoldError(Hold(HoldReason.INPUT_INVALID, camera), str(error)) from error
        headers[camera] = msg.header
    proprio = np.concatenate([decode_pose(pair.payloads[POSE], frame_id),
                              _decode_gripper(pair.payloads[GRIPPER])])
    return Observation(images, proprio, instruction), headers


def decode_pose(raw: bytes, frame_id: str) -> np.ndarray:
    """Return position (m) and axis-angle (rad) [6] of a serialised PoseStamped.

    Raises HoldError (INPUT_INVALID) if it is not a finite pose with a unit quaternion in the
    frame of the commands: a workspace checked in another frame protects nothing.
    """
    msg = deserialize_message(raw, PoseStamped)
    if msg.header.frame_id != frame_id:
        raise HoldError(
            Hold(HoldReason.INPUT_INVALID, POSE),
            f"The end-effector pose is in frame '{msg.header.frame_id}', commands are in "
            f"'{frame_id}'; publish the pose in that frame or set frame_id.",
        )
    pose = msg.pose
    p, q = pose.position, pose.orientation
    norm = math.hypot(q.x, q.y, q.z, q.w)
    if not (math.isfinite(p.x + p.y + p.z) and abs(norm - 1.0) < 0.01):
        raise HoldError(
            Hold(HoldReason.INPUT_INVALID, POSE),
            'The end-effector pose is not finite or its quaternion has not length 1; check the '
            'state publisher.',
        )
    quaternion = np.array([q.x, q.y, q.z, q.w]) / norm
    return np.concatenate([[p.x, p.y, p.z], quaternion_to_axis_angle(quaternion)])


def _decode_gripper(raw: bytes) -> np.ndarray:
    positions = np.array(deserialize_message(raw, JointState).position)
    if positions.shape != (2,) or not np.isfinite(positions).all():
        raise HoldError(
            Hold(HoldReason.INPUT_INVALID, GRIPPER),
            'The gripper state needs exactly two finite joint positions; publish the two fingers '
            'alone, without the joints of the arm.',
        )
    return positions
