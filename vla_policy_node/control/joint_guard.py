"""Decides which joint commands may pass to the robot: the joint-space part of `guard`.

It shares no code with the limiter in the policy node and monitors the joint states itself: a
position is executed at once, so one that is far from where the joint is must never pass.
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
# Commands cease: what comes later begins anew. As for end effectors, two periods and a half, but
# not before an arm has done what it was told.
_RESTING_PERIODS, _RESTING_S = 2.5, 0.125
# How far the two processes may differ about where a resting joint is.
_REST = {'rad': 0.04, 'm': 0.004}
# A joint said to be further outside its bounds, by their distance, is not there.
_FAR_SHARE = 0.25
# A message as late as this is an old one; later, its clock was set back.
_LATE_NS = 1_000_000_000
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

    A position may lie a step from the last one and, after a rest, only about a step from where the
    joint is measured: somebody may have moved it, and it must not jump back. A gripper may be
    asked for anything in its range and is told it step by step, so that a hand that holds
    something is never refused; it keeps its last position while what it holds keeps it open.
    Accelerations are not checked. Not thread-safe.

    streams: name -> places, in an action, of the joints whose positions it measures.
    told: [N] what the last action that passed tells the joints.
    """

    def __init__(
        self, spec: JointSpec, period_s: float, streams: Mapping[str, tuple[int, ...]]
    ):
        self.spec = spec
        self._period_s = period_s
        self._resting_s = max(_RESTING_PERIODS * period_s, _RESTING_S)
        self._streams = dict(streams)
        self._stream_of = {place: name for name, places in streams.items() for place in places}
        self._kinds = tuple(
            VELOCITY if joint.by_velocity else POSITION for joint in spec.joints)
        self._steps = [min(joint.max_step, joint.max_velocity * period_s) * _ROUNDING + _SLACK
                       for joint in spec.joints]
        self._measured: list[float] = [math.nan] * len(spec.joints)
        self._unseen = [0.0] * len(spec.joints)  # sent by velocity since a position changed
        self._grips = [math.inf] * len(spec.joints)  # smallest openings at rest
        self._heard_s = dict.fromkeys(streams, -math.inf)
        self._stamps_ns: dict[str, int] = {}
        self._asked: tuple[float, ...] = ()  # as last passed
        self.told: tuple[float, ...] = ()
        self._last_s = -math.inf

    def measure(
        self, stream: str, stamp_ns: int, positions: tuple[float, ...], now_s: float
    ) -> None:
        """Take the positions of the joints of a stream, unless no later than the last ones."""
        if 0 <= self._stamps_ns.get(stream, stamp_ns - 1) - stamp_ns < _LATE_NS:
            return
        self._stamps_ns[stream] = stamp_ns
        resting = self._is_resting(now_s)
        for place, position in zip(self._streams[stream], positions, strict=True):
            if position != self._measured[place]:
                self._unseen[place] = 0.0
            self._measured[place] = position
            opening = position * self._opens(place)
            self._grips[place] = min(opening, self._grips[place] if resting else math.inf)
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
            if any(self._is_far(place) for place in self._streams[stream]):
                return Hold(HoldReason.INPUT_INVALID, stream)
        passes = all(
            self._may_turn(place, value) if kind == VELOCITY else self._may_go(place, value, now_s)
            for place, (value, kind) in enumerate(
                zip(command.values, self._kinds, strict=True)))
        return None if passes else invalid

    def passed(self, command: SentJointCommand, now_s: float) -> None:
        """Note that an action passes."""
        told = list(command.values)
        for place, (value, kind) in enumerate(zip(command.values, self._kinds, strict=True)):
            if kind == VELOCITY:
                self._unseen[place] += value * self._period_s
            elif self._opens(place):
                told[place] = self._paced(place, value, now_s)
        self._asked, self.told, self._last_s = command.values, tuple(told), now_s

    def still(self, now_s: float) -> tuple[float, ...]:
        """Return what stands still: no velocity, the last position.

        NaN, which is not to be sent, before any position, for a joint that is no longer measured,
        and for one that somebody has moved since: it must not jump back.
        """
        return tuple(
            0.0 if kind == VELOCITY else self.told[place] if self._has_stayed(place, now_s)
            else math.nan for place, kind in enumerate(self._kinds))

    def _is_resting(self, now_s: float) -> bool:
        return now_s - self._last_s > self._resting_s

    def _opens(self, place: int) -> float:
        """Return the sign of an opening gripper's motion, 0 for other joints."""
        gripper = self.spec.joints[place].gripper
        return math.copysign(
            1.0, gripper.open_position - gripper.closed_position) if gripper else 0.0

    def _is_far(self, place: int) -> bool:
        joint, position = self.spec.joints[place], self._measured[place]
        spare = _FAR_SHARE * (joint.max_position - joint.min_position)
        # True for NaN.
        return not joint.min_position - spare <= position <= joint.max_position + spare

    def _may_turn(self, place: int, value: float) -> bool:
        joint, position = self.spec.joints[place], self._measured[place] + self._unseen[place]
        longest = min(joint.max_velocity, joint.max_step / self._period_s)
        if not abs(value) <= longest * _ROUNDING:  # false for NaN
            return False
        after, spare = position + value * self._period_s, _REST[joint.unit]
        return (joint.min_position - spare <= after or value >= 0.0) and (
            after <= joint.max_position + spare or value <= 0.0)

    def _may_go(self, place: int, value: float, now_s: float) -> bool:
        joint, (base, reach) = self.spec.joints[place], self._room(place, now_s)
        inside = (min(joint.min_position, base) - _SLACK <= value  # false for NaN
                  and value <= max(joint.max_position, base) + _SLACK)
        return inside and (joint.gripper is not None or abs(value - base) <= reach)

    def _room(self, place: int, now_s: float) -> tuple[float, float]:
        """Return where the next position counts from, and how far from there it may be."""
        step, rest = self._steps[place], _REST[self.spec.joints[place].unit]
        if not self._is_resting(now_s):
            # A step for each command that may have been lost on the way.
            lost = math.floor((now_s - self._last_s) / self._period_s + 0.5)
            return self.told[place], step * min(BURST, max(1, lost))
        if self._holds_something(place):
            return self.told[place], step
        return self._measured[place], step + (0.0 if self._opens(place) else rest)

    def _paced(self, place: int, value: float, now_s: float) -> float:
        """Return what a gripper is told for what it is asked.

        A policy that starts closes it from where it is, which would loosen the grip: while it is
        asked to close, and something keeps it open, it is not opened.
        """
        base, reach = self._room(place, now_s)
        opens = self._opens(place)
        closes = bool(self._asked) and (value - self._asked[place]) * opens < 0.0
        if closes and (value - base) * opens > 0.0 and (
                (self._measured[place] - base) * opens > _REST[self.spec.joints[place].unit]):
            return base
        return min(max(value, base - reach), base + reach)

    def _holds_something(self, place: int) -> bool:
        """Return whether a gripper is kept open, and not because somebody opened it at rest."""
        if not self.told or not (opens := self._opens(place)):
            return False
        opening = self._measured[place] * opens
        return (opening > self.told[place] * opens
                and opening - self._grips[place] <= _REST[self.spec.joints[place].unit])

    def _has_stayed(self, place: int, now_s: float) -> bool:
        """Return whether a joint is where it was told, or on its way there."""
        heard_s = self._heard_s[self._stream_of[place]]
        if not self.told or not now_s - heard_s <= MEASURED_S:
            return False
        joint = self.spec.joints[place]
        away = abs(self._measured[place] - self.told[place])
        if self._is_resting(now_s):
            return self._holds_something(place) or (
                away <= self._steps[place] + _REST[joint.unit])
        return (joint.gripper is not None or not joint.max_tracking_error
                or away <= joint.max_tracking_error)
