"""Which commands for joints may pass to the robot: the part of `guard` that knows joints.

It shares no code with what bounds them in the policy node, and looks at the joints by itself: a
position is a place to go at once, so one that lies far from where the joint is must never pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vla_policy_node.control.guard import BURST, STREAM
from vla_policy_node.control.hold import Hold, HoldReason
from vla_policy_node.control.joint_spec import JointSpec

# A joint that was heard of so long ago may be anywhere.
MEASURED_S = 0.5
# Commands cease: what comes later begins anew. As for end effectors, two periods and a half.
_RESTING_PERIODS = 2.5
# How far the two processes may differ about where a resting joint is.
_REST = {'rad': 0.04, 'm': 0.004}
_ROUNDING = 1.0 + 1e-6
_SLACK = 1e-9
POSITION, VELOCITY = 0, 1  # kinds, as in vla_msgs/JointCommand


@dataclass(frozen=True)
class SentJointCommand:
    """A `vla_msgs/JointCommand` as received; nothing in it is trusted yet."""

    stamp_ns: int
    frame_id: str
    names: tuple[str, ...]
    kinds: tuple[int, ...]
    values: tuple[float, ...]
    hold: bool
    hold_code: int
    hold_stream: str
    hold_text: str
    observation_stamp_ns: int
    target_time_ns: int
    chunk_step: int
    disagreement: float
    epoch: int
    limited: bool


class JointBounds:
    """The bounds of a robot's joints, where they were told to be, and where they are.

    A position may lie a step from the last one. After a rest it may also lie a step from where
    the joint is measured, and where somebody moved the joint in between only there. Not
    thread-safe.

    streams: name -> places, in an action, of the joints whose positions it measures.
    """

    def __init__(
        self, spec: JointSpec, period_s: float, streams: Mapping[str, tuple[int, ...]]
    ):
        self.spec = spec
        self._period_s = period_s
        self._streams = dict(streams)
        self._kinds = tuple(
            VELOCITY if joint.by_velocity else POSITION for joint in spec.joints)
        self._measured: list[float] = [math.nan] * len(spec.joints)
        self._heard_s = dict.fromkeys(streams, -math.inf)
        self._last: tuple[float, ...] = ()  # as last passed
        self._last_s = -math.inf

    def measure(self, stream: str, positions: tuple[float, ...], now_s: float) -> None:
        """Take the positions of the joints of a stream."""
        for place, position in zip(self._streams[stream], positions, strict=True):
            self._measured[place] = position
        self._heard_s[stream] = now_s

    def problem_of(self, command: SentJointCommand, now_s: float) -> Hold | None:
        """Return why a command must not pass, or None."""
        invalid = Hold(HoldReason.ACTION_INVALID, STREAM)
        if (command.names != self.spec.names or command.kinds != self._kinds
                or len(command.values) != len(self._kinds)):
            return invalid
        if command.hold:
            moves = any(value != 0.0 for value, kind in zip(
                command.values, self._kinds, strict=True) if kind == VELOCITY)
            return invalid if moves else None
        for stream, heard_s in self._heard_s.items():
            if not now_s - heard_s <= MEASURED_S:
                missing = heard_s == -math.inf
                return Hold(
                    HoldReason.INPUT_MISSING if missing else HoldReason.INPUT_STALE, stream)
        passes = all(
            self._may_turn(place, value) if kind == VELOCITY else self._may_go(place, value, now_s)
            for place, (value, kind) in enumerate(
                zip(command.values, self._kinds, strict=True)))
        return None if passes else invalid

    def passed(self, command: SentJointCommand, now_s: float) -> None:
        """Note that an action passes."""
        self._last, self._last_s = command.values, now_s

    def still(self) -> tuple[float, ...]:
        """Return what stands still: no velocity, the last position.

        NaN, which is not to be sent, before any position, and for a joint that somebody has moved
        since: it must not jump back.
        """
        if not self._last:
            return tuple(0.0 if kind == VELOCITY else math.nan for kind in self._kinds)
        return tuple(
            0.0 if kind == VELOCITY else value if self._has_stayed(place) else math.nan
            for place, (value, kind) in enumerate(zip(self._last, self._kinds, strict=True)))

    def _may_turn(self, place: int, value: float) -> bool:
        joint, position = self.spec.joints[place], self._measured[place]
        longest = min(joint.max_velocity, joint.max_step / self._period_s)
        if not abs(value) <= longest * _ROUNDING:  # false for NaN
            return False
        after, spare = position + value * self._period_s, _REST[joint.unit]
        return (joint.min_position - spare <= after or value >= 0.0) and (
            after <= joint.max_position + spare or value <= 0.0)

    def _may_go(self, place: int, value: float, now_s: float) -> bool:
        joint, measured = self.spec.joints[place], self._measured[place]
        step = min(joint.max_step, joint.max_velocity * self._period_s) * _ROUNDING + _SLACK
        elapsed = (now_s - self._last_s) / self._period_s
        resting = elapsed > _RESTING_PERIODS
        bases = []
        if self._last and (not resting or self._has_stayed(place)):
            # A step for each command that may have been lost on the way.
            bases.append((self._last[place], step * min(BURST, max(1.0, elapsed + 0.5))))
        if resting:
            bases.append((measured, step + _REST[joint.unit]))
        return any(
            abs(value - base) <= reach  # false for NaN
            and min(joint.min_position, base) - _SLACK <= value
            and value <= max(joint.max_position, base) + _SLACK
            for base, reach in bases)

    def _has_stayed(self, place: int) -> bool:
        """Return whether a joint is where it was told, or as near as it need be."""
        joint = self.spec.joints[place]
        if joint.gripper is not None or not joint.max_tracking_error:
            return True
        # False where the joint was never heard of.
        return not abs(self._measured[place] - self._last[place]) > joint.max_tracking_error
