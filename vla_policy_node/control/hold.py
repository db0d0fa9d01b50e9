"""Hold reasons: the codes of `vla_msgs/HoldReason`, with a sentence for each."""

from dataclasses import dataclass, field
from enum import IntEnum


class HoldReason(IntEnum):
    """Codes of `vla_msgs/msg/HoldReason.msg`; the numbers are stable, new ones are appended."""

    NONE = 0
    INACTIVE = 1
    NO_INSTRUCTION = 2
    ESTOP = 3
    AWAITING_INFERENCE = 4
    CHUNK_EXHAUSTED = 5
    INPUT_MISSING = 6
    INPUT_STALE = 7
    INPUT_FROZEN = 8
    CAMERA_SPREAD = 9
    CLOCK_JUMP = 10
    INPUT_INVALID = 11
    ACTION_INVALID = 12
    INFERENCE_FAILED = 13
    GOAL_FINISHED = 14
    INFERENCE_LATE = 15
    MOTION_MISMATCH = 16
    SOURCE_CONFLICT = 17
    CAMERA_CHANGED = 18
    CLOCK_STOPPED = 19


_TEXTS = {
    HoldReason.NONE: 'Not holding.',
    HoldReason.INACTIVE: 'The node is not active; activate it to move.',
    HoldReason.NO_INSTRUCTION: 'No instruction is running; send a goal.',
    HoldReason.ESTOP: 'The emergency stop is latched; call reset_estop to release it.',
    HoldReason.AWAITING_INFERENCE: 'Inputs are good; waiting for the next action chunk.',
    HoldReason.CHUNK_EXHAUSTED: 'The last action chunk ended before a new one arrived.',
    HoldReason.INPUT_MISSING: 'Nothing was received on {stream} yet.',
    HoldReason.INPUT_STALE: 'The newest usable sample of {stream} is too old.',
    HoldReason.INPUT_FROZEN: 'What {stream} shows has stopped changing; a simulated camera '
                             'without noise needs freeze_timeout_s 0.',
    HoldReason.CAMERA_SPREAD: 'No picture of {stream} is near enough in time to the other camera.',
    HoldReason.CLOCK_JUMP: 'The stamps of {stream} went backwards or lie in the future.',
    HoldReason.INPUT_INVALID: 'The data of {stream} are not usable.',
    HoldReason.ACTION_INVALID: 'The policy returned an action that cannot be sent.',
    HoldReason.INFERENCE_FAILED: 'The policy failed during inference; see the log.',
    HoldReason.GOAL_FINISHED: 'The goal has ended.',
    HoldReason.INFERENCE_LATE: 'The policy has not answered in time; see inference_timeout_s.',
    HoldReason.MOTION_MISMATCH: 'The measured motion does not follow the commands; see '
                                'max_tracking_error_m and tracking_gain.',
    HoldReason.SOURCE_CONFLICT: 'More than one publisher writes {stream}; stop all but one.',
    HoldReason.CAMERA_CHANGED: 'The picture of {stream} is not what that camera showed before.',
    HoldReason.CLOCK_STOPPED: 'The clock of the node stands still; publish /clock.',
}


@dataclass(frozen=True)
class Hold:
    """One reason to stand still.

    stream: the input that caused it, empty if none did. detail: figures of this moment, or what
    else helps a person; it makes no other reason of it.
    """

    code: HoldReason
    stream: str = ''
    detail: str = field(default='', compare=False)

    @property
    def text(self) -> str:
        """One sentence for a person, naming the stream."""
        sentence = _TEXTS[self.code].format(stream=self.stream or 'an input')
        return f'{sentence[:-1]} ({self.detail}).' if self.detail else sentence


class HoldError(ValueError):
    """Data that must never become a motion; `hold` is what to report instead."""

    def __init__(self, hold: Hold, message: str):
        super().__init__(message)
        self.hold = hold
