"""Compares commanded with measured motion: where the arm may be, and whether it follows."""

from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from vla_policy_node.control.action_spec import EndEffectorDelta
from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.robot_state import MeasuredPose, Sighting

# A position or orientation that is still the same to the last bit this long after the arm should
# have moved this far is not a measurement. Not sooner: quantised encoders repeat themselves at
# rest, and an arm takes some 100 ms to set off.
_FREEZE_NS = 500_000_000
_FREEZE_M, _FREEZE_RAD = 0.005, 0.05
# 20 s of commands at the highest rate.
_DEPTH = 4096


@dataclass(frozen=True)
class MotionLimits:
    """How far the measured motion may depart from the commanded one.

    max_tracking_error_m: largest difference between the displacement that was commanded within
        the window and the one that was measured; 0: commands and poses are not compared, for
        poses that the commands do not move (a recording).
    tracking_gain: share of a commanded displacement that the arm makes in time; below 1 for a
        compliant controller.
    tracking_delay_ns: how late the arm may carry a command out, and how wrong stamps may be.
    """

    max_tracking_error_m: float = 0.15
    tracking_window_ns: int = 2_000_000_000
    tracking_gain: float = 1.0
    tracking_delay_ns: int = 100_000_000


@dataclass(frozen=True, eq=False)
class _Sent:
    """A command; before: [2, 3], sums of all translations (m) and rotations (rad) before it."""

    sent_ns: int
    target_ns: int
    translation_m: np.ndarray
    before: np.ndarray

    def left(self, time_ns: int) -> float:
        """Return the share that is still to be executed at a time, assuming constant speed."""
        if time_ns >= self.target_ns:
            return 0.0
        return min(1.0, (self.target_ns - time_ns) / (self.target_ns - self.sent_ns))


class MotionRecord:
    """Commands and poses of the last seconds. Not thread-safe: only the commander uses it."""

    def __init__(self):
        self._sent: deque[_Sent] = deque(maxlen=_DEPTH)  # ordered by both times
        self._total = np.zeros((2, 3))  # running sums: ticks add nothing up again
        self._measured: deque[tuple[int, np.ndarray]] = deque()
        self._located_m: np.ndarray | None = None
        self._since_ns: int | None = None  # stamp of the first pose of this goal
        self._mismatch: HoldError | None = None

    def begin(self) -> None:
        """Restart the comparison for a goal that begins; commands under way stay known."""
        self._measured.clear()
        self._since_ns = None
        self._mismatch = None

    def add(self, delta: EndEffectorDelta, now_ns: int, target_ns: int) -> None:
        """Record a command that is sent now and must be executed by target_ns."""
        if self._sent:
            target_ns = max(target_ns, self._sent[-1].target_ns)
        self._sent.append(_Sent(
            min(now_ns, target_ns - 1), target_ns, delta.translation_m, self._total))
        self._total = self._total + (delta.translation_m, delta.rotation_rad)
        if self._located_m is not None:
            self._located_m = self._located_m + delta.translation_m

    def shift(self, by_ns: int) -> None:
        """Follow a clock that was stepped."""
        self._sent = deque(
            (replace(sent, sent_ns=sent.sent_ns + by_ns, target_ns=sent.target_ns + by_ns)
             for sent in self._sent), _DEPTH)

    def locate(self, newest: Sighting, now_ns: int, limits: MotionLimits) -> np.ndarray:
        """Return where the arm will be, [3] in m, once all that was sent is done.

        This follows the commands as long as the poses agree with them: the measured position plus
        what was sent since may be off by what the arm does in tracking_delay_ns. Correcting the
        estimate for less would make it jump, and the arm brake hard at a wall.
        """
        self._follow_clock(now_ns)
        # A pose that repeats itself may be as old as the first one that said the same.
        compared = limits.max_tracking_error_m > 0.0
        measured_ns = min(
            newest.position_since_ns if compared else newest.pose.stamp_ns, now_ns)
        delay_ns = limits.tracking_delay_ns
        first = self._after(measured_ns - delay_ns)
        waiting = bisect_left(self._sent, measured_ns + delay_ns, key=lambda sent: sent.sent_ns)
        ahead_m, spread_m = self._total[0] - self._before(waiting)[0], np.zeros(3)
        for sent in islice(self._sent, first, waiting):
            ahead_m = ahead_m + sent.left(measured_ns) * sent.translation_m
            doubtful = sent.left(measured_ns - delay_ns) - sent.left(measured_ns + delay_ns)
            spread_m = spread_m + doubtful * np.abs(sent.translation_m)
        expected_m = newest.pose.position_m + ahead_m
        if self._located_m is None:
            self._located_m = expected_m
        self._located_m = np.clip(self._located_m, expected_m - spread_m, expected_m + spread_m)
        return self._located_m

    def check(self, newest: Sighting, now_ns: int, limits: MotionLimits) -> None:
        """Compare the newest pose with what was sent.

        Raises HoldError: INPUT_FROZEN while the pose never changes although the arm was sent
        elsewhere, MOTION_MISMATCH when the arm goes elsewhere, from then on until `begin`: an
        arm that is held still follows its commands again, and would set off once more.
        """
        if self._mismatch is not None:
            raise self._mismatch
        if not limits.max_tracking_error_m:
            return
        self._follow_clock(now_ns)
        pose = newest.pose
        if self._since_ns is None or pose.stamp_ns < self._since_ns:
            self._since_ns = pose.stamp_ns
            self._measured.clear()
        self._check_frozen(newest, self._since_ns)
        if not self._measured or pose.stamp_ns > self._measured[-1][0]:
            self._measured.append((pose.stamp_ns, pose.position_m))
        while self._measured[0][0] < pose.stamp_ns - limits.tracking_window_ns:
            self._measured.popleft()
        self._check_tracking(pose, *self._measured[0], limits)

    def _check_frozen(self, newest: Sighting, begun_ns: int) -> None:
        stamp_ns = newest.pose.stamp_ns
        for part, (since_ns, enough) in enumerate((
                (newest.position_since_ns, _FREEZE_M), (newest.rotation_since_ns, _FREEZE_RAD))):
            since_ns = max(since_ns, begun_ns)
            due = self.commanded(since_ns, stamp_ns - _FREEZE_NS)[part]
            if np.linalg.norm(due) > enough:
                raise HoldError(
                    Hold(HoldReason.INPUT_FROZEN, newest.pose.source),
                    f'The end-effector pose has not changed by a bit for '
                    f'{(stamp_ns - since_ns) / 1e9:.1f} s although the arm was sent elsewhere; '
                    'check the state publisher, and whether the arm takes the commands.')

    def _check_tracking(
        self, pose: MeasuredPose, from_ns: int, from_m: np.ndarray, limits: MotionLimits
    ) -> None:
        wanted_m = limits.tracking_gain * self.commanded(from_ns, pose.stamp_ns)[0]
        made_m = pose.position_m - from_m
        error_m = float(np.linalg.norm(made_m - wanted_m))
        if error_m > limits.max_tracking_error_m:
            self._mismatch = HoldError(
                Hold(HoldReason.MOTION_MISMATCH),
                f'In the last {(pose.stamp_ns - from_ns) / 1e9:.1f} s the arm should have moved '
                f'by {_metres(wanted_m)} and moved by {_metres(made_m)}; see whether it is '
                'blocked, takes the commands, and reports its pose in their frame.')
            raise self._mismatch

    def commanded(self, after_ns: int, until_ns: int) -> np.ndarray:
        """Return translation and rotation [2, 3] whose periods ended in this span."""
        first, end = self._after(after_ns), self._after(until_ns)
        return self._before(max(first, end)) - self._before(first)

    def _after(self, time_ns: int) -> int:
        """Return the index of the first command whose period ends later."""
        return bisect_right(self._sent, time_ns, key=lambda sent: sent.target_ns)

    def _before(self, index: int) -> np.ndarray:
        return self._sent[index].before if index < len(self._sent) else self._total

    def _follow_clock(self, now_ns: int) -> None:
        """If the clock went back and nobody called `shift`: the last command has just ended."""
        if self._sent and self._sent[-1].sent_ns > now_ns:
            self.shift(now_ns - self._sent[-1].target_ns)


def _metres(vector: np.ndarray) -> str:
    return '(' + ', '.join(f'{value:.3f}' for value in vector) + ') m'
