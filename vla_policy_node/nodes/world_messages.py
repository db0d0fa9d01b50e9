"""Converts between the world and messages. Pure functions, any thread."""

import math

import cv2
import numpy as np
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import Header

from vla_msgs.msg import EndEffectorCommand
from vla_policy_node.world import actions
from vla_policy_node.world.libero_world import RobotState

FINGER_JOINTS = ('panda_finger_joint1', 'panda_finger_joint2')
_JPEG_QUALITY = 90


def to_action(command: EndEffectorCommand) -> np.ndarray:
    """Return a command as a LIBERO action [7]: motion in units, gripper -1 open to 1 closed.

    Raises ValueError if it is not finite.
    """
    t, r = command.translation, command.rotation
    action = actions.to_action((t.x, t.y, t.z), (r.x, r.y, r.z), command.gripper)
    if not np.isfinite(action).all():
        raise ValueError('The command is not finite; check the limits of whoever sends it.')
    return action


def to_pose(state: RobotState, header: Header) -> PoseStamped:
    """Return where the hand is."""
    x, y, z = map(float, state.position)
    qx, qy, qz, qw = map(float, state.quaternion_xyzw)
    return PoseStamped(
        header=header,
        pose=Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw)),
    )


def to_gripper_state(state: RobotState, header: Header) -> JointState:
    """Return both finger positions (m)."""
    return JointState(
        header=header, name=list(FINGER_JOINTS), position=state.gripper_qpos.tolist()
    )


def to_compressed(rgb: np.ndarray, header: Header) -> CompressedImage:
    """Return [H, W, 3] uint8 RGB as JPEG."""
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    _, jpeg = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return CompressedImage(header=header, format='jpeg', data=jpeg.tobytes())


def age_ms(now_ns: int, stamp_ns: int) -> float:
    """Return how old a stamp is, in ms; NaN for the zero stamp, which means there is none."""
    return (now_ns - stamp_ns) / 1e6 if stamp_ns else math.nan
