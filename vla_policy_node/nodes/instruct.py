"""`vla instruct`: sends one goal to the policy node and shows its progress."""

import os
import signal
import threading
import time
from collections.abc import Callable
from math import modf
from typing import Any

import rclpy
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Duration
from rclpy.action import ActionClient
from rclpy.action.client import ClientGoalHandle
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from rich.markup import escape
from rich.status import Status

from vla_msgs.action import ExecuteInstruction
from vla_policy_node.common.terminal import make_console
from vla_policy_node.nodes.resolving import elsewhere

# How often to look for Ctrl-C, and whether the policy node is still there.
LOOK_PERIOD_S = 0.1
# A node that serves a goal reports ten times a second. After this silence it is asked whether it
# still knows the goal: one that died and was started again does not.
SILENT_S = 3.0
EXIT_CODES = {
    ExecuteInstruction.Result.SUCCEEDED_DURATION: 0,
    ExecuteInstruction.Result.CANCELLED: 130,
}


def follow(instruction: str, duration_s: float, wait_s: float, namespace: str = '') -> int:
    """Have the policy in a namespace follow an instruction; return the exit code.

    0: followed for the whole duration, 130: cancelled, 1: anything else.
    """
    # rclpy must outlive Ctrl-C, or the goal could not be cancelled. Noted, not raised: whenever it
    # comes, also before the node has accepted, the goal must not go on without us.
    interrupted = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = Node('vla_instruct', namespace=namespace)
    client = ActionClient(node, ExecuteInstruction, 'execute_instruction')
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        return _follow(
            node, client, executor, interrupted, instruction, duration_s, wait_s)
    finally:
        signal.signal(signal.SIGINT, before)
        client.destroy()
        node.destroy_node()
        rclpy.try_shutdown()


def _follow(
    node: Node, client: ActionClient, executor: Executor, interrupted: threading.Event,
    instruction: str, duration_s: float, wait_s: float,
) -> int:
    console = make_console()
    deadline = time.monotonic() + wait_s
    while not client.wait_for_server(LOOK_PERIOD_S):
        if interrupted.is_set():
            raise KeyboardInterrupt
        if time.monotonic() > deadline:
            domain = os.environ.get('ROS_DOMAIN_ID', '0')
            console.print(
                f'No active policy node was found in ROS domain {domain} and namespace '
                f'{node.get_namespace()} within {wait_s:g} s; start one with `vla bringup`.'
                f'{elsewhere(node)}', style='red')
            return 1
    fraction, seconds = modf(duration_s)
    goal = ExecuteInstruction.Goal(
        instruction=instruction,
        max_duration=Duration(sec=int(seconds), nanosec=round(fraction * 1e9)),
    )
    heard_s = [time.monotonic()]
    with console.status(escape(f"'{instruction}'")) as status:

        def show(message):
            heard_s[:] = [time.monotonic()]
            _show(status, instruction, message.feedback)

        sent = client.send_goal_async(goal, show)
        handle = _await(client, executor, sent)
        if handle is not None and not handle.accepted:
            console.print('The policy node refused; its log says why.', style='red')
            return 1

        def cancel_if_interrupted():
            if interrupted.is_set():
                interrupted.clear()
                status.update('Cancelling ...')
                handle.cancel_goal_async()

        answer = handle and _await_result(
            client, executor, handle, heard_s, cancel_if_interrupted)
    if answer is None or answer.status == GoalStatus.STATUS_UNKNOWN:
        console.print('The policy node went away.', style='red')
        return 1
    result = answer.result
    console.print(f'{result.text} {result.steps} steps, {result.inferences} inferences.')
    return EXIT_CODES.get(result.code, 1)


def _await(
    client: ActionClient, executor: Executor, future: Future,
    look: Callable[[], None] = lambda: None,
) -> Any:
    """Return the future's result, or None if the node is gone; call `look` in between."""
    while not future.done() and client.server_is_ready():
        look()
        executor.spin_until_future_complete(future, LOOK_PERIOD_S)
    return future.result() if future.done() else None


def _await_result(
    client: ActionClient, executor: Executor, handle: ClientGoalHandle, heard_s: list[float],
    look: Callable[[], None],
) -> Any:
    """Return the result of a goal, as `_await`; also the answer of a node that does not know it.

    heard_s: when the node was last heard of, in place.
    """
    first = Future()

    def ask() -> None:
        heard_s[:] = [time.monotonic()]
        handle.get_result_async().add_done_callback(
            lambda answered: first.done() or first.set_result(answered.result()))

    def look_and_ask() -> None:
        look()
        if time.monotonic() - heard_s[0] > SILENT_S:
            ask()

    ask()
    return _await(client, executor, first, look_and_ask)


def _show(status: Status, instruction: str, feedback: ExecuteInstruction.Feedback) -> None:
    kept = f'{feedback.tokens_kept} of {feedback.tokens_total} tokens'
    holding = f', holding: {feedback.hold.text}' if feedback.hold.code else ''
    status.update(escape(
        f"'{instruction}': step {feedback.step}, {feedback.inference_ms:.0f} ms, {kept}{holding}"))
