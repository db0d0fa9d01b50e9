"""Decides which commands may pass to the robot, and when it must be sent holds instead.

The last line of defence against a policy that may die, hang or send nonsense at any moment. It
therefore shares nothing with the policy but the format of a command, and trusts none of its
clocks: silence is measured on a steady clock. Commands are displacements, so none may pass twice.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from vla_policy_node.control.hold import Hold, HoldReason
from vla_policy_node.control.pacing import SILENCE_PERIODS

# Name of the input in hold reasons.
STREAM = 'command'
# An action is for the end of the period after its stamp; sender and guard may differ by as much.
CLOCK_TOLERANCE_PERIODS = 1.0
# How much a late sender may catch up at once, and how much faster than ours its clock may run.
BURST = 3.0
PACE = 1.1
# Two senders within this time count as simultaneous.
CONFLICT_S = 1.0
# Sizes may exceed their ceiling by what float64 arithmetic leaves.
_ROUNDING = 1.0 + 1e-9


@dataclass(frozen=True)
class SentCommand:
    """A `vla_msgs/EndEffectorCommand` as received; nothing in it is trusted yet.

    translation_m, rotation_rad: displacement over one control period; gripper: 0 closed, 1 open.
    """

    stamp_ns: int
    frame_id: str
    translation_m: tuple[float, float, float]
    rotation_rad: tuple[float, float, float]
    gripper: float
    hold: bool
    hold_code: int
    hold_stream: str
    hold_text: str
    observation_stamp_ns: int
    target_time_ns: int
    chunk_step: int
    disagreement: float
    epoch: int
    limited: bool


class Bounds(Protocol):
    """What no action of a robot may exceed."""

    def problem_of(self, command: Any, now_s: float, /) -> Hold | None:
        """Return why a command must not pass for what it says of the motion, or None."""
        ...

    def passed(self, command: Any, now_s: float, /) -> None:
        """Note that an action passes."""
        ...


@dataclass(frozen=True)
class Ceilings:
    """Bounds that no action for an end effector may exceed in one control period."""

    max_step_translation_m: float
    max_step_rotation_rad: float

    def problem_of(self, command: SentCommand, now_s: float) -> Hold | None:
        """Return ACTION_INVALID for what is too large, or not finite; a hold must be zero."""
        if not command.hold and not -0.01 <= command.gripper <= 1.01:  # false for NaN
            return Hold(HoldReason.ACTION_INVALID, STREAM)
        ceilings = Ceilings(0.0, 0.0) if command.hold else self
        for vector, ceiling in ((command.translation_m, ceilings.max_step_translation_m),
                                (command.rotation_rad, ceilings.max_step_rotation_rad)):
            if not math.hypot(*vector) <= ceiling * _ROUNDING:  # false for NaN
                return Hold(HoldReason.ACTION_INVALID, STREAM)
        return None

    def passed(self, command: SentCommand, now_s: float) -> None:
        """Nothing: a displacement says nothing of the next one."""


class GuardVerdict(Enum):
    """What to do with a command; a Hold in its place means to stand still."""

    FORWARD = 'forward'
    IGNORE = 'ignore'


class Guard:
    """Judges every command on arrival, and notices when one is missing.

    Times are nanoseconds of the node's clock (`clock_ns`, which stamps are compared with) and
    seconds of a steady one (`now_s`). After a step of that clock back by N s, commands look older
    than the last one and are ignored, so the robot stands still, for N s or until the next goal
    brings a new epoch: they cannot be told from a replay. Not thread-safe.
    """

    def __init__(self, period_s: float, bounds: Bounds):
        self._period_s = period_s
        self._bounds = bounds
        self._senders: dict[object, float] = {}
        self._problem: Hold | None = None
        self._problem_s = -math.inf
        self._good_s: float | None = None
        self._sent_s = -math.inf
        self._sent_hold = False
        self._tokens, self._tokens_s = BURST, -math.inf
        # As last forwarded; what the guard's own holds say.
        self.frame_id, self.epoch = '', 0
        self.action: Any = None
        self._newest: tuple[int, int]  # epoch, stamp
        self._forget()

    @property
    def gripper(self) -> float:
        """The opening of the hand that was last forwarded, NaN before any."""
        return math.nan if self.action is None else self.action.gripper

    def take(
        self, command: Any, senders: frozenset, clock_ns: int, now_s: float
    ) -> GuardVerdict | Hold:
        """Return whether to forward the command, or the hold to send in its place.

        command: a `SentCommand`, or what else has its stamps, hold and epoch.
        senders: who may have sent it; one, unless the middleware does not tell.
        """
        if self._meet(senders, now_s):
            return self._refuse(Hold(HoldReason.SOURCE_CONFLICT, STREAM), now_s)
        if (command.epoch, command.stamp_ns) < self._newest:
            return GuardVerdict.IGNORE
        if hold := self._problem_of(command, clock_ns, now_s):
            return self._refuse(hold, now_s)
        if not command.hold and not self._is_next(command, now_s):
            return GuardVerdict.IGNORE
        self._newest = (command.epoch, command.stamp_ns)
        self.epoch, self.frame_id = command.epoch, command.frame_id
        self._problem = None
        if command.hold:
            if not self._may_hold(now_s):
                return GuardVerdict.IGNORE
        else:
            self._newest_target_ns = command.target_time_ns
            self.action = command
            self._bounds.passed(command, now_s)
            self._sent_s, self._sent_hold = now_s, False
        self._good_s = now_s
        return GuardVerdict.FORWARD

    def refuse(self, now_s: float) -> GuardVerdict | Hold:
        """Return what to do about bytes that are not a command."""
        return self._refuse(Hold(HoldReason.INPUT_INVALID, STREAM), now_s)

    def tick(self, now_s: float) -> Hold | None:
        """Return the hold to send if no command came in time, once a period; call it often."""
        if self._good_s is not None and now_s - self._good_s < SILENCE_PERIODS * self._period_s:
            return None
        if self._sent_hold and now_s - self._sent_s < self._period_s:
            return None
        self._sent_s, self._sent_hold = now_s, True
        if self._problem and now_s - self._problem_s < SILENCE_PERIODS * self._period_s:
            return self._problem
        if self._good_s is None:
            return Hold(HoldReason.INPUT_MISSING, STREAM)
        return Hold(HoldReason.INPUT_STALE, STREAM, f'none for {now_s - self._good_s:.3g} s')

    def _meet(self, senders: frozenset, now_s: float) -> bool:
        """Note who sends; return whether there are several. A new sender starts from scratch."""
        known = {sender: heard_s for sender, heard_s in self._senders.items()
                 if now_s - heard_s < CONFLICT_S}
        if senders and senders.isdisjoint(self._senders):
            self._forget()
        self._senders = known | dict.fromkeys(senders, now_s)
        return len(self._senders) > 1

    def _forget(self) -> None:
        self._newest = (0, 0)
        self._newest_target_ns = 0

    def _problem_of(self, command: Any, clock_ns: int, now_s: float) -> Hold | None:
        period_ns = self._period_s * 1e9
        tolerance_ns = CLOCK_TOLERANCE_PERIODS * period_ns
        if command.stamp_ns > clock_ns + tolerance_ns:
            return Hold(HoldReason.CLOCK_JUMP, STREAM, _ahead(command.stamp_ns - clock_ns))
        if not command.hold:
            if clock_ns > command.target_time_ns + tolerance_ns:
                late_s = (clock_ns - command.target_time_ns) / 1e9
                return Hold(HoldReason.INPUT_STALE, STREAM, (
                    f'its target time was {late_s:.3g} s ago by the clock of this guard'))
            if command.target_time_ns > clock_ns + 2.0 * period_ns + tolerance_ns:
                return Hold(HoldReason.CLOCK_JUMP, STREAM, (
                    _ahead(command.target_time_ns - clock_ns)))
        return self._bounds.problem_of(command, now_s)

    def _is_next(self, command: Any, now_s: float) -> bool:
        """Return whether an action is for a later period, and its turn has come."""
        if command.epoch == self._newest[0] and command.target_time_ns <= self._newest_target_ns:
            return False
        earned = (now_s - self._tokens_s) / self._period_s * PACE
        tokens = min(BURST, self._tokens + earned)
        if tokens < 1.0:
            return False
        self._tokens, self._tokens_s = tokens - 1.0, now_s
        return True

    def _refuse(self, hold: Hold, now_s: float) -> GuardVerdict | Hold:
        self._problem, self._problem_s = hold, now_s
        return hold if self._may_hold(now_s) else GuardVerdict.IGNORE

    def _may_hold(self, now_s: float) -> bool:
        """Return whether a hold says anything new; a flood of holds would only fill queues."""
        if self._sent_hold and now_s - self._sent_s < self._period_s / 2.0:
            return False
        self._sent_s, self._sent_hold = now_s, True
        return True


def _ahead(by_ns: float) -> str:
    return f'{by_ns / 1e9:.3g} s ahead of the clock of this guard; see use_sim_time of both'
