"""`vla instruct`: send one goal to the policy node and show how it goes."""

import os
from math import modf

import rclpy
from builtin_interfaces.msg import Duration
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.status import Status

from vla_msgs.action import ExecuteInstruction

# How often to look whether the policy node is still there.
ALIVE_PERIOD_S = 0.5
EXIT_CODES = {
    ExecuteInstruction.Result.SUCCEEDED_DURATION: 0,
    ExecuteInstruction.Result.CANCELLED: 130,
}


def follow(instruction: str, duration_s: float, wait_s: float) -> int:
    """Have the policy follow an instruction; return the exit code.

    0: followed for the whole duration, 130: cancelled, 1: anything else.
    """
    # rclpy must outlive Ctrl-C, or the goal could not be cancelled.
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = Node('vla_instruct')
    client = ActionClient(node, ExecuteInstruction, 'execute_instruction')
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        return _follow(client, executor, instruction, duration_s, wait_s)
    finally:
        client.destroy()
        node.destroy_node()
        rclpy.try_shutdown()


def _follow(client, executor, instruction: str, duration_s: float, wait_s: float) -> int:
    console = Console()
    if not client.wait_for_server(wait_s):
        domain = os.environ.get('ROS_DOMAIN_ID', '0')
        console.print(
            f'[red]No active policy node was found in ROS domain {domain} within {wait_s:g} s; '
            'start one with `vla bringup`.')
        return 1
    fraction, seconds = modf(duration_s)
    goal = ExecuteInstruction.Goal(
        instruction=instruction,
        max_duration=Duration(sec=int(seconds), nanosec=round(fraction * 1e9)),
    )
    with console.status(f"'{instruction}'") as status:
        sent = client.send_goal_async(
            goal, lambda message: _show(status, instruction, message.feedback))
        executor.spin_until_future_complete(sent)
        handle = sent.result()
        if not handle.accepted:
            console.print('[red]The policy node refused; its log says why.')
            return 1
        result = _await_result(client, executor, handle, status)
    if result is None:
        console.print('[red]The policy node went away.')
        return 1
    console.print(f'{result.text} {result.steps} steps, {result.inferences} inferences.')
    return EXIT_CODES.get(result.code, 1)


def _await_result(client, executor, handle, status) -> ExecuteInstruction.Result | None:
    """Return the result, asked for early at Ctrl-C, or None if the node is gone."""
    answer = handle.get_result_async()
    while not answer.done() and client.server_is_ready():
        try:
            executor.spin_until_future_complete(answer, ALIVE_PERIOD_S)
        except KeyboardInterrupt:
            status.update('Cancelling ...')
            handle.cancel_goal_async()
    return answer.result().result if answer.done() else None


def _show(status: Status, instruction: str, feedback: ExecuteInstruction.Feedback) -> None:
    kept = f'{feedback.tokens_kept} of {feedback.tokens_total} tokens'
    holding = f', holding: {feedback.hold.text}' if feedback.hold.code else ''
    status.update(
        f"'{instruction}': step {feedback.step}, {feedback.inference_ms:.0f} ms, {kept}{holding}")
