"""Records of one trial: what was sent, what was done to the node, what was promised.

Times ending in `_s` are seconds of one steady clock, that of the judge, unless they are named
after a stamp: those are of the node's clock, which faults may step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from math import inf

# The streams of the default robot; whoever judges asks nobody what they are.
CAMERA_STREAMS = ('third_person', 'wrist')
STREAMS = (*CAMERA_STREAMS, 'ee_pose', 'gripper_state')


@dataclass(frozen=True)
class Sent:
    """One command as it was received.

    translation_m, rotation_rad: [3] each. reason: code of `vla_msgs/HoldReason`.
    """

    at_s: float
    stamp_s: float
    hold: bool
    reason: int
    translation_m: tuple[float, float, float]
    rotation_rad: tuple[float, float, float]
    gripper: float
    observation_stamp_s: float
    target_time_s: float
    chunk_step: int
    epoch: int
    frame_id: str = 'base_link'


class SampleVerdict(Enum):
    """Whether a sample may move the robot; OPEN: nobody can tell (a flipped bit of a pixel)."""

    GOOD = 'good'
    OPEN = 'open'
    BAD = 'bad'


@dataclass(frozen=True)
class Sample:
    """One message that was handed to the node; fault: what was wrong with it, '' for nothing.

    clock_s: the node's clock when it arrived.
    """

    stream: str
    arrived_s: float
    stamp_s: float
    clock_s: float
    fault: str = ''
    verdict: SampleVerdict = SampleVerdict.GOOD


@dataclass(frozen=True)
class TrialGoal:
    """When something may move: from the request of a goal until its end was acknowledged."""

    epoch: int
    from_s: float
    until_s: float = inf


@dataclass(frozen=True)
class Stop:
    """A request to stand still. kind: 'cancel', 'estop', 'deactivate', 'SIGTERM', ..."""

    kind: str
    requested_s: float
    acknowledged_s: float


@dataclass(frozen=True)
class ServiceAnswer:
    """A call of a service and how long it may take; answered_s: None if no answer came."""

    service: str
    asked_s: float
    answered_s: float | None
    bound_s: float


@dataclass(frozen=True)
class TimeSpan:
    """From and until, both included."""

    from_s: float
    until_s: float = inf

    def holds(self, at_s: float) -> bool:
        """Return whether the time lies inside."""
        return self.from_s <= at_s <= self.until_s


@dataclass(frozen=True)
class Promise:
    """The bounds in force during `span`; where spans overlap, a command may keep either.

    chunk_s: how long a chunk lasts, an action's observation is never older.
    allowance_s: fault -> how long the last good sample of the stream may be past, where that is
        not max_age_s (a frozen picture takes time to tell from a still scene).
    tolerated: faults that an observation may have until that time is over.
    workspace_slack_m: how far the ideal robot may leave the workspace, 0 but for what a pose that
        lies hides until the lie shows.
    brakes_hard: whether the acceleration may be exceeded towards standing still (the pose moved
        the walls).
    gap_periods: most control periods between two commands while active.
    """

    span: TimeSpan
    period_s: float
    max_age_s: float
    max_spread_s: float
    state_tolerance_s: float
    future_tolerance_s: float
    chunk_s: float
    max_step_m: float
    max_step_rad: float
    max_velocity_m_s: float
    max_velocity_rad_s: float
    max_acceleration_m_s2: float
    max_acceleration_rad_s2: float
    workspace_min_m: tuple[float, float, float]
    workspace_max_m: tuple[float, float, float]
    frame_id: str = 'base_link'
    allowance_s: Mapping[str, float] = field(default_factory=dict)
    tolerated: frozenset[str] = frozenset()
    workspace_slack_m: float = 0.0
    brakes_hard: bool = False
    gap_periods: float = 2.0

    def but(self, **changes) -> 'Promise':
        """Return the same with other fields."""
        return replace(self, **changes)


@dataclass
class Trial:
    """Everything the judge is told.

    active: when the node was acknowledged to be active. start_m: where the ideal robot begins.
    simulated: whether time that the node's clock did not count is none, for inputs.
    receive_slack_s: how much later than it was sent a command may have been received.
    starved: (time, seconds in all) for which the machine did not let the processes run.
    recovers_from_s: from then on all is well again and a goal runs; None if that is not asked.
    recovers_within_s: how long after that the first action may take.
    ends: what ended by itself, or a traceback, one text each. stuck: what never returned.
    silences: what else than the node said nothing for too long.
    """

    sent: list[Sent] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    goals: list[TrialGoal] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    answers: list[ServiceAnswer] = field(default_factory=list)
    active: list[TimeSpan] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)
    start_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    simulated: bool = False
    receive_slack_s: float = 0.0
    starved: list[tuple[float, float]] = field(default_factory=list)
    recovers_from_s: float | None = None
    recovers_within_s: float = 1.0
    ends: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    silences: list[str] = field(default_factory=list)
