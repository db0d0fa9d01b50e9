"""Compares commanded with measured joint positions: where joints may be, whether they follow."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.joint_limits import JointRoom
from vla_policy_node.control.joint_spec import JointMotion, JointSpec
from vla_policy_node.control.joint_state import JointSighting

# Positions that are still the same to the last bit this long after a joint should have moved this
# far are no measurement.
_FREEZE_NS = 500_000_000
_FREEZE = {'rad': 0.05, 'm': 0.005}
# A joint this near to where it was commanded last has stayed there: motion goes on from the
# command, or the arm would sink a little at every rest. Further away somebody has moved it, and
# motion begins where it is. Only after a rest: before, the joint may still be on its way.
_REST_TOLERANCE = {'rad': 0.02, 'm': 0.002}
_RESTING_PERIODS, _RESTING_NS = 2.5, 125_000_000  # the guard goes by the same
# 5 s of commands at the highest rate.
_DEPTH = 1024


@dataclass(frozen=True)
class JointTracking:
    """How measured joints may follow their commands.

    window_ns: time in which a joint that is moved by velocity, and cannot be compared with a
    position, may go astray by its max_tracking_error. delay_ns: how late commands are carried out.
    """

    window_ns: int = 2_000_000_000
    delay_ns: int = 100_000_000


class JointRecord:
    """Commands of the last seconds, and where joints are by them. Not thread-safe.

    commanded: [N] positions, of joints moved by velocity the sum of all their steps.
    """

    def __init__(self, spec: JointSpec, tracking: JointTracking, period_s: float):
        self._spec = spec
        self._resting_ns = max(_RESTING_NS, round(_RESTING_PERIODS * period_s * 1e9))
        self._tracking = tracking
        count = len(spec.joints)
        self._by_velocity = spec.by_velocity
        self._is_gripper = np.array([joint.gripper is not None for joint in spec.joints])
        # Sign of an opening gripper's motion, 0 for other joints; the smallest opening at rest.
        self._opens = np.array([
            0.0 if joint.gripper is None else np.sign(
                joint.gripper.open_position - joint.gripper.closed_position)
            for joint in spec.joints])
        self._grips = np.full(count, np.inf)
        self._tolerance = np.array([_REST_TOLERANCE[joint.unit] for joint in spec.joints])
        self._freeze = np.array([_FREEZE[joint.unit] for joint in spec.joints])
        self._allowed = spec.column('max_tracking_error')
        self._allowed[self._is_gripper] = 0.0  # what it holds keeps it from closing
        self.commanded = np.zeros(count)
        self._offset = np.zeros(count)  # from the sum of steps to the position
        self._is_known = np.zeros(count, bool)  # commanded at least once
        self._sent: deque[tuple[int, np.ndarray]] = deque(maxlen=_DEPTH)  # end of period, sum
        self._sent_ns = 0  # when the last one was
        self._begun_ns: int | None = None
        self._mismatch: HoldError | None = None

    def begin(self) -> None:
        """Restart the comparison for a goal that begins."""
        self._begun_ns = None
        self._mismatch = None

    def shift(self, by_ns: int) -> None:
        """Follow a clock that was stepped."""
        self._sent = deque(((time_ns + by_ns, sums) for time_ns, sums in self._sent), _DEPTH)
        self._sent_ns += by_ns
        if self._begun_ns is not None:
            self._begun_ns += by_ns

    def add(self, motion: JointMotion, now_ns: int, target_ns: int) -> None:
        """Record a motion that is sent now and must be executed by target_ns."""
        self.commanded = np.where(
            self._by_velocity, self.commanded + motion.steps, motion.values)
        self._is_known[:] = True
        self._sent_ns = now_ns
        self._append(target_ns)

    def check(self, sightings: Sequence[JointSighting], now_ns: int) -> None:
        """Compare the newest positions with what was sent.

        Raises HoldError: INPUT_FROZEN while they never change although a joint was sent
        elsewhere, MOTION_MISMATCH when one is elsewhere, from then on until `begin`.
        """
        if self._mismatch is not None:
            raise self._mismatch
        if self._sent and self._sent_ns > now_ns:  # the clock went back: the last one just ended
            self.shift(now_ns - self._sent[-1][0])
        if self._begun_ns is None:
            self._start(sightings, now_ns)
        else:
            for seen in sightings:
                self._check_frozen(seen, self._begun_ns)
                self._check_tracking(seen, self._begun_ns)
        self._anchor(sightings, now_ns)

    def room(self, sightings: Sequence[JointSighting]) -> JointRoom:
        """Return where the joints may be, once all that was sent is done.

        A joint that goes to positions is where it was told. Of one moved by velocity, what was
        sent in the last delay_ns before its measurement is done or not, whichever is worse.
        """
        if not self._by_velocity.any():
            return JointRoom(self.commanded, self.commanded)
        low, high = self.commanded.copy(), self.commanded.copy()
        for seen in sightings:
            places = [place for place in seen.places if self._by_velocity[place]]
            if not places:
                continue
            since_ns = min(seen.measured.stamp_ns, seen.since_ns) - self._tracking.delay_ns
            first = self._after(since_ns)
            sums = [self._before(since_ns), *(
                sent for _, sent in islice(self._sent, first, None)), self.commanded]
            ahead = self.commanded[places] - np.array([sent[places] for sent in sums])
            measured = np.array([
                position for place, position in zip(
                    seen.places, seen.measured.positions, strict=True)
                if self._by_velocity[place]])
            low[places] = measured + ahead.min(axis=0)
            high[places] = measured + ahead.max(axis=0)
        return JointRoom(low, high)

    def _start(self, sightings: Sequence[JointSighting], now_ns: int) -> None:
        near = np.maximum(self._tolerance, self._allowed)
        for seen in sightings:
            for place, position in zip(seen.places, seen.measured.positions, strict=True):
                if self._by_velocity[place]:
                    self._offset[place] = position - self.commanded[place]
                    continue
                stayed = abs(position - self.commanded[place]) <= near[place]
                # A gripper that holds something is not where it was told, and must not let go.
                if not self._is_known[place] or not (stayed or self._is_gripper[place]):
                    self._place(place, position)
        self._begun_ns = self._append(now_ns)

    def _anchor(self, sightings: Sequence[JointSighting], now_ns: int) -> None:
        """Begin where the joints are that are not where they were told, after a rest."""
        is_resting = now_ns - self._sent_ns > self._resting_ns
        before = self.commanded
        for seen in sightings:
            for place, position in zip(seen.places, seen.measured.positions, strict=True):
                holds = self._holds_something(place, position, is_resting)
                away = abs(position - self.commanded[place])
                if is_resting and not self._by_velocity[place] and not holds and (
                        away > self._tolerance[place]):
                    self._place(place, position)
        if self.commanded is not before:
            self._begun_ns = self._append(now_ns)

    def _holds_something(self, place: int, position: float, is_resting: bool) -> bool:
        """Return whether a gripper is kept open, and not because somebody opened it at rest."""
        opens = self._opens[place]
        opening = position * opens
        self._grips[place] = min(opening, self._grips[place] if is_resting else np.inf)
        return bool(opening > self.commanded[place] * opens
                    and opening - self._grips[place] <= self._tolerance[place])

    def _place(self, place: int, position: float) -> None:
        self.commanded = self.commanded.copy()  # what was sent stays as it was
        self.commanded[place] = position

    def _append(self, time_ns: int) -> int:
        if self._sent:
            time_ns = max(time_ns, self._sent[-1][0])
        self._sent.append((time_ns, self.commanded))
        return time_ns

    def _check_frozen(self, seen: JointSighting, begun_ns: int) -> None:
        since_ns = max(seen.since_ns, begun_ns)
        until_ns = seen.measured.stamp_ns - _FREEZE_NS
        if until_ns <= since_ns:
            return
        moved = np.abs(self._before(until_ns) - self._before(since_ns)) > self._freeze
        if any(moved[place] and not self._is_gripper[place] for place in seen.places):
            raise HoldError(
                Hold(HoldReason.INPUT_FROZEN, seen.measured.stream),
                f'The joints of {seen.measured.stream} have not changed by a bit for '
                f'{(seen.measured.stamp_ns - seen.since_ns) / 1e9:.1f} s although they were sent '
                'elsewhere; check the state publisher, and whether the arm takes the commands.')

    def _check_tracking(self, seen: JointSighting, begun_ns: int) -> None:
        stamp_ns = seen.measured.stamp_ns
        if stamp_ns < begun_ns:
            return
        expected = self._before(stamp_ns) + self._offset
        for place, position in zip(seen.places, seen.measured.positions, strict=True):
            error = position - float(expected[place])
            if self._allowed[place] and abs(error) > self._allowed[place]:
                joint = self._spec.joints[place]
                self._mismatch = HoldError(
                    Hold(HoldReason.MOTION_MISMATCH),
                    f"The joint '{joint.name}' should be at {expected[place]:.3f} {joint.unit} "
                    f'and is at {position:.3f}; see whether it is blocked and takes commands.')
                raise self._mismatch
            if self._by_velocity[place]:
                self._offset[place] += error * min(1.0, self._elapsed(stamp_ns))

    def _elapsed(self, stamp_ns: int) -> float:
        """Return the share of the window that passed between the last two commands."""
        if len(self._sent) < 2:
            return 0.0
        return (self._sent[-1][0] - self._sent[-2][0]) / self._tracking.window_ns

    def _after(self, time_ns: int) -> int:
        """Return the index of the first command whose period ends later."""
        return bisect_right(self._sent, time_ns, key=lambda sent: sent[0])

    def _before(self, time_ns: int) -> np.ndarray:
        """Return what was commanded by then, or first of all."""
        if not self._sent:
            return self.commanded
        return self._sent[max(0, self._after(time_ns) - 1)][1]
