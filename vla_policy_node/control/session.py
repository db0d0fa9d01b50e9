"""Who may move the robot: one goal at a time, a latched emergency stop, and how work ended."""

import threading
from dataclasses import dataclass
from enum import IntEnum

from vla_policy_node.control.hold import Hold, HoldReason


class Outcome(IntEnum):
    """How a goal ended: the codes of the result of `vla_msgs/action/ExecuteInstruction`."""

    SUCCEEDED_DURATION = 0
    CANCELLED = 1
    ESTOPPED = 2
    DEACTIVATED = 3
    INPUT_LOST = 4
    INFERENCE_FAILED = 5
    CLIENT_LOST = 6


OUTCOME_TEXTS = {
    Outcome.SUCCEEDED_DURATION: 'Ran for the whole duration that was asked for.',
    Outcome.CANCELLED: 'Cancelled on request.',
    Outcome.ESTOPPED: 'Stopped by the emergency stop.',
    Outcome.DEACTIVATED: 'The node was deactivated.',
    Outcome.INPUT_LOST: 'The inputs stayed unusable for too long.',
    Outcome.INFERENCE_FAILED: 'The policy raised an exception; see the log.',
    Outcome.CLIENT_LOST: 'The client that sent the goal is gone.',
}

# Ended goals whose clients may still have to hear how; they do within a fraction of a second.
_REMEMBERED_EPOCHS = 64


class GoalRefusedError(ValueError):
    """A goal that cannot begin now; the message says why and what to do."""


@dataclass(frozen=True)
class Goal:
    """One instruction being followed, for at most duration_ns."""

    epoch: int
    instruction: str
    duration_ns: int


class Session:
    """The one slot for a goal, and the switches that close it (any thread).

    The slot is claimed where a goal is accepted, under the lock, not where it begins to execute:
    two goals that arrive together must not both pass. Before, it is reserved while an instruction
    is checked, and released after, as only one can be checked at a time. The first outcome of a
    goal stays; whoever comes second changes nothing. `epoch` grows with every begin and every end,
    so that a result computed for anything else can be told apart.

    epoch: the one to begin with. Receivers of commands ignore what is older than they know of, so
    it must lie above those of an earlier process.
    """

    def __init__(self, epoch: int = 0):
        self._lock = threading.Lock()
        self._goal: Goal | None = None
        self._outcomes: dict[int, Outcome] = {}
        self._epoch = epoch
        self._active = False
        self._estopped = False
        self._reserved = False
        self._hold = Hold(HoldReason.INACTIVE)

    def activate(self) -> None:
        """Allow goals."""
        with self._lock:
            self._active = True
            self._hold = Hold(HoldReason.NO_INSTRUCTION)

    def deactivate(self) -> None:
        """End the running goal and allow no other."""
        with self._lock:
            self._end(Outcome.DEACTIVATED)
            self._active = False
            self._hold = Hold(HoldReason.INACTIVE)

    def reserve(self) -> None:
        """Claim the slot while an instruction is looked at, which takes time.

        Whoever reserves must `release`, also after `begin`. Raises GoalRefusedError if the slot
        is taken or closed.
        """
        with self._lock:
            if self._reserved:
                raise GoalRefusedError('Another instruction is being checked; try again.')
            self._check_free()
            self._reserved = True

    def release(self) -> None:
        """Give a reservation back."""
        with self._lock:
            self._reserved = False

    def begin(self, instruction: str, duration_ns: int) -> Goal:
        """Claim the slot. Raises GoalRefusedError if it is taken or closed."""
        with self._lock:
            self._check_free()
            if not instruction.strip():
                raise GoalRefusedError('The instruction is empty; say what the robot should do.')
            if duration_ns <= 0:
                raise GoalRefusedError(
                    f'The duration is {duration_ns / 1e9:g} s; it must be positive.'
                )
            self._epoch += 1
            self._goal = Goal(self._epoch, instruction, duration_ns)
            return self._goal

    def end(
        self, outcome: Outcome, epoch: int | None = None, hold: Hold | None = None
    ) -> bool:
        """End the running goal, or only the one of `epoch`; False if it had ended already.

        hold: why the robot stands still from now on, if not because the goal has ended.
        """
        with self._lock:
            if epoch is not None and (self._goal is None or self._goal.epoch != epoch):
                return False
            return self._end(outcome, hold)

    def estop(self) -> None:
        """Latch the emergency stop."""
        with self._lock:
            self._estopped = True
            self._end(Outcome.ESTOPPED)

    def reset_estop(self) -> None:
        """Release the emergency stop; nothing starts by itself."""
        with self._lock:
            self._estopped = False

    @property
    def is_estopped(self) -> bool:
        """Whether the emergency stop is latched."""
        with self._lock:
            return self._estopped

    @property
    def goal(self) -> Goal | None:
        """The running goal."""
        with self._lock:
            return self._goal

    @property
    def epoch(self) -> int:
        """The one it began with, and one more for each begin and end so far."""
        with self._lock:
            return self._epoch

    def hold(self) -> Hold | None:
        """Return why nothing may move, or None while a goal runs."""
        with self._lock:
            if self._estopped:
                return Hold(HoldReason.ESTOP)
            return self._hold if self._goal is None else None

    def outcome(self, epoch: int) -> Outcome | None:
        """Return how the goal of `epoch` ended; None while it runs."""
        with self._lock:
            return self._outcomes.get(epoch)

    def _check_free(self) -> None:
        if not self._active:
            raise GoalRefusedError('The node is not active; activate it first.')
        if self._estopped:
            raise GoalRefusedError('The emergency stop is latched; call reset_estop first.')
        if self._goal is not None:
            raise GoalRefusedError(
                f"'{self._goal.instruction}' is running; cancel it before starting another."
            )

    def _end(self, outcome: Outcome, hold: Hold | None = None) -> bool:
        if self._goal is None:
            return False
        # Not only the last outcome: another goal may begin and end before anybody asks.
        oldest = self._epoch - _REMEMBERED_EPOCHS
        self._outcomes = {e: o for e, o in self._outcomes.items() if e > oldest}
        self._outcomes[self._goal.epoch] = outcome
        self._goal = None
        self._epoch += 1
        failed = outcome is Outcome.INFERENCE_FAILED
        self._hold = hold or Hold(
            HoldReason.INFERENCE_FAILED if failed else HoldReason.GOAL_FINISHED)
        return True
