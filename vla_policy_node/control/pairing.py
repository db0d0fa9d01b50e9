"""Pairs camera frames and robot states by capture stamp into one observation.

Neither camera waits for the other and no callback waits for anything: subscriptions file a
reference by its stamp, and the worker takes the newest set that belongs together. Pairing by
arrival ("the latest of each topic") hides transport delay and serves a dead camera for ever.
"""

import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vla_policy_node.control.hold import Hold, HoldReason

# Frames that overtook each other on the way are this close; a clock that went back is not.
REORDER_TOLERANCE_NS = 50_000_000
# States are small and fast: enough of them for a 1 kHz stream and a camera 200 ms late.
STATE_DEPTH = 256
# No sample is kept as long as this: what seems older bears stamps of another clock.
_ANOTHER_CLOCK_NS = 10**15

_Sample = tuple[int, object]  # capture stamp in ns, payload


@dataclass(frozen=True)
class Pair:
    """One sample of every stream, captured at nearly the same time.

    stamp_ns: capture stamp of the first camera, the reference; actions are counted from it.
    spread_ns: largest minus smallest camera stamp.
    payloads, stamps_ns: by stream name; payloads are what was filed, not copies.
    """

    stamp_ns: int
    spread_ns: int
    payloads: Mapping[str, object]
    stamps_ns: Mapping[str, int]


class ObservationPairer:
    """Joins cameras and states by stamp; never hands out a partial, stale or repeated set.

    cameras: stream names; a set is built around the frames of the first one.
    states: names of the other streams, for instance the end-effector pose and the gripper.
    max_spread_ns: largest difference between the camera stamps of one set.
    max_age_ns: largest age of any sample, from its capture stamp to now.
    future_tolerance_ns: how far a stamp may lie ahead of now before the clocks disagree.
    depth: frames kept per camera, at least as many as one camera may lag behind the other.
    state_tolerance_ns: largest difference between a state and the first camera, by default
        max_spread_ns.

    All stamps are integer nanoseconds on the clock of `now_ns`.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        states: Sequence[str],
        max_spread_ns: int,
        max_age_ns: int,
        future_tolerance_ns: int,
        depth: int = 8,
        state_tolerance_ns: int | None = None,
    ):
        if not cameras or len({*cameras, *states}) != len(cameras) + len(states):
            raise ValueError(
                f'Streams {[*cameras, *states]} are unusable; name at least one camera and '
                'every stream once.'
            )
        if depth < 1 or max_age_ns <= 0 or max_spread_ns < 0 or future_tolerance_ns < 0:
            raise ValueError(
                f'Pairing bounds are unusable (depth {depth}, max_age {max_age_ns} ns, max_spread '
                f'{max_spread_ns} ns, future tolerance {future_tolerance_ns} ns); depth and '
                'max_age must be positive, the others not negative.'
            )
        self._cameras = tuple(cameras)
        self._states = tuple(states)
        self._max_spread_ns = max_spread_ns
        self._max_age_ns = max_age_ns
        self._future_tolerance_ns = future_tolerance_ns
        self._state_tolerance_ns = (
            max_spread_ns if state_tolerance_ns is None else state_tolerance_ns
        )
        self._samples: dict[str, deque[_Sample]] = {
            **{camera: deque(maxlen=depth) for camera in self._cameras},
            **{state: deque(maxlen=STATE_DEPTH) for state in self._states},
        }
        self._condition = threading.Condition()
        self._counts: Counter[str] = Counter()
        self._used_ns: dict[str, int] = {}  # per camera, stamp of the last frame taken
        self._awaited = set(self._cameras)  # streams whose next sample may complete a set
        self._arrived = False
        self._jumped: Hold | None = None
        # The newest sample of each stream when `health` looked, and since when.
        self._seen: dict[str, tuple[_Sample | None, int]] = {}
        self._refused: dict[str, Hold] = {}

    def file(self, stream: str, stamp_ns: int, payload: object) -> bool:
        """Keep a reference to one sample; return whether it is the newest (executor thread).

        A repeated stamp and a frame that was overtaken are dropped and counted. A stamp that
        went back further means that the clock did (a bag that loops): the older samples of the
        stream are forgotten and `health` reports it once.
        """
        with self._condition:
            samples = self._samples[stream]
            behind_ns = samples[-1][0] - stamp_ns if samples else -1
            if behind_ns > REORDER_TOLERANCE_NS:
                self._counts[f'{stream}.backward'] += 1
                samples.clear()
                self._used_ns.pop(stream, None)
                self._jumped = Hold(
                    HoldReason.CLOCK_JUMP, stream, f'back by {_seconds(behind_ns)} s')
            elif behind_ns >= 0:
                self._counts[f'{stream}.reordered' if behind_ns else f'{stream}.duplicate'] += 1
                return False
            if stream in self._cameras and len(samples) == samples.maxlen:
                self._count_unused(stream, samples[0][0], 'evicted')
            samples.append((stamp_ns, payload))
            if stream in self._awaited:
                self._arrived = True
                self._condition.notify_all()
            self._refused.pop(stream, None)
            return True

    def take_bounds(self, other: 'ObservationPairer') -> None:
        """Judge as another pairer of the same streams does; the samples stay (any thread)."""
        with self._condition:
            self._max_spread_ns, self._max_age_ns, self._future_tolerance_ns = (
                other._max_spread_ns, other._max_age_ns, other._future_tolerance_ns)
            self._state_tolerance_ns = other._state_tolerance_ns

    def refuse(self, stream: str, hold: Hold) -> None:
        """Note that the newest message of a stream cannot be used (executor thread).

        `health` returns the hold until a good sample is filed. Earlier good samples stay: a bad
        message costs only itself.
        """
        with self._condition:
            self._refused[stream] = hold

    def wait(self, timeout_s: float) -> bool:
        """Block until a sample arrived that `take` has not seen (worker thread).

        Returns False at the timeout. States wake the worker only when the last `take` lacked
        one, so that a 1 kHz joint stream does not spin it.
        """
        with self._condition:
            return self._condition.wait_for(lambda: self._arrived, timeout_s)

    def take(self, now_ns: int) -> Pair | Hold:
        """Return the newest complete set that was not taken before (worker thread).

        A hold says what is lacking; its code is NONE when all is well and nothing is new.
        """
        with self._condition:
            self._arrived = False
            result: Pair | Hold | None = self._check_streams(now_ns)
            if result is None:
                result = self._match(now_ns, self._used_ns.get(self._cameras[0]))
            self._awaited = set(self._cameras)
            if isinstance(result, Hold):
                self._awaited.add(result.stream)
            else:
                self._mark_used(result)
            return result

    def rearm(self) -> None:
        """Let `take` return the newest set once more, for a goal that begins now (any thread)."""
        with self._condition:
            self._used_ns.clear()
            self._arrived = True
            self._condition.notify_all()

    def health(self, now_ns: int, steady_ns: int | None = None) -> Hold | None:
        """Return why the inputs must not move the robot, or None (whoever ticks).

        Looks at all that is kept, taken or not, so it notices a stream that stops while an
        inference runs or a chunk plays. A backward stamp is reported by exactly one call.
        steady_ns: of a clock that never steps, None: now_ns. However the clock of the stamps is
            set back, no sample is good for longer than max_age_ns after it was first seen here.
        """
        with self._condition:
            # In every call: what counts is when a sample was first seen.
            overdue = self._check_arrivals(now_ns if steady_ns is None else steady_ns)
            if self._jumped:
                jumped, self._jumped = self._jumped, None
                return jumped
            for refused in self._refused.values():
                return refused
            hold = self._check_streams(now_ns) or overdue
            if hold is not None:
                return hold
            match = self._match(now_ns, None)
            return match if isinstance(match, Hold) else None

    def ages_ns(self, now_ns: int) -> dict[str, int]:
        """Return the age of the newest sample of each stream that has one (any thread)."""
        with self._condition:
            return {name: now_ns - s[-1][0] for name, s in self._samples.items() if s}

    def counts(self) -> dict[str, int]:
        """Return how many samples were taken and dropped, by name (any thread)."""
        with self._condition:
            return dict(self._counts)

    def reset(self) -> None:
        """Forget all samples and wake the worker; the counts stay (any thread)."""
        with self._condition:
            for samples in self._samples.values():
                samples.clear()
            self._used_ns.clear()
            self._refused.clear()
            self._jumped = None
            self._arrived = True
            self._condition.notify_all()

    # The rest runs with the lock held.

    def _check_streams(self, now_ns: int) -> Hold | None:
        for stream, samples in self._samples.items():
            if not samples:
                return Hold(HoldReason.INPUT_MISSING, stream)
            stamp_ns = samples[-1][0]
            if stamp_ns > now_ns + self._future_tolerance_ns:
                return Hold(HoldReason.CLOCK_JUMP, stream, _ahead(
                    stamp_ns - now_ns, self._future_tolerance_ns))
            if stamp_ns < now_ns - self._max_age_ns:
                return self._stale(stream, stamp_ns, now_ns)
        return None

    def _stale(self, stream: str, stamp_ns: int, now_ns: int) -> Hold:
        if stamp_ns == 0:
            detail = 'its stamp is zero; its publisher must set header.stamp'
        elif now_ns - stamp_ns > _ANOTHER_CLOCK_NS:
            detail = (f'stamped {stamp_ns / 1e9:.1f} s, while the clock of this node says '
                      f'{now_ns / 1e9:.1f} s; see use_sim_time')
        else:
            detail = (f'{_seconds(now_ns - stamp_ns)} s old, limit '
                      f'{_seconds(self._max_age_ns)} s, see max_age_s')
        return Hold(HoldReason.INPUT_STALE, stream, detail)

    def _check_arrivals(self, steady_ns: int) -> Hold | None:
        overdue = None
        for stream, samples in self._samples.items():
            newest = samples[-1] if samples else None
            seen, seen_ns = self._seen.get(stream, (None, steady_ns))
            if newest is not seen:
                self._seen[stream] = newest, steady_ns
            elif steady_ns - seen_ns > self._max_age_ns:
                overdue = Hold(HoldReason.INPUT_STALE, stream, (
                    f'nothing newer for {_seconds(steady_ns - seen_ns)} s, limit '
                    f'{_seconds(self._max_age_ns)} s, see max_age_s'))
        return overdue

    def _match(self, now_ns: int, after_ns: int | None) -> Pair | Hold:
        """Return the newest set whose first camera is newer than after_ns."""
        hold = Hold(HoldReason.NONE)
        for reference in reversed(self._samples[self._cameras[0]]):
            if after_ns is not None and reference[0] <= after_ns:
                break
            match = self._match_reference(reference, now_ns)
            if isinstance(match, Pair):
                return match
            if hold.code is HoldReason.NONE:
                hold = match  # what the newest frame lacks
        return hold

    def _match_reference(self, reference: _Sample, now_ns: int) -> Pair | Hold:
        first, *others = self._cameras
        chosen = {first: reference}
        for stream in (*others, *self._states):
            chosen[stream] = min(self._samples[stream], key=lambda s: abs(s[0] - reference[0]))
        stamps_ns = {stream: sample[0] for stream, sample in chosen.items()}
        camera_stamps_ns = [stamps_ns[camera] for camera in self._cameras]
        spread_ns = max(camera_stamps_ns) - min(camera_stamps_ns)
        if spread_ns > self._max_spread_ns:
            furthest = max(others, key=lambda camera: abs(stamps_ns[camera] - reference[0]))
            return Hold(HoldReason.CAMERA_SPREAD, furthest, (
                f'{_seconds(spread_ns)} s apart, limit {_seconds(self._max_spread_ns)} s, see '
                'max_spread_s'))
        for state in self._states:
            apart_ns = abs(stamps_ns[state] - reference[0])
            if apart_ns > self._state_tolerance_ns:
                return Hold(HoldReason.INPUT_STALE, state, (
                    f'{_seconds(apart_ns)} s from the picture of {first}, limit '
                    f'{_seconds(self._state_tolerance_ns)} s, see state_tolerance_s'))
        oldest = min(stamps_ns, key=stamps_ns.__getitem__)
        if stamps_ns[oldest] < now_ns - self._max_age_ns:
            return self._stale(oldest, stamps_ns[oldest], now_ns)
        payloads = {stream: sample[1] for stream, sample in chosen.items()}
        return Pair(reference[0], spread_ns, payloads, stamps_ns)

    def _mark_used(self, pair: Pair) -> None:
        self._counts['pairs'] += 1
        for camera in self._cameras:
            samples, used_ns = self._samples[camera], pair.stamps_ns[camera]
            while samples[0][0] < used_ns:
                self._count_unused(camera, samples.popleft()[0], 'superseded')
            self._used_ns[camera] = used_ns

    def _count_unused(self, camera: str, stamp_ns: int, why: str) -> None:
        if stamp_ns > self._used_ns.get(camera, stamp_ns - 1):
            self._counts[f'{camera}.{why}'] += 1


def _ahead(by_ns: int, tolerance_ns: int) -> str:
    if by_ns > _ANOTHER_CLOCK_NS:
        return 'they are of another clock than that of this node; see use_sim_time'
    return (f'{_seconds(by_ns)} s ahead of the clock of this node, limit '
            f'{_seconds(tolerance_ns)} s, see future_tolerance_s')


def _seconds(time_ns: int) -> str:
    return f'{time_ns / 1e9:.3f}'.rstrip('0').rstrip('.')
