"""Reads the actions in a bag, of several message types, as displacements per control period."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_policy_node.control.rotations import quaternion_to_axis_angle
from vla_policy_node.control.transform_tree import shown
from vla_policy_node.wire.build import to_ns

TWIST, TWIST_STAMPED = 'geometry_msgs/msg/Twist', 'geometry_msgs/msg/TwistStamped'
TARGETS = 'geometry_msgs/msg/PoseStamped'
ACTION_TYPES = ('vla_msgs/msg/EndEffectorCommand', TWIST_STAMPED, TWIST, TARGETS)
# Types that people try, and why they are none.
NO_ACTIONS = {
    'trajectory_msgs/msg/JointTrajectory': 'it says where joints go, and only actions of an end '
    'effector can be compared', 'sensor_msgs/msg/JointState': 'it measures joints'}
# No robot moves this far (m, rad) in a control period; larger numbers are invalid.
_LARGEST_DELTA = 1e3
# Targets further apart are not of one motion.
_LONGEST_GAP_NS = 1_000_000_000
# Of a control period: targets as far apart as that are a period apart, but for jitter.
_ENOUGH = 0.75


@dataclass(frozen=True, eq=False)
class Actions:
    """Actions that the bag holds, one per control period, sorted by the period's end.

    target_ns: [N]. delta: [N, 6], m and rad per control period. gripper: [N], 1 open, 0 closed,
    NaN where unknown. Holds are left out.
    """

    target_ns: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    delta: np.ndarray = field(default_factory=lambda: np.zeros((0, 6)))
    gripper: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def at(self, target_ns: np.ndarray, tolerance_ns: int) -> tuple[np.ndarray, np.ndarray]:
        """Return for each target the index of the nearest action and whether it is near enough."""
        target_ns = np.asarray(target_ns, np.int64)
        if not len(self.target_ns):
            return np.zeros(len(target_ns), int), np.zeros(len(target_ns), bool)
        right = np.clip(np.searchsorted(self.target_ns, target_ns), 0, len(self.target_ns) - 1)
        left = np.maximum(right - 1, 0)
        nearer = (np.abs(self.target_ns[left] - target_ns)
                  <= np.abs(self.target_ns[right] - target_ns))
        index = np.where(nearer, left, right)
        return index, np.abs(self.target_ns[index] - target_ns) <= tolerance_ns


class ActionReader:
    """Collects the actions of one topic.

    kind: of its messages. period_ns: of control. frame_id: of the policy's actions, '' for any.
    by_log: messages count by the time of recording.
    """

    def __init__(self, kind: str, period_ns: int, frame_id: str = '', by_log: bool = False):
        self._kind, self._period_ns = kind, period_ns
        self._frame_id, self._by_log = frame_id, by_log
        self._rows: list[tuple[int, np.ndarray, float]] = []
        self._targets: list[tuple[int, np.ndarray, np.ndarray]] = []  # stamp, position, x y z w
        self._unusable = self._unstamped = 0
        self._elsewhere: Counter[str] = Counter()  # frames

    def hear(self, message: Any, time_ns: int) -> None:
        """Take a message and the time at which it was recorded."""
        is_command = self._kind == ACTION_TYPES[0]
        if is_command and message.hold:
            return
        if self._kind == TWIST or self._by_log:
            sent_ns = time_ns
        elif stamp_ns := to_ns(message.target_time if is_command else message.header.stamp):
            sent_ns = stamp_ns - self._period_ns if is_command else stamp_ns
        else:
            self._unstamped += 1
            return
        if self._kind != TWIST and self._is_elsewhere(message.header.frame_id.lstrip('/')):
            return
        if is_command:
            self._add(sent_ns + self._period_ns, _six(message.translation, message.rotation),
                      message.gripper)
        elif self._kind == TARGETS:
            self._add_target(sent_ns, message.pose)
        else:  # over the control period that begins now
            twist = message if self._kind == TWIST else message.twist
            self._add(sent_ns + self._period_ns,
                      _six(twist.linear, twist.angular) * (self._period_ns / 1e9))

    def _is_elsewhere(self, frame: str) -> bool:
        """Return, and count, whether a message is in another frame than the policy's actions."""
        found = bool(frame and self._frame_id) and frame != self._frame_id
        if found:
            self._elsewhere[frame] += 1
        return found

    def actions(self, ahead_ns: int = 0) -> Actions:
        """Return all actions. ahead_ns: how far the recorder's clock is ahead of the stamps."""
        self._take_differences()
        if not self._rows:
            return Actions()
        rows = sorted(self._rows, key=lambda row: row[0])
        targets, deltas, grippers = zip(*rows, strict=True)
        late_ns = ahead_ns if self._kind == TWIST else 0
        return Actions(np.array(targets, np.int64) - late_ns, np.array(deltas),
                       np.array(grippers, float))

    def notes(self, topic: str) -> list[str]:
        """Return sentences about what was left out."""
        notes = [f"{count} messages on {topic} are in the frame '{shown(frame)}' and not in "
                 f"'{self._frame_id}', so they were left out."
                 for frame, count in self._elsewhere.most_common(1)]
        if self._unstamped:
            notes.append(f'{self._unstamped} messages on {topic} have a stamp of zero and were '
                         'left out; `--stamps log` takes the times of recording.')
        if self._unusable:
            notes.append(f'{self._unusable} messages on {topic} hold no usable numbers and were '
                         'left out.')
        return notes

    def _add(self, target_ns: int, delta: np.ndarray, gripper: float = math.nan) -> None:
        if not np.abs(delta).max() < _LARGEST_DELTA:  # nor NaN
            self._unusable += 1
            return
        self._rows.append((target_ns, delta, gripper if 0.0 <= gripper <= 1.0 else math.nan))

    def _add_target(self, sent_ns: int, pose: Any) -> None:
        position = np.array([getattr(pose.position, axis) for axis in 'xyz'])
        rotation = np.array([getattr(pose.orientation, axis) for axis in 'xyzw'])
        length = np.linalg.norm(rotation)
        if not (np.isfinite(position).all() and abs(length - 1.0) < 0.01):
            self._unusable += 1
            return
        self._targets.append((sent_ns, position, rotation / length))

    def _take_differences(self) -> None:
        """Turn targets into motions, each from the target of about one control period before."""
        targets, self._targets = sorted(self._targets, key=lambda target: target[0]), []
        stamps = np.array([stamp_ns for stamp_ns, _, _ in targets], np.int64)
        before = np.searchsorted(stamps, stamps - round(_ENOUGH * self._period_ns), 'right') - 1
        for (stamp_ns, position, rotation), place in zip(targets, before, strict=True):
            if place < 0:
                continue
            then_ns, from_position, from_rotation = targets[place]
            if (elapsed_ns := stamp_ns - then_ns) <= _LONGEST_GAP_NS:
                delta = np.concatenate([
                    position - from_position, _turn(from_rotation, rotation)])
                self._add(stamp_ns + self._period_ns, delta * (self._period_ns / elapsed_ns))


def _six(linear: Any, angular: Any) -> np.ndarray:
    return np.array([getattr(part, axis) for part in (linear, angular) for axis in 'xyz'])


def _turn(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the shortest rotation vector [3] from one to another, in the frame of both."""
    (ax, ay, az, aw), (bx, by, bz, bw) = other, one
    turn = np.array([
        -aw * bx + ax * bw - ay * bz + az * by, -aw * by + ax * bz + ay * bw - az * bx,
        -aw * bz - ax * by + ay * bx + az * bw, aw * bw + ax * bx + ay * by + az * bz])
    return quaternion_to_axis_angle(-turn if turn[3] < 0.0 else turn)
