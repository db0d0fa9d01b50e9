"""Final check of a joint motion against all limits, independent of the code that computed it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vla_policy_node.control.joint_spec import JointMotion, MovedJoint

# Allowance for rounding, relative to a bound and to a position.
_SLACK = 1.0 + 1e-6
_SLACK_POSITION = 1e-9


def find_joint_breach(
    joints: Sequence[MovedJoint],
    motion: JointMotion,
    last: Sequence[float],
    before: Sequence[float],
    period_s: float,
) -> str:
    """Return a sentence about the limit that a motion breaks, '' if it breaks none.

    last: [N] steps of the motion before it, zero after a hold. before: [N] position of each joint
    as it begins: commanded, or, if it is moved by velocity, measured.
    """
    for joint, value, step, old, position in zip(
            joints, motion.values.tolist(), motion.steps.tolist(), last, before, strict=True):
        called = f"the joint '{joint.name}'"
        if not (math.isfinite(value) and math.isfinite(step) and math.isfinite(position)):
            return f'The command {value} for {called} is not finite.'
        after = position + step
        told = value * period_s - step if joint.by_velocity else value - after
        if abs(told) > _SLACK_POSITION + abs(step) * (_SLACK - 1.0):
            return f'The command {value} for {called} is not what was limited.'
        longest = min(joint.max_step, joint.max_velocity * period_s)
        if not abs(step) <= longest * _SLACK:
            return f'The step of {step:g} {joint.unit} of {called} is longer than {longest:g}.'
        most = joint.max_acceleration * period_s**2
        brakes = min(old, 0.0) <= step <= max(old, 0.0)
        if not (abs(step - old) <= most * _SLACK + _SLACK_POSITION or brakes):
            return (f'The step of {step:g} {joint.unit} of {called} differs from the last one by '
                    f'{abs(step - old):g}, more than {most:g}.')
        if (step > 0.0 and after > joint.max_position + _SLACK_POSITION) or (
                step < 0.0 and after < joint.min_position - _SLACK_POSITION):
            return (f'The step of {step:g} {joint.unit} takes {called} from {position:g} out of '
                    f'{joint.min_position:g} to {joint.max_position:g}.')
    return ''
