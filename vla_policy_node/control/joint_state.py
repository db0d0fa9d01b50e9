"""Where the joints are according to their state sources, and whether that is plausible."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.joint_spec import MovedJoint

# No joint moves faster, and a measurement may be this wrong: what moves further between two
# samples has not moved, but jumped. By unit.
_MAX_SPEED = {'rad': 20.0, 'm': 3.0}
_TOLERANCE = {'rad': 0.2, 'm': 0.02}
# A joint further outside its bounds, by their distance, is not there: its bounds are another
# joint's, or its encoder is not calibrated.
_FAR_SHARE = 0.25
# A source that jumped is believed again after this long without another jump.
_SETTLING_NS = 500_000_000


@dataclass(frozen=True)
class MeasuredJoints:
    """Positions of the commanded joints that one stream measures, in the order of the action."""

    stream: str
    stamp_ns: int
    positions: tuple[float, ...]


@dataclass(frozen=True)
class JointSighting:
    """The newest positions of a stream, and since when it says the same to the last bit.

    places: of the joints in an action.
    """

    measured: MeasuredJoints
    since_ns: int
    places: tuple[int, ...]


class JointWatch:
    """The newest joint positions, and what speaks against moving by them. Any thread.

    As for poses: a source that jumps is INPUT_INVALID until it has not jumped for half a second,
    or a goal begins.

    streams: name -> places, in an action, of the joints that it measures; together all of them.
    """

    def __init__(self, joints: Sequence[MovedJoint], streams: Mapping[str, tuple[int, ...]]):
        self._joints = {name: [joints[place] for place in places]
                        for name, places in streams.items()}
        self._places = dict(streams)
        self._lock = threading.Lock()
        self._newest: dict[str, JointSighting] = {}
        self._jump_ns: dict[str, int] = {}
        self._errors: dict[str, HoldError] = {}
        self._counts: Counter[str] = Counter()

    def observe(self, measured: MeasuredJoints) -> None:
        """Take the next positions of a stream; stamps that go back mean another clock."""
        stream = measured.stream
        with self._lock:
            self._errors.pop(stream, None)
            last = self._newest.get(stream)
            since_ns = measured.stamp_ns
            if last is None or measured.stamp_ns < last.measured.stamp_ns:
                self._jump_ns.pop(stream, None)
            else:
                if measured.positions == last.measured.positions:
                    since_ns = last.since_ns
                elif self._has_jumped(last.measured, measured):
                    self._jump_ns[stream] = measured.stamp_ns
                    self._counts['jumps'] += 1
            self._newest[stream] = JointSighting(measured, since_ns, self._places[stream])

    def reject(self, error: HoldError) -> None:
        """Note that the newest message of a stream is unusable; the next good one ends that."""
        if error.hold.stream in self._places:
            with self._lock:
                self._errors[error.hold.stream] = error
                self._counts['invalid'] += 1

    def begin(self) -> None:
        """Forgive jumps: a goal begins where the arm is now."""
        with self._lock:
            self._jump_ns.clear()

    def newest(self) -> list[JointSighting]:
        """Return what each stream says. Raises HoldError if one is missing or not to move by."""
        with self._lock:
            for stream in self._places:
                if error := self._errors.get(stream):
                    raise error
                if stream not in self._newest:
                    raise HoldError(
                        Hold(HoldReason.INPUT_MISSING, stream),
                        f'No joint positions have arrived on {stream} yet.')
                self._check(stream, self._newest[stream].measured)
            return list(self._newest.values())

    def counts(self) -> dict[str, int]:
        """Return how many samples jumped and how many messages held none."""
        with self._lock:
            return dict(self._counts)

    def _check(self, stream: str, measured: MeasuredJoints) -> None:
        jump_ns = self._jump_ns.get(stream)
        if jump_ns is not None and measured.stamp_ns < jump_ns + _SETTLING_NS:
            raise HoldError(
                Hold(HoldReason.INPUT_INVALID, stream),
                f'The joints of {stream} jumped further than joints can move; look for a second '
                'publisher, or mend the state publisher.')
        for joint, position in zip(self._joints[stream], measured.positions, strict=True):
            spare = _FAR_SHARE * (joint.max_position - joint.min_position)
            # False for NaN.
            if not joint.min_position - spare <= position <= joint.max_position + spare:
                raise HoldError(
                    Hold(HoldReason.INPUT_INVALID, stream),
                    f"The joint '{joint.name}' is said to be at {position:g} {joint.unit}, far "
                    f'outside {joint.min_position:g} to {joint.max_position:g}; check its bounds '
                    'in the contract, its unit and its encoder.')

    def _has_jumped(self, last: MeasuredJoints, measured: MeasuredJoints) -> bool:
        elapsed_s = (measured.stamp_ns - last.stamp_ns) / 1e9
        return any(
            not math.isfinite(after - before)
            or abs(after - before) > _MAX_SPEED[joint.unit] * elapsed_s + _TOLERANCE[joint.unit]
            for joint, before, after in zip(
                self._joints[measured.stream], last.positions, measured.positions, strict=True))
