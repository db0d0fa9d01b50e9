"""Quality-of-service profiles by purpose; every endpoint of this package uses one of them.

A best-effort reader matches every writer, a reliable reader only reliable writers; a volatile
writer never matches a transient-local reader. No profile asks for a deadline: a camera driver
that offers none would not match it at all, so stalls are detected from stamps instead. Commands
offer deadline and liveliness, so that a robot's driver may ask for them.
"""

from rclpy.duration import Duration
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    LivelinessPolicy,
    QoSProfile,
    ReliabilityPolicy,
)

from vla_policy_node.wire.streams import InputStreams, is_static

# A sender is alive if it sends a new command within this many control periods.
DEADLINE_PERIODS = 2.0
# After this a command is no longer delivered. A robot's driver must not get anything old after a
# stall, while a recorder on a busy machine is late and wants every command. Cyclone DDS goes by
# the sender's lifespan, Fast DDS by the reader's, so a driver must ask for one, too.
GUARDED_LIFESPAN_PERIODS = 2.0
LIFESPAN_PERIODS = 20.0
# How long to wait for readers to acknowledge the last hold.
HOLD_DELIVERY_S = 0.5


def camera_input() -> QoSProfile:
    """Images we read: best effort, so that any camera driver matches; two frames, newest wins."""
    return _profile(2, ReliabilityPolicy.BEST_EFFORT)


def state_input() -> QoSProfile:
    """Robot state we read: as for cameras; an old state is worthless, so none is resent."""
    return _profile(2, ReliabilityPolicy.BEST_EFFORT)


def transform_input() -> QoSProfile:
    """Transforms we read: as state, but every publisher's newest is of use."""
    return _profile(100, ReliabilityPolicy.BEST_EFFORT)


def static_transforms() -> QoSProfile:
    """Transforms that never change: late joiners still get all, as with tf2."""
    return _profile(100, ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)


def input_of(streams: InputStreams, stream: str) -> QoSProfile:
    """Return the profile with which a stream of a robot is read."""
    if is_static(stream):
        return static_transforms()
    if stream in streams.transforms:
        return transform_input()
    return camera_input() if stream in streams.cameras else state_input()


def played(stream: str) -> QoSProfile:
    """Return the profile with which a stream is published in place of a robot."""
    return static_transforms() if is_static(stream) else observation_output()


def command_output(period_s: float | None) -> QoSProfile:
    """Commands: sent again if lost, until the next one replaces them; none queues.

    period_s: control period; None in lock-step, where commands have no fixed rate.
    """
    if period_s is None:
        return _profile(1, ReliabilityPolicy.RELIABLE)
    return _stream(period_s, LIFESPAN_PERIODS)


def guarded_output(period_s: float) -> QoSProfile:
    """Commands for the driver of a robot: as above, but dropped when expired."""
    return _stream(period_s, GUARDED_LIFESPAN_PERIODS)


def command_input() -> QoSProfile:
    """Commands that the simulated world obeys: reliable, newest only."""
    return _profile(1, ReliabilityPolicy.RELIABLE)


def observation_output() -> QoSProfile:
    """Images and state of the simulated world: reliable, so that every kind of reader matches."""
    return _profile(2, ReliabilityPolicy.RELIABLE)


def clock_output() -> QoSProfile:
    """/clock: reliable, so that every kind of reader matches; only the newest time matters."""
    return _profile(1, ReliabilityPolicy.RELIABLE)


def latched() -> QoSProfile:
    """Descriptions and instructions: late joiners still get the last one.

    A publisher on the command line must ask for the same durability:
    `ros2 topic pub --qos-durability transient_local`.
    """
    return _profile(1, ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)


def overlay_output() -> QoSProfile:
    """Pictures for people: reliable, as viewers ask for it; one, as only the newest matters."""
    return _profile(1, ReliabilityPolicy.RELIABLE)


def event_output() -> QoSProfile:
    """Records of single events (chunks, selections, status): each counts; a reader may lag a few.

    Readers of such a topic use the same profile.
    """
    return _profile(10, ReliabilityPolicy.RELIABLE)


def _stream(period_s: float, lifespan_periods: float) -> QoSProfile:
    """Return the profile of commands that never cease while the sender is alive.

    Liveliness is tied to publishing, because the middleware's threads go on when ours hang.
    """
    profile = _profile(1, ReliabilityPolicy.RELIABLE)
    profile.deadline = _periods(DEADLINE_PERIODS, period_s)
    profile.lifespan = _periods(lifespan_periods, period_s)
    profile.liveliness = LivelinessPolicy.MANUAL_BY_TOPIC
    profile.liveliness_lease_duration = _periods(DEADLINE_PERIODS, period_s)
    return profile


def _periods(count: float, period_s: float) -> Duration:
    return Duration(nanoseconds=round(count * period_s * 1e9))


def _profile(
    depth: int,
    reliability: ReliabilityPolicy,
    durability: DurabilityPolicy = DurabilityPolicy.VOLATILE,
) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=reliability,
        durability=durability,
    )
