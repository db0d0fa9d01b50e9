"""Decides what a control period sends: an action within the limits, or a hold and its reason."""

import math
import threading
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from vla_policy_node.control.cameras import CameraWatch
from vla_policy_node.control.clock_watch import ClockWatch
from vla_policy_node.control.executors import ChunkExecutor
from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.mover import Mover
from vla_policy_node.control.pairing import ObservationPairer
from vla_policy_node.control.session import Goal, Outcome, Session

NO_HOLD = Hold(HoldReason.NONE)
# Inputs went bad: what the policy planned from them must not go on when they come back.
_INPUT_HOLDS = frozenset({
    HoldReason.INPUT_MISSING,
    HoldReason.INPUT_STALE,
    HoldReason.INPUT_FROZEN,
    HoldReason.CAMERA_SPREAD,
    HoldReason.CLOCK_JUMP,
    HoldReason.INPUT_INVALID,
    HoldReason.SOURCE_CONFLICT,
    HoldReason.CAMERA_CHANGED,
    HoldReason.CLOCK_STOPPED,
    HoldReason.MOTION_MISMATCH,
})
# The arm has come to rest after more than this many periods without a command: they expire.
_LASTING_PERIODS = 2
# Whatever goes wrong while deciding, no action may be sent.
_UNDECIDED = Hold(HoldReason.ACTION_INVALID)


@dataclass(frozen=True, eq=False)
class Command:
    """The command of one control period.

    motion: what moves, of the kind that the mover makes; while holding, what stands still.
    hold: its code is NONE when the policy moves the robot.
    observation_stamp_ns: capture stamp behind the action, 0 on a hold; chunk_step likewise -1.
    detail: the background of a hold, for the log: a sentence, or the traceback of an unexpected
        exception; often empty.
    """

    motion: Any
    hold: Hold
    target_time_ns: int
    observation_stamp_ns: int
    chunk_step: int
    epoch: int
    disagreement: float
    rules: tuple[str, ...]
    detail: str = ''


@dataclass(frozen=True)
class CommanderParts:
    """The parts that tunable parameters configure; exchanged between two ticks."""

    pairer: ObservationPairer
    cameras: CameraWatch
    executor: ChunkExecutor
    mover: Mover
    input_timeout_ns: int


class Commander:
    """Decides each control period, from parts that each know one thing.

    Any thread may call anything, one lock covers it all. `tick` is called by the command thread,
    in lock-step by the worker.
    Checks run in order of importance: stops first, then inputs, then the plan.
    """

    def __init__(self, session: Session, parts: CommanderParts):
        self.session = session
        self.parts = parts
        self._lock = threading.Lock()
        self._acted_ns = 0  # when the last action was sent
        self._clock = ClockWatch()
        self._must_rest = False  # before the next action
        self._fault: Hold | None = None
        self._bad_since_ns: int | None = None
        self._inputs_bad_ns: int | None = None  # when they were last, during this goal
        self._last_steady_ns: int | None = None
        self._elapsed_ns = 0  # of the goal; setting a clock back does not extend it
        self._counts: Counter[str] = Counter()
        self.steps = 0  # actions sent since the goal began

    def begin(self, instruction: str, duration_ns: int) -> Goal:
        """Start following an instruction. Raises GoalRefusedError."""
        with self._lock:
            goal = self.session.begin(instruction, duration_ns)
            self._inputs_bad_ns = None
            self.parts.executor.reset(goal.epoch)
            self._fault = None
            self._bad_since_ns = None
            self._last_steady_ns = None
            self._elapsed_ns = 0
            self.steps = 0
            # The goal begins with what the cameras show already; a world in lock-step shows
            # nothing new before it gets a command.
            self.parts.pairer.rearm()
            self.parts.cameras.begin()
            self.parts.mover.begin()
            return goal

    def end(
        self, outcome: Outcome, epoch: int | None = None, hold: Hold | None = None
    ) -> bool:
        """Stop following the instruction, or only the one of `epoch`; False if it had ended.

        Results still being computed will be discarded. hold: as for `Session.end`.
        """
        with self._lock:
            return self._end(outcome, epoch, hold)

    def estop(self) -> None:
        """Latch the emergency stop; the next tick holds, whatever the model is doing."""
        with self._lock:
            self.session.estop()
            self.parts.executor.reset(self.session.epoch)

    def fault(self, hold: Hold | None, epoch: int) -> None:
        """Hold for a reason the worker found, until it reports None (worker thread).

        `epoch` is that of the goal it worked for: trouble with an old one is no reason to hold.
        """
        with self._lock:
            if epoch == self.session.epoch:
                self._fault = hold

    def replace(self, parts: CommanderParts) -> None:
        """Exchange the parts that parameters tune; those that stay are not disturbed (any thread).

        Each takes over what the one before it knows. The pairer stays, with other bounds: the
        worker may be waiting for it.
        """
        with self._lock:
            before = self.parts
            before.pairer.take_bounds(parts.pairer)
            if parts.executor is not before.executor:
                parts.executor.follow(before.executor)
            if parts.cameras is not before.cameras:
                parts.cameras.follow(before.cameras)
            if parts.mover is not before.mover:
                parts.mover.follow(before.mover)
                # Motion under other limits begins at rest.
                self._must_rest = not parts.mover.is_at_rest
            self.parts = replace(parts, pairer=before.pairer)

    def counts(self) -> dict[str, int]:
        """Return ticks by hold reason, 'command' for those with an action (any thread)."""
        return dict(self._counts)

    def tick(
        self, now_ns: int, target_time_ns: int, steady_ns: int | None = None,
        outside: Hold | None = None,
    ) -> Command:
        """Return the command for the control period that ends at target_time_ns.

        Never waits for an inference and never raises: trouble is a hold.
        now_ns: on the clock of the stamps, which may jump. steady_ns: on one that does not, which
            counts the time of the goal and of bad inputs; None: now_ns, where time is simulated.
        outside: a reason to hold that was found where this commander cannot look.
        """
        steady_ns = now_ns if steady_ns is None else steady_ns
        with self._lock:
            detail = ''
            try:
                if step_ns := self._clock.look(now_ns, steady_ns):
                    self.parts.mover.shift(step_ns)
                self._end_in_time(steady_ns)
                decided = self._find_hold(now_ns, steady_ns, outside) or self._act(
                    now_ns, target_time_ns, steady_ns)
            except HoldError as error:
                decided, detail = error.hold, str(error)
            except Exception:  # without a command the robot would go on with the last one
                decided, detail = self.session.hold() or _UNDECIDED, traceback.format_exc()
            if isinstance(decided, Command):
                self._bad_since_ns = None
                self._counts['command'] += 1
                self.steps += 1
                return decided
            return self._stand_still(decided, detail, now_ns, steady_ns, target_time_ns)

    def pause(self, hold: Hold, target_time_ns: int) -> Command:
        """Return a hold that changes nothing of what is planned (any thread).

        For lock-step, where no time passes while the world pauses; a stop keeps its own reason.
        """
        with self._lock:
            return self._hold_command(self.session.hold() or hold, target_time_ns)

    # The rest runs with the lock held.

    def _end_in_time(self, steady_ns: int) -> None:
        if self._last_steady_ns is not None:
            self._elapsed_ns += max(0, steady_ns - self._last_steady_ns)
        self._last_steady_ns = steady_ns
        goal = self.session.goal
        if goal is not None and self._elapsed_ns >= goal.duration_ns:
            self._end(Outcome.SUCCEEDED_DURATION, goal.epoch)

    def _end(
        self, outcome: Outcome, epoch: int | None = None, hold: Hold | None = None
    ) -> bool:
        ended = self.session.end(outcome, epoch, hold)
        if ended:
            self.parts.executor.reset(self.session.epoch)
        return ended

    def _find_hold(self, now_ns: int, steady_ns: int, outside: Hold | None) -> Hold | None:
        parts = self.parts
        stopped = self.session.hold()
        # The clock check must see every tick, or it would report a jump long past.
        inputs = parts.pairer.health(now_ns, steady_ns) or parts.cameras.health()
        return stopped or outside or self._clock.health() or inputs or self._fault

    def _act(self, now_ns: int, target_time_ns: int, steady_ns: int) -> Command | Hold:
        """Return what the plan says for this period, within all limits. Raises HoldError."""
        parts, mover = self.parts, self.parts.mover
        mover.check(now_ns)
        if self._must_rest:
            return Hold(HoldReason.AWAITING_INFERENCE)
        step = parts.executor.pop(target_time_ns)
        if step is None:
            exhausted = parts.executor.has_chunk
            return Hold(
                HoldReason.CHUNK_EXHAUSTED if exhausted else HoldReason.AWAITING_INFERENCE
            )
        if steady_ns - self._acted_ns > (_LASTING_PERIODS + 0.5) * mover.period_s * 1e9:
            mover.rest()
        motion, rules = mover.plan(step.action, now_ns)
        mover.sent(motion, now_ns, step.target_time_ns)
        self._acted_ns = steady_ns
        return Command(
            motion,
            NO_HOLD,
            step.target_time_ns,
            step.observation_stamp_ns,
            step.chunk_step,
            self.session.epoch,
            step.disagreement,
            rules,
        )

    def _stand_still(
        self, hold: Hold, detail: str, now_ns: int, steady_ns: int, target_time_ns: int
    ) -> Command:
        parts = self.parts
        parts.mover.rest()
        self._must_rest = False
        if hold.code in _INPUT_HOLDS:
            self._inputs_bad_ns = now_ns
        if detail or hold.code in _INPUT_HOLDS:
            parts.executor.reset(self.session.epoch, self._inputs_bad_ns)
        if hold.code in _INPUT_HOLDS:
            self._end_if_lost(steady_ns)
        else:
            self._bad_since_ns = None
        self._counts[hold.code.name.lower()] += 1
        return self._hold_command(hold, target_time_ns, detail)

    def _hold_command(self, hold: Hold, target_time_ns: int, detail: str = '') -> Command:
        return Command(
            self.parts.mover.still(), hold, target_time_ns, 0, -1, self.session.epoch, math.nan,
            (), detail)

    def _end_if_lost(self, steady_ns: int) -> None:
        if self._bad_since_ns is None or steady_ns < self._bad_since_ns:
            self._bad_since_ns = steady_ns
        timeout_ns = self.parts.input_timeout_ns
        if timeout_ns and steady_ns - self._bad_since_ns >= timeout_ns:
            self._end(Outcome.INPUT_LOST)
