"""Runs one node as a process."""

import sys
from collections.abc import Callable

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from vla_policy_node.nodes.ending import EXIT_S, Ending
from vla_policy_node.nodes.lifecycle import shut_down
from vla_policy_node.nodes.output import never_wait_for_readers
from vla_policy_node.nodes.parameters import ParameterError
from vla_policy_node.nodes.ros_arguments import RosArguments
from vla_policy_node.nodes.sim_time import guard_clock
from vla_policy_node.nodes.spinning import serve

# Switch interval of the interpreter lock; the default of 5 ms would dominate the jitter of the
# commands.
SWITCH_INTERVAL_S = 0.0005


def run(
    make_node: Callable[[], Node],
    args: list[str] | None = None,
    exit_s: float | None = EXIT_S,
) -> None:
    """Run a node until something ends it (see `Ending`), then shut it down in order.

    An exception in a callback does not end it (see `serve`); a callback that exits does. rclpy's
    own signal handlers would close the context at once, before the last hold could be
    published. A lifecycle node with `autostart` is configured and activated first. A node that
    refuses its parameters ends the process with its sentence. A node that moves a robot has a
    method `stand_still`, which any thread may call at any time: it sends a hold, and nothing else
    follows it.
    """
    never_wait_for_readers()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    arguments = _init(args)
    ending = Ending(exit_s)
    try:
        node = make_node()
    except ParameterError as error:
        raise SystemExit(str(error)) from None
    arguments.warn(node)
    ending.first(getattr(node, 'stand_still', lambda: None))
    guard_clock(node)
    # One thread: none of our callbacks waits, and rclpy's multi-threaded executor costs several
    # times the processor time per message, which the policy and the command thread need.
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    if isinstance(node, LifecycleNode) and node.get_parameter('autostart').value:
        executor.create_task(_start, node, ending)
    try:
        serve(executor, node.get_logger().fatal, lambda: not ending.begun.is_set())
    finally:  # even when a callback exits, the robot must be told to stand still
        ending.begin()
        if isinstance(node, LifecycleNode):
            shut_down(node)
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()


def _init(args: list[str] | None) -> RosArguments:
    """Start ROS; what it cannot take ends the process with a sentence."""
    try:
        with RosArguments(args) as arguments:
            rclpy.init(args=arguments.usable, signal_handler_options=SignalHandlerOptions.NO)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    except RuntimeError as error:  # of rcl, with the places in its code
        cause = str(error).partition(', at /')[0]
        raise SystemExit(f'The arguments of ROS cannot be used: {cause}') from None
    return arguments


def _start(node: LifecycleNode, ending: Ending) -> None:
    if node.trigger_configure() == TransitionCallbackReturn.SUCCESS and not ending.begun.is_set():
        node.trigger_activate()
