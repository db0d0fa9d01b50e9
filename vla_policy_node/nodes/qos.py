"""Quality of service, by purpose: every endpoint of this package takes its profile from here.

A best-effort reader matches every writer, a reliable reader only reliable writers; a volatile
writer never matches a transient-local reader. No profile asks for a deadline: a camera driver
that offers none would not match it at all, so stalls are detected from stamps instead.
"""

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def camera_input() -> QoSProfile:
    """Images we read: best effort, so that any camera driver matches; two frames, newest wins."""
    return _profile(2, ReliabilityPolicy.BEST_EFFORT)


def state_input() -> QoSProfile:
    """Robot state we read: as for cameras; an old state is worth nothing, so none is resent."""
    return _profile(2, ReliabilityPolicy.BEST_EFFORT)


def command_output() -> QoSProfile:
    """Commands: sent again if lost, until the next one replaces them; none queues."""
    return _profile(1, ReliabilityPolicy.RELIABLE)


def command_input() -> QoSProfile:
    """Commands we obey, in the simulated world: the newest one, and every one is asked for."""
    return _profile(1, ReliabilityPolicy.RELIABLE)


def observation_output() -> QoSProfile:
    """Images and state of the simulated world: reliable, so that every kind of reader matches."""
    return _profile(2, ReliabilityPolicy.RELIABLE)


def clock_output() -> QoSProfile:
    """/clock: reliable, so that every kind of reader matches; only the newest time matters."""
    return _profile(1, ReliabilityPolicy.RELIABLE)


def latched() -> QoSProfile:
    """Descriptions and instructions: whoever joins late still gets the last one.

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
