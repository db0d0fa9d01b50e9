"""Where the end effector is according to its state source, and whether that is plausible."""

import math
import threading
from collections import Counter
from dataclasses import dataclass

import numpy as np

from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.rotations import angle_between

# The source of poses of the default robot, as holds call it.
POSE = 'ee_pose'
# No tool of an arm at a table moves faster (a Panda's own limits: 1.7 m/s, 2.5 rad/s), and a
# measurement may be this wrong: what moves further between two samples has not moved, but jumped.
_MAX_SPEED_M_S, _MAX_SPEED_RAD_S = 3.0, 10.0
_TOLERANCE_M, _TOLERANCE_RAD = 0.02, 0.2
# No workspace is further away, and no rotation vector is longer than a turn.
_LARGEST_M, _LARGEST_RAD = 200.0, 10.0
# A source that jumped is believed again after this long without another jump.
_SETTLING_NS = 500_000_000


@dataclass(frozen=True, eq=False)
class MeasuredPose:
    """A measured end-effector pose, in the frame of the commanded deltas.

    stamp_ns: when it was measured. position_m: [3]. rotation_rad: [3], rotation vector.
    source: the stream that says so, as holds call it.
    Raises HoldError (INPUT_INVALID) for numbers that are not finite, or that no robot has.
    """

    stamp_ns: int
    position_m: np.ndarray
    rotation_rad: np.ndarray
    source: str = POSE

    def __post_init__(self) -> None:
        if not (
            (np.abs(self.position_m) <= _LARGEST_M).all()
            and (np.abs(self.rotation_rad) <= _LARGEST_RAD).all()
        ):
            raise HoldError(
                Hold(HoldReason.INPUT_INVALID, self.source),
                f'{self.position_m} m, {self.rotation_rad} rad is no pose of an end effector; '
                'check the state publisher.',
            )


@dataclass(frozen=True, eq=False)
class Sighting:
    """The newest pose, and since when its source says the same to the last bit.

    position_since_ns, rotation_since_ns: stamp of the first sample in a row with this value.
    """

    pose: MeasuredPose
    position_since_ns: int
    rotation_since_ns: int


class PoseWatch:
    """The newest pose, and what speaks against moving by it.

    A source that jumps (two publishers on one topic, a tracker that lost its target) is
    INPUT_INVALID until it has not jumped for half a second, or a goal begins: somebody may have
    put the arm elsewhere in between, and a simulator does so at every reset.
    Any thread; a few microseconds per pose, so that all of a 1 kHz stream are looked at.

    source: name of the stream, for holds.
    """

    def __init__(self, source: str = POSE):
        self._source = source
        self._lock = threading.Lock()
        self._newest: Sighting | None = None
        self._jump_ns: int | None = None
        self._error: HoldError | None = None
        self._counts: Counter[str] = Counter()

    def observe(self, pose: MeasuredPose) -> None:
        """Take the next pose of the source; stamps that go back mean another clock."""
        with self._lock:
            last, self._error = self._newest, None
            if last is None or pose.stamp_ns < last.pose.stamp_ns:
                self._jump_ns = None
                self._newest = Sighting(pose, pose.stamp_ns, pose.stamp_ns)
                return
            if _has_jumped(last.pose, pose):
                self._jump_ns = pose.stamp_ns
                self._counts['jumps'] += 1
            stays = np.array_equal(last.pose.position_m, pose.position_m)
            looks_on = np.array_equal(last.pose.rotation_rad, pose.rotation_rad)
            self._newest = Sighting(
                pose, last.position_since_ns if stays else pose.stamp_ns,
                last.rotation_since_ns if looks_on else pose.stamp_ns)

    def reject(self, error: HoldError) -> None:
        """Note that the newest message holds no usable pose; the next good one ends that."""
        with self._lock:
            self._error = error
            self._counts['invalid'] += 1

    def begin(self) -> None:
        """Forgive jumps: a goal begins where the arm is now."""
        with self._lock:
            self._jump_ns = None

    def newest(self) -> Sighting:
        """Return the newest pose. Raises HoldError if there is none, or none to move by."""
        with self._lock:
            if self._error is not None:
                raise self._error
            newest = self._newest
            if newest is None:
                raise HoldError(
                    Hold(HoldReason.INPUT_MISSING, self._source),
                    'No end-effector pose has arrived yet.')
            if self._jump_ns is not None and newest.pose.stamp_ns < self._jump_ns + _SETTLING_NS:
                raise HoldError(
                    Hold(HoldReason.INPUT_INVALID, self._source),
                    'The end-effector pose jumped further than an arm can move; look for a '
                    'second publisher, or mend the state publisher.',
                )
            return newest

    def counts(self) -> dict[str, int]:
        """Return how many poses jumped and how many messages held none."""
        with self._lock:
            return dict(self._counts)


def _has_jumped(last: MeasuredPose, pose: MeasuredPose) -> bool:
    elapsed_s = (pose.stamp_ns - last.stamp_ns) / 1e9
    return (
        math.dist(last.position_m, pose.position_m) > _MAX_SPEED_M_S * elapsed_s + _TOLERANCE_M
        or angle_between(last.rotation_rad, pose.rotation_rad)
        > _MAX_SPEED_RAD_S * elapsed_s + _TOLERANCE_RAD
    )
