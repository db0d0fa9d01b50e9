"""Final check of a command against all limits, independent of the code that produced it.

The limiter computes, this only compares: a mistake, an overflow or a NaN anywhere between the
policy and this check must end as a hold.
"""

import math

import numpy as np

from vla_policy_node.control.action_spec import EndEffectorDelta
from vla_policy_node.control.limits import Box, Limits

# Allowance for rounding, relative to a bound and to a position.
_SLACK = 1.0 + 1e-6
_SLACK_M = 1e-9


def find_breach(
    delta: EndEffectorDelta,
    last: EndEffectorDelta,
    position_m: np.ndarray,
    workspace: Box,
    limits: Limits,
    period_s: float,
) -> str:
    """Return a sentence about the limit that a command breaks, '' if it breaks none.

    last: the command before it, zero after a hold. position_m: [3], where it begins.
    """
    numbers = (*delta.translation_m, *delta.rotation_rad, delta.gripper)
    if not all(map(math.isfinite, numbers)):
        return f'The command {numbers} is not finite.'
    if delta.gripper not in (0.0, 1.0):
        return f'The gripper is told {delta.gripper}; it knows 0 (closed) and 1 (open).'
    for name, unit, vector, before, max_step, max_velocity, max_acceleration in (
        ('translation', 'm', delta.translation_m, last.translation_m,
         limits.max_step_translation_m, limits.max_linear_velocity_m_s,
         limits.max_linear_acceleration_m_s2),
        ('rotation', 'rad', delta.rotation_rad, last.rotation_rad,
         limits.max_step_rotation_rad, limits.max_angular_velocity_rad_s,
         limits.max_angular_acceleration_rad_s2),
    ):
        longest = min(max_step, max_velocity * period_s)
        if not math.hypot(*vector) <= longest * _SLACK:
            return f'The {name} {vector} {unit} is longer than {longest:g} {unit}.'
        change = math.dist(vector, before)
        most = max_acceleration * period_s**2
        if not (change <= most * _SLACK or _only_brakes(vector, before)):
            return (f'The {name} {vector} {unit} differs from the last one by {change:g} {unit}, '
                    f'more than {most:g} {unit}.')
    step_m, after_m = delta.translation_m, position_m + delta.translation_m
    inside = (
        ((step_m <= 0.0) | (after_m <= workspace.high_m + _SLACK_M))
        & ((step_m >= 0.0) | (after_m >= workspace.low_m - _SLACK_M))
    )
    if not inside.all():
        return f'The translation {step_m} m leads out of the workspace from {position_m} m.'
    return ''


def _only_brakes(vector: np.ndarray, before: np.ndarray) -> bool:
    """Return whether every axis is between the last value and zero: no harsher than a hold."""
    return all(min(b, 0.0) <= v <= max(b, 0.0) for v, b in zip(vector, before, strict=True))
