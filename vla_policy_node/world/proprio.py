"""The proprioceptive state that a policy gets."""

import numpy as np

from vla_policy_node.control.rotations import quaternion_to_axis_angle
from vla_policy_node.world.libero_world import RobotState


def proprio_of(state: RobotState) -> np.ndarray:
    """Return proprio [8]: position (m), axis-angle (rad), both fingers (m).

    The same numbers as the policy node makes of the messages about this state.
    """
    return np.concatenate([*pose_of(state), state.gripper_qpos])


def pose_of(state: RobotState) -> tuple[np.ndarray, np.ndarray]:
    """Return position (m) and rotation vector (rad) [3] each of the hand."""
    return state.position, quaternion_to_axis_angle(state.quaternion_xyzw)
