"""Rotation conversions, each with the convention of the data it serves."""

import math

import numpy as np


def quaternion_to_axis_angle(quaternion_xyzw: np.ndarray) -> np.ndarray:
    """Return the rotation vector [3] in rad of a unit quaternion [4], angle in [0, 2 pi].

    The angle is 2 acos(w) and the sign of the quaternion is kept, as in robosuite
    (`transform_utils.quat2axisangle`), from which the LIBERO proprioception was recorded. Its
    statistics hold angles beyond pi; the shortest rotation (scipy's `as_rotvec`) would jump by
    2 pi where the policy was trained on a continuous value.
    """
    x, y, z, w = (float(value) for value in quaternion_xyzw)
    w = min(1.0, max(-1.0, w))
    sine = math.sqrt(1.0 - w * w)
    if sine == 0.0:
        return np.zeros(3)
    return np.array([x, y, z]) * (2.0 * math.acos(w) / sine)


def euler_xyz_to_axis_angle(euler_rad: np.ndarray) -> np.ndarray:
    """Return the rotation vector [3] in rad, angle in [0, pi], of fixed-axis x, y, z angles [3].

    Fixed axes, x first: the roll, pitch, yaw of REP-103.
    """
    half_x, half_y, half_z = (0.5 * float(angle) for angle in euler_rad)
    cx, sx = math.cos(half_x), math.sin(half_x)
    cy, sy = math.cos(half_y), math.sin(half_y)
    cz, sz = math.cos(half_z), math.sin(half_z)
    w = cx * cy * cz + sx * sy * sz
    vector = np.array(
        [
            sx * cy * cz - cx * sy * sz,
            cx * sy * cz + sx * cy * sz,
            cx * cy * sz - sx * sy * cz,
        ]
    )
    sine = math.hypot(*vector)
    if sine == 0.0:
        return np.zeros(3)
    # atan2 stays exact for the small rotations of one control period; acos(w) would not.
    angle = 2.0 * math.atan2(sine, abs(w))
    return vector * math.copysign(angle / sine, w)


def angle_between(a_rad: np.ndarray, b_rad: np.ndarray) -> float:
    """Return the angle in rad, in [0, pi], between the rotations of two rotation vectors [3]."""
    cosine = sum(a * b for a, b in zip(
        axis_angle_to_quaternion(a_rad), axis_angle_to_quaternion(b_rad), strict=True))
    return 2.0 * math.acos(min(1.0, abs(cosine)))


def axis_angle_to_euler_xyz(rotation_rad: np.ndarray) -> tuple[float, float, float]:
    """Return the fixed-axis x, y, z angles in rad of a rotation vector [3].

    The middle one is in [-pi/2, pi/2], the others in [-pi, pi].
    """
    x, y, z, w = axis_angle_to_quaternion(rotation_rad)
    sine = min(1.0, max(-1.0, 2.0 * (w * y - z * x)))
    if abs(sine) > 1.0 - 1e-12:  # x and z turn about one axis: all of it goes to x
        roll = math.remainder(2.0 * math.atan2(x, w), 2.0 * math.pi)
        return roll, math.copysign(0.5 * math.pi, sine), 0.0
    return (math.atan2(2.0 * (w * x + y * z), 1.0 - 2.0 * (x * x + y * y)), math.asin(sine),
            math.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)))


def axis_angle_to_quaternion(rotation_rad: np.ndarray) -> tuple[float, float, float, float]:
    """Return x, y, z, w of a rotation vector [3]; its sign is that of cos(angle / 2)."""
    angle = math.hypot(*rotation_rad)
    scale = math.sin(0.5 * angle) / angle if angle > 0.0 else 0.0
    x, y, z = (scale * float(value) for value in rotation_rad)
    return x, y, z, math.cos(0.5 * angle)
