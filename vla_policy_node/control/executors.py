"""Chunk executors: which action of which chunk is due now.

Element i of a chunk is for the control period that ends at
`observation_stamp + (i + 1) * period`. A tick at time T commands the period that ends at
T + period, its target. Elements that became late during inference are therefore skipped by
counting time since the observation, never by estimating a delay, and a chunk never restarts at 0
(the robot would go back a few steps at every seam).
"""

import math
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vla_policy_node.control.action_spec import END_EFFECTOR_LAYOUT, ActionLayout, checked_actions
from vla_policy_node.control.ensemble import EnsembleSettings
from vla_policy_node.policy.interface import EXECUTION_MODES, Execution

# After a pause this long the phase of the command thread means nothing any more.
GAP_PERIODS = 5
# Inferences of which the latest chunk decides how late the next one is taken to be.
DELAY_WINDOW = 10
# Actions remembered while no chunk comes; far more than a chunk has.
MOST_EXECUTED = 1024


@dataclass(frozen=True, eq=False)
class ChunkStep:
    """The action for one control period.

    action: [D] in the units of the chunk, read-only.
    chunk_step: its index in the newest chunk it comes from.
    observation_stamp_ns: capture stamp of the observation behind that chunk.
    target_time_ns: end of the control period, on the grid of earlier targets.
    disagreement: RMS distance in action units, gripper excluded, of the averaged predictions to
        their average; NaN when there is only one.
    """

    action: np.ndarray
    chunk_step: int
    observation_stamp_ns: int
    target_time_ns: int
    disagreement: float


@dataclass(frozen=True, eq=False)
class _Chunk:
    actions: np.ndarray
    normalised: np.ndarray
    stamp_ns: int


class ChunkExecutor(ABC):
    """Holds chunks and serves each target time at most once.

    Targets increase strictly: one that falls on a period already served gives None. Targets snap
    to the grid of the earlier ones, so that timer jitter below half a period neither skips nor
    repeats an element; a pause of more than GAP_PERIODS starts a new grid. When the clock goes
    back, call `reset`.

    One lock covers everything, so that the chunks cannot change between a look and an update.

    layout: of the actions.
    """

    mode: ClassVar[str]  # one of EXECUTION_MODES

    def __init__(self, period_ns: int, depth: int, layout: ActionLayout = END_EFFECTOR_LAYOUT):
        if period_ns <= 0:
            raise ValueError(f'The control period is {period_ns} ns; it must be positive.')
        self._period_ns = period_ns
        self._layout = layout
        self._lock = threading.Lock()
        self._chunks: deque[_Chunk] = deque(maxlen=depth)  # oldest first
        self._executed: deque[tuple[int, np.ndarray]] = deque(maxlen=MOST_EXECUTED)
        self._delays: deque[int] = deque(maxlen=DELAY_WINDOW)
        self._last_target_ns: int | None = None
        self._epoch = 0
        self._bad_until_ns: int | None = None
        self._counts: Counter[str] = Counter()

    @abstractmethod
    def needs_inference(self, target_time_ns: int) -> bool:
        """Return whether a chunk should be computed now (worker thread)."""

    def execution(self, observation_stamp_ns: int) -> Execution:
        """Return what a policy may know that is to answer this observation (worker thread)."""
        with self._lock:
            passed = self._periods_passed(observation_stamp_ns)
            delay = max(0, passed, *self._delays)
            served = [(self._period_of(target_ns, observation_stamp_ns), action)
                      for target_ns, action in self._executed]
            committed = [action for period, action in served if period >= 0]
            for period in range(max(0, passed), delay):
                candidates = self._covering(self._target_of(period, observation_stamp_ns))
                if candidates:
                    committed.append(self._merge([c.actions[i] for c, i in candidates])[0])
            if not self._chunks:
                return Execution(self.mode, delay=delay)
            newest = self._chunks[-1]
            first = self._index(newest, self._target_of(0, observation_stamp_ns))
            nothing = newest.actions[:0]
            executed = [action for period, action in served if period < 0]
            return Execution(
                self.mode, np.stack(executed) if executed else nothing,
                np.stack(committed) if committed else nothing,
                newest.normalised[max(0, first):], delay)

    def push(
        self, actions: np.ndarray, observation_stamp_ns: int, epoch: int,
        normalised: np.ndarray | None = None,
    ) -> None:
        """Add the chunk [K, D] of one inference (worker thread).

        normalised: the same as the model gave them, for `Execution.leftover`.
        `epoch` is the one the inference was started under; a chunk of another epoch, one that is
        not newer than the last, or one from before inputs were bad is discarded and counted. An
        inference outlasts a short trouble, and what it saw was part of it. Raises HoldError
        (ACTION_INVALID) for a non-finite or absurd chunk, ValueError for another shape or length.
        """
        checked = checked_actions(actions, self._layout.dimension)
        kept = checked[:0] if normalised is None or not len(normalised) else np.array(normalised)
        kept.setflags(write=False)
        chunk = _Chunk(checked, kept, observation_stamp_ns)
        with self._lock:
            if epoch != self._epoch:
                self._counts['chunks_of_other_epoch'] += 1
            elif self._bad_until_ns is not None and observation_stamp_ns < self._bad_until_ns:
                self._counts['chunks_of_bad_inputs'] += 1
            elif self._chunks and observation_stamp_ns <= self._chunks[-1].stamp_ns:
                self._counts['chunks_out_of_order'] += 1
            else:
                self._counts['chunks'] += 1
                if self._last_target_ns is not None:
                    passed = self._periods_passed(observation_stamp_ns)
                    late = min(max(passed, 0), len(chunk.actions))
                    self._counts['late_elements'] += late
                    self._delays.append(late)
                while self._executed and (
                    self._period_of(self._executed[0][0], observation_stamp_ns) < 0
                ):
                    self._executed.popleft()
                self._chunks.append(chunk)

    def pop(self, target_time_ns: int) -> ChunkStep | None:
        """Return the action for the period that ends at target_time_ns (whoever ticks).

        None if no chunk covers it or its period was served before. Never waits for the worker.
        """
        with self._lock:
            target_ns = self._snap(target_time_ns)
            if target_ns is None:
                self._counts['repeated_targets'] += 1
                return None
            self._last_target_ns = target_ns
            self._drop_chunks_of_another_clock(target_ns)
            covering = self._covering(target_ns)
            if not covering:
                return None
            action, disagreement = self._merge([c.actions[i] for c, i in covering])
            newest, index = covering[-1]
            self._counts['actions'] += 1
            self._executed.append((target_ns, action))
            return ChunkStep(action, index, newest.stamp_ns, target_ns, disagreement)

    def reset(self, epoch: int, bad_until_ns: int | None = None) -> None:
        """Forget all chunks; from now on only chunks of this epoch are accepted (any thread).

        bad_until_ns: and only those of observations since then, as inputs were bad before.
        """
        with self._lock:
            self._epoch = epoch
            self._bad_until_ns = bad_until_ns
            self._chunks.clear()
            self._executed.clear()
            self._last_target_ns = None

    def follow(self, former: 'ChunkExecutor') -> None:
        """Continue where another executor left off, in this one's way (any thread).

        A chunk that was pushed to the former one since then is lost.
        """
        with former._lock, self._lock:
            self._chunks = deque(former._chunks, self._chunks.maxlen)
            self._executed, self._delays = former._executed.copy(), former._delays.copy()
            self._last_target_ns, self._epoch = former._last_target_ns, former._epoch
            self._bad_until_ns = former._bad_until_ns
            self._counts = former._counts.copy()

    @property
    def has_chunk(self) -> bool:
        """Whether a chunk of the present epoch has arrived, used up or not (any thread)."""
        with self._lock:
            return bool(self._chunks)

    def counts(self) -> dict[str, int]:
        """Return chunks, actions and everything discarded, by name (any thread)."""
        with self._lock:
            return dict(self._counts)

    # The rest runs with the lock held.

    def _merge(self, candidates: list[np.ndarray]) -> tuple[np.ndarray, float]:
        """Return the action [D] for candidates, oldest first, and their disagreement."""
        return candidates[-1], math.nan

    def _drop_chunks_of_another_clock(self, target_ns: int) -> None:
        # An inference that was under way when the clock went back ends after `reset`. Its stamp
        # lies in the future and would make every chunk that follows look out of order.
        while self._chunks and (
            self._chunks[-1].stamp_ns > target_ns + GAP_PERIODS * self._period_ns
        ):
            self._chunks.pop()
            self._counts['chunks_from_the_future'] += 1

    def _covering(self, target_ns: int) -> list[tuple[_Chunk, int]]:
        indexed = [(chunk, self._index(chunk, target_ns)) for chunk in self._chunks]
        return [(chunk, i) for chunk, i in indexed if 0 <= i < len(chunk.actions)]

    def _index(self, chunk: _Chunk, target_ns: int) -> int:
        return self._period_of(target_ns, chunk.stamp_ns)

    def _period_of(self, target_ns: int, stamp_ns: int) -> int:
        """Which period after the stamp ends at the target, 0 for the first one."""
        return _rounded_ratio(target_ns - stamp_ns, self._period_ns) - 1

    def _target_of(self, period: int, stamp_ns: int) -> int:
        """End of a period after the stamp, on the grid of the targets if there is one."""
        if self._last_target_ns is None:
            return stamp_ns + (period + 1) * self._period_ns
        ahead = period - self._period_of(self._last_target_ns, stamp_ns)
        return self._last_target_ns + ahead * self._period_ns

    def _periods_passed(self, stamp_ns: int) -> int:
        """How many periods after the stamp were served, or could have been; below 0 for none."""
        if self._last_target_ns is None:
            return 0
        return self._period_of(self._last_target_ns, stamp_ns) + 1

    def _snap(self, target_ns: int) -> int | None:
        if self._last_target_ns is None:
            return target_ns
        periods = _rounded_ratio(target_ns - self._last_target_ns, self._period_ns)
        if periods < 1:
            return None
        if periods > GAP_PERIODS:
            return target_ns
        return self._last_target_ns + periods * self._period_ns


class SyncExecutor(ChunkExecutor):
    """Plays a chunk to its end, then asks for the next one; the robot holds meanwhile."""

    mode = 'sync'

    def __init__(self, period_ns: int, layout: ActionLayout = END_EFFECTOR_LAYOUT):
        super().__init__(period_ns, 1, layout)

    def needs_inference(self, target_time_ns: int) -> bool:
        """Return True once no element is left for the target, or for the next unserved one."""
        with self._lock:
            if self._last_target_ns is not None:
                target_time_ns = max(target_time_ns, self._last_target_ns + self._period_ns)
            return not self._covering(target_time_ns)


class AsyncExecutor(ChunkExecutor):
    """Infers all the time; every new chunk takes over at the element whose time has come."""

    mode = 'async'

    def __init__(self, period_ns: int, layout: ActionLayout = END_EFFECTOR_LAYOUT):
        # Two: until the first period of the newest chunk begins, the one before it serves. That
        # is a tick away if the camera clock runs slightly ahead.
        super().__init__(period_ns, 2, layout)

    def needs_inference(self, target_time_ns: int) -> bool:
        """Return True: the next observation is always worth an inference."""
        return True


class TemporalEnsembleExecutor(ChunkExecutor):
    """Averages what all recent chunks predict for the target (ACT, CogACT).

    A gripper is neither averaged nor asked for agreement: half open is no grasp, so its value
    is the newest chunk's. Only 'cogact' does both, as published, for actions of 0 or 1.
    """

    mode = 'temporal_ensemble'

    def __init__(
        self, period_ns: int, settings: EnsembleSettings,
        layout: ActionLayout = END_EFFECTOR_LAYOUT,
    ):
        super().__init__(period_ns, settings.horizon, layout)
        self._settings = settings

    def needs_inference(self, target_time_ns: int) -> bool:
        """Return True: every chunk adds a prediction."""
        return True

    def _merge(self, candidates: list[np.ndarray]) -> tuple[np.ndarray, float]:
        motion = self._layout.motion
        averaged = slice(None) if self._settings.weighting == 'cogact' else motion
        together, action = np.stack(candidates), candidates[-1].copy()
        action[averaged] = self._settings.weights(together[:, averaged]) @ together[:, averaged]
        motions = together[:, motion]
        action.setflags(write=False)
        if len(candidates) == 1:
            return action, math.nan
        return action, float(np.sqrt(np.mean((motions - action[motion]) ** 2)))


def create_executor(
    mode: str, period_ns: int, ensemble: EnsembleSettings | None = None,
    layout: ActionLayout = END_EFFECTOR_LAYOUT,
) -> ChunkExecutor:
    """Return the executor of one of EXECUTION_MODES; `ensemble` is for 'temporal_ensemble'."""
    if mode == 'sync':
        return SyncExecutor(period_ns, layout)
    if mode == 'async':
        return AsyncExecutor(period_ns, layout)
    if mode == 'temporal_ensemble':
        return TemporalEnsembleExecutor(period_ns, ensemble or EnsembleSettings(), layout)
    raise ValueError(
        f"Execution mode '{mode}' is unknown; use one of {', '.join(EXECUTION_MODES)}."
    )


def _rounded_ratio(numerator: int, denominator: int) -> int:
    """Round to the nearest integer, halves up, in exact integer arithmetic."""
    return (2 * numerator + denominator) // (2 * denominator)
