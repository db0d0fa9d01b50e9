"""Moves the joints of one or several arms, and grippers with separate commands."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vla_policy_node.control.action_spec import GripperLatch
from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.joint_check import find_joint_breach
from vla_policy_node.control.joint_limits import JointLimiter
from vla_policy_node.control.joint_motion import JointRecord, JointTracking
from vla_policy_node.control.joint_spec import JointMotion, JointSpec
from vla_policy_node.control.joint_state import JointSighting, JointWatch


class JointMover:
    """A `Mover` of all joints of a robot, whose motions are `JointMotion`.

    All joints are one motion: where one must not move, none does, and arms stay together.

    streams: name -> places, in an action, of the joints whose positions it measures.
    measured: must be told the positions of each stream (any thread).
    """

    measured_as = 'joint'

    def __init__(
        self, spec: JointSpec, period_s: float, streams: Mapping[str, tuple[int, ...]],
        tracking: JointTracking | None = None,
    ):
        count = len(spec.joints)
        if sorted(place for places in streams.values() for place in places) != [*range(count)]:
            raise ValueError('Every joint that is moved must be measured by exactly one stream.')
        self.spec = spec
        self.period_s = period_s
        self.measured = JointWatch(spec.joints, streams)
        self._limiter = JointLimiter(spec, period_s)
        self._record = JointRecord(spec, tracking or JointTracking(), period_s)
        self._latches = {
            place: GripperLatch(joint.gripper.threshold, joint.gripper.dead_band)
            for place, joint in enumerate(spec.joints) if joint.gripper is not None}
        self._scale = spec.column('scale')
        self._low, self._high = spec.column('min_position'), spec.column('max_position')
        self._sightings: list[JointSighting] = []
        self._last = np.zeros(count)  # steps
        self._is_at_rest = True
        self._still = JointMotion(
            np.where(spec.by_velocity, 0.0, np.nan), np.zeros(count))

    def follow(self, other: JointMover) -> None:
        """Take over everything from a mover with other limits of the same joints."""
        self.measured, self._record, self._latches = other.measured, other._record, other._latches
        self._last, self._is_at_rest, self._still = (
            other._last, other._is_at_rest, other._still)
        self._limiter.count_on(other._limiter)

    def begin(self) -> None:
        """Start a goal where the joints are."""
        self.measured.begin()
        self._record.begin()

    def shift(self, by_ns: int) -> None:
        """Follow a clock that was stepped."""
        self._record.shift(by_ns)

    def check(self, now_ns: int) -> None:
        """Raise HoldError if joints are not measured, or do not follow the commands."""
        self._sightings = self.measured.newest()
        self._record.check(self._sightings, now_ns)
        values = self._still.values
        moved = ~self.spec.by_velocity & (values != self._record.commanded)
        self._still = JointMotion(np.where(moved, np.nan, values), self._still.steps)

    def plan(self, action: np.ndarray, now_ns: int) -> tuple[JointMotion, tuple[str, ...]]:
        """Return the motion for an action [N], within all limits, after `check`."""
        action = np.asarray(action, np.float64)
        if action.shape != self._scale.shape or not np.isfinite(action).all():
            raise HoldError(
                Hold(HoldReason.ACTION_INVALID),
                f'An action of the policy is not finite, or not {len(self._scale)} numbers.')
        room, commanded = self._record.room(self._sightings), self._record.commanded
        targets = self._targets(action)
        reachable = np.clip(targets, self._low, self._high)
        by_velocity = self.spec.by_velocity
        wanted = np.where(by_velocity, targets * self.period_s, reachable - commanded)
        steps, rules = self._limiter.apply(wanted, room)
        if (~by_velocity & (reachable != targets)).any() and 'joint_position' not in rules:
            self._limiter.count('joint_position')
            rules = (*rules, 'joint_position')
        # Bit for bit what the policy said, where nothing was changed.
        positions = np.where(steps == wanted, reachable, commanded + steps)
        motion = JointMotion(np.where(by_velocity, steps / self.period_s, positions), steps)
        before = np.where(by_velocity, np.where(steps > 0.0, room.high, room.low), commanded)
        if breach := find_joint_breach(
                self.spec.joints, motion, self._last.tolist(), before.tolist(), self.period_s):
            raise HoldError(Hold(HoldReason.ACTION_INVALID), breach)
        return motion, rules

    def sent(self, motion: JointMotion, now_ns: int, target_ns: int) -> None:
        """Note what is sent."""
        self._record.add(motion, now_ns, target_ns)
        self._last, self._is_at_rest = motion.steps, False
        self._still = JointMotion(
            np.where(self.spec.by_velocity, 0.0, motion.values), np.zeros(len(self._last)))

    def rest(self) -> None:
        """Assume that the joints stand still."""
        self._limiter.reset()
        self._last, self._is_at_rest = np.zeros(len(self._last)), True

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing was sent since `rest`."""
        return self._is_at_rest

    def still(self) -> JointMotion:
        """Return the last commanded positions, and no velocity.

        NaN before any, and for a joint that somebody has moved since: it must not jump back.
        """
        return self._still

    def counts(self) -> dict[str, int]:
        """Return how often each rule changed a command, by name (any thread)."""
        return self._limiter.counts()

    def _targets(self, action: np.ndarray) -> np.ndarray:
        """Return what the action says: positions, and velocities of joints moved by these."""
        targets = action * self._scale
        for place, latch in self._latches.items():
            gripper = self.spec.joints[place].gripper
            assert gripper is not None
            opening = (action[place] - gripper.closed) / (gripper.open - gripper.closed)
            is_open = latch.update(min(1.0, max(0.0, float(opening))))
            targets[place] = gripper.open_position if is_open else gripper.closed_position
        return targets
