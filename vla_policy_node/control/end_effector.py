"""Moves one end effector and its gripper by bounded displacements."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from vla_policy_node.control.action_spec import ActionSpec, EndEffectorDelta, GripperLatch
from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.limits import Box, CommandLimiter
from vla_policy_node.control.motion import MotionLimits, MotionRecord
from vla_policy_node.control.output_check import find_breach
from vla_policy_node.control.robot_state import POSE, PoseWatch, Sighting

_STILL = np.zeros(3)
_STILL.setflags(write=False)
_REST = EndEffectorDelta(_STILL, _STILL, math.nan)


class EndEffectorMover:
    """A `Mover` of one end effector, whose motions are `EndEffectorDelta`.

    measured: must be told every measured pose (any thread). pose: what holds call its stream.
    """

    measured_as = 'pose'

    def __init__(
        self, spec: ActionSpec, limiter: CommandLimiter, latch: GripperLatch,
        limits: MotionLimits | None = None, pose: str = POSE,
    ):
        self.spec = spec
        self.limiter = limiter
        self.period_s = limiter.period_s
        self.measured = PoseWatch(pose)
        self._stream = pose
        self._latch = latch
        self._limits = limits or MotionLimits()
        self._record = MotionRecord()
        self._newest: Sighting
        self._origin_m: np.ndarray | None = None  # where the end effector was as the goal began
        self._last = _REST
        self._gripper = math.nan  # not commanded yet; opening the hand could drop something

    def follow(self, other: EndEffectorMover) -> None:
        """Take over poses, motion and gripper from a mover with other limits."""
        self.measured, self._stream = other.measured, other._stream
        self._record, self._origin_m = other._record, other._origin_m
        self._last, self._gripper = other._last, other._gripper
        self.limiter.count_on(other.limiter)
        if not math.isnan(self._gripper):
            self._latch.update(self._gripper)  # other limits must not open the hand

    def begin(self) -> None:
        """Start a goal: jumps are forgiven, and the default workspace is round the next pose."""
        self.measured.begin()
        self._record.begin()
        self._origin_m = None

    def shift(self, by_ns: int) -> None:
        """Follow a clock that was stepped."""
        self._record.shift(by_ns)

    def check(self, now_ns: int) -> None:
        """Raise HoldError if there is no pose to move by, or it does not follow the commands."""
        self._newest = self.measured.newest()
        self._record.check(self._newest, now_ns, self._limits)
        if self._origin_m is None:
            self._origin_m = self._newest.pose.position_m

    def plan(self, action: np.ndarray, now_ns: int) -> tuple[EndEffectorDelta, tuple[str, ...]]:
        """Return the displacement for an action [7], within all limits, after `check`."""
        limiter = self.limiter
        position_m, workspace = self._place(now_ns)
        limited = limiter.apply(
            self.spec.to_command(action), position_m, workspace, self._stream)
        delta = replace(limited.delta, gripper=self._latch.update(limited.delta.gripper))
        if breach := find_breach(
                delta, self._last, position_m, workspace, limiter.limits, limiter.period_s):
            raise HoldError(Hold(HoldReason.ACTION_INVALID), breach)
        return delta, limited.rules

    def _place(self, now_ns: int) -> tuple[np.ndarray, Box]:
        """Return where the end effector will be [3], and where it may go."""
        position_m = self._record.locate(self._newest, now_ns, self._limits)
        return position_m, self.limiter.limits.workspace(
            position_m if self._origin_m is None else self._origin_m)

    def sent(self, motion: EndEffectorDelta, now_ns: int, target_ns: int) -> None:
        """Note what is sent."""
        self._record.add(motion, now_ns, target_ns)
        self._last, self._gripper = motion, motion.gripper

    def rest(self) -> None:
        """Assume that the arm stands still."""
        self.limiter.reset()
        self._last = _REST

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing was sent since `rest`."""
        return self._last is _REST

    def still(self) -> EndEffectorDelta:
        """Return no displacement, and the last commanded opening, NaN before any."""
        return replace(_REST, gripper=self._gripper)

    def counts(self) -> dict[str, int]:
        """Return how often each rule changed a command, by name (any thread)."""
        return self.limiter.counts()
