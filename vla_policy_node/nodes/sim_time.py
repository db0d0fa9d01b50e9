"""Makes a node ignore invalid times on `/clock`."""

from rclpy.node import Node
from rosgraph_msgs.msg import Clock

LARGEST_NANOSEC = 999_999_999


def guard_clock(node: Node) -> None:
    """Have the node ignore times on `/clock` that are none.

    rclpy's callback raises for a negative time, and an exception in a callback ends the process.
    Call it when the node is made.
    """
    source = node._time_source  # rclpy has no public access to it
    set_time = source.clock_callback
    warned = False

    def checked(msg: Clock) -> None:
        nonlocal warned
        if msg.clock.sec >= 0 and msg.clock.nanosec <= LARGEST_NANOSEC:
            set_time(msg)
        elif not warned:
            warned = True
            node.get_logger().warning(
                f'/clock says {msg.clock.sec} s, {msg.clock.nanosec} ns, which is no time; such '
                'messages are ignored.')

    source.clock_callback = checked
    if source.ros_time_is_active:  # it listens already: let it listen anew
        source.ros_time_is_active = False
        source.ros_time_is_active = True
