"""Judges what was sent by itself: finite, within limits, and inside the workspace."""

import math
from collections.abc import Iterator

from vla_policy_node.bench.faults.oracle_findings import (
    BrokenPromise,
    in_force,
    is_finite,
    unsafe,
)
from vla_policy_node.bench.faults.records import Promise, Sent, Trial

# Rounding of a sum of a few thousand numbers of 64 bits.
SLACK = 1e-9
# A robot obeys a command until its target time and one period more.
EXPIRY_PERIODS = 2.0


def finite(trial: Trial) -> Iterator[BrokenPromise]:
    """Actions are finite numbers, holds are exactly zero, the frame is the promised one."""
    for sent in trial.sent:
        motion = (*sent.translation_m, *sent.rotation_rad)
        if sent.hold:
            if any(motion):  # NaN is true as well
                yield unsafe('hold_moves', sent, f'a hold with the motion {motion}')
            continue
        if not all(map(math.isfinite, (*motion, sent.gripper))):
            yield unsafe('finite', sent, f'{motion} and gripper {sent.gripper}')
        elif not 0.0 <= sent.gripper <= 1.0:
            yield unsafe('gripper', sent, f'the gripper is told {sent.gripper}')
        if all(sent.frame_id != promise.frame_id for promise in in_force(trial, sent.at_s)):
            yield unsafe('frame', sent, f"in frame '{sent.frame_id}'")


def limits(trial: Trial) -> Iterator[BrokenPromise]:
    """Step, velocity and acceleration; a robot that holds, or whose command is over, stands."""
    last = None
    for sent in trial.sent:
        if not sent.hold and is_finite(sent):
            broken = []
            for promise in in_force(trial, sent.at_s):
                if last is None or last.hold:
                    broken.append(_broken_limits(sent, _STILL, promise))
                    continue
                broken.append(_broken_limits(
                    sent, (last.translation_m, last.rotation_rad), promise))
                if _has_expired(last, sent, promise):
                    broken.append(_broken_limits(sent, _STILL, promise))
            if broken and all(broken):
                yield from (unsafe('limits', sent, text) for text in min(broken, key=len))
        last = sent


def _has_expired(last: Sent, sent: Sent, promise: Promise) -> bool:
    """Whether a robot had given up the last command by then: by its own clock, or the node's."""
    lasts_s = EXPIRY_PERIODS * promise.period_s
    return max(sent.at_s - last.at_s, sent.stamp_s - last.stamp_s) > lasts_s


_STILL = ((0.0,) * 3, (0.0,) * 3)


def _broken_limits(sent: Sent, before: tuple, promise: Promise) -> list[str]:
    period_s, texts = promise.period_s, []
    for what, now, last, step, velocity, acceleration in (
        ('translation', sent.translation_m, before[0], promise.max_step_m,
         promise.max_velocity_m_s, promise.max_acceleration_m_s2),
        ('rotation', sent.rotation_rad, before[1], promise.max_step_rad,
         promise.max_velocity_rad_s, promise.max_acceleration_rad_s2),
    ):
        norm, change = math.hypot(*now), math.dist(now, last)
        bound = min(step, velocity * period_s)
        if norm > bound * (1 + SLACK):
            texts.append(f'a {what} of {norm:g}, {bound:g} at most')
        bound = acceleration * period_s**2
        brakes = promise.brakes_hard and _is_between(now, last)
        if change > bound * (1 + 1e-6) + SLACK and not brakes:
            texts.append(f'a {what} that changes by {change:g} in one period, {bound:g} at most')
    return texts


def _is_between(now: tuple, last: tuple) -> bool:
    """Return whether each axis goes towards zero and not beyond it."""
    return all(min(0.0, b) - SLACK <= a <= max(0.0, b) + SLACK
               for a, b in zip(now, last, strict=True))


def workspace(trial: Trial) -> Iterator[BrokenPromise]:
    """The ideal robot, which does exactly what it is told, stays inside or comes back."""
    at_m = list(trial.start_m)
    for sent in trial.sent:
        if sent.hold or not is_finite(sent):
            continue
        at_m = [a + d for a, d in zip(at_m, sent.translation_m, strict=True)]
        outside = [max(_outside(at_m, sent.translation_m, promise, axis) for axis in range(3))
                   for promise in in_force(trial, sent.at_s)]
        if outside and min(outside) > SLACK:
            yield unsafe('workspace', sent, f'the robot is driven {min(outside):.4f} m outside')


def _outside(at_m: list, step_m: tuple, promise: Promise, axis: int) -> float:
    """How far outside an axis is and is driven further out, beyond the slack; 0 if it is not."""
    low, high = promise.workspace_min_m[axis], promise.workspace_max_m[axis]
    beyond = max(low - at_m[axis] if step_m[axis] < 0 else 0.0,
                 at_m[axis] - high if step_m[axis] > 0 else 0.0)
    return beyond - promise.workspace_slack_m
