"""Converts end-effector motion into actions of a LIBERO world."""

import numpy as np

# One unit of a LIBERO action (robosuite's OSC_POSE controller: output_max).
TRANSLATION_UNIT_M = 0.05
ROTATION_UNIT_RAD = 0.5
GRIPPER_OPEN = -1.0


def still(gripper: float) -> np.ndarray:
    """Return the LIBERO action [7] that moves nothing; gripper: of the action before it."""
    return np.array([0.0] * 6 + [gripper])


def to_action(translation_m: np.ndarray, rotation_rad: np.ndarray, gripper: float) -> np.ndarray:
    """Return a motion over one control period as a LIBERO action [7].

    translation_m: [3], rotation_rad: [3] rotation vector, both in the world frame. gripper: 1
    open, 0 closed; in the action it is -1 open to 1 closed.
    """
    return np.array([
        *(float(value) / TRANSLATION_UNIT_M for value in translation_m),
        *(float(value) / ROTATION_UNIT_RAD for value in rotation_rad),
        1.0 - 2.0 * gripper,
    ])
