"""The policy node as a process, on the clock of the wall: it never ends in the middle of a motion.

Regressions pinned: the signal handlers of rclpy close the context before the last hold is sent;
an exception in a callback ends the process; a reader of stderr that stopped stops the commands.
"""

# ruff: noqa: F401, F811 - fixtures are imported by name

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest
from node_bench import checkpoint
from rclpy.executors import ShutdownException, SingleThreadedExecutor
from robot_double import TIMEOUT_S, RobotDouble
from ros_testing import ros

from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import HoldReason
from vla_policy_node.system.processes import middleware_environment

MODULE = 'vla_policy_node.nodes.policy_node'
BROKEN = f'''
from {MODULE} import PolicyNode, main

def explode(node):
    # Not before there is a robot to hold: on a busy machine it may be found later than this runs.
    if node._active and node._outputs.commands.get_subscription_count():
        raise {{error}}('diagnostics are broken')

PolicyNode._publish_diagnostics = explode
main()
'''


@pytest.fixture
def robot(ros):
    made = RobotDouble()
    made.create_timer(0.05, lambda: made.observe(made.get_clock().now().nanoseconds))
    executor = SingleThreadedExecutor()
    executor.add_node(made)

    def spin():
        with contextlib.suppress(ShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin)
    thread.start()
    yield made
    executor.shutdown()
    thread.join()
    made.destroy_node()


@pytest.fixture
def start_process(checkpoint):
    processes = []

    def start(*code, autostart=True):
        parameters = {
            'checkpoint': checkpoint,
            'autostart': str(autostart).lower(),
            'warmup_inferences': 1,
            'threads': 1,
            'max_age_s': 2.0,  # of a busy machine
        }
        arguments = [part for k, v in parameters.items() for part in ('-p', f'{k}:={v}')]
        command = [sys.executable, *code, '--ros-args', *arguments]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def end(process):
    """Exit code and log."""
    _, log = process.communicate(timeout=3 * TIMEOUT_S)
    return process.returncode, log


def test_sigterm_while_moving_ends_with_a_hold_and_the_client_learns_of_it(start_process, robot):
    process = start_process('-m', MODULE)
    robot.wait(lambda: robot.commands, 'the first command')
    assert robot.action.wait_for_server(TIMEOUT_S)
    goal = ExecuteInstruction.Goal(instruction='pick up the bowl')
    answer = robot.finish(robot.action.send_goal_async(goal)).get_result_async()
    robot.wait(lambda: robot.commands[-1].hold_reason.code == HoldReason.NONE, 'a motion')
    process.send_signal(signal.SIGTERM)
    code, log = end(process)
    assert code == 0, log
    last = robot.wait(lambda: robot.commands[-1].hold and robot.commands[-1], 'the last hold')
    assert last.hold_reason.code == HoldReason.INACTIVE
    assert robot.finish(answer).result.code == ExecuteInstruction.Result.DEACTIVATED
    assert 'Traceback' not in log


def test_sigint_before_configure_ends_quietly(start_process, robot):
    process = start_process('-m', MODULE, autostart=False)
    robot.wait(lambda: robot.count_publishers('command'), 'the node')
    process.send_signal(signal.SIGINT)
    code, log = end(process)
    assert code == 0, log
    assert 'Traceback' not in log


def test_after_an_exception_in_a_callback_the_node_serves_and_commands(start_process, robot):
    process = start_process('-c', BROKEN.format(error='RuntimeError'))
    log = iter(process.stderr.readline, '')
    assert any('RuntimeError: diagnostics are broken' in line for line in log)
    assert robot.call('start', instruction='pick up the bowl').success
    robot.wait(lambda: robot.commands and robot.commands[-1].hold_reason.code == HoldReason.NONE,
               'a motion')
    process.send_signal(signal.SIGTERM)
    code, log = end(process)
    assert code == 0, log
    assert robot.wait(lambda: robot.commands[-1].hold, 'the last hold')


def test_commands_go_on_when_nobody_reads_what_the_node_logs(start_process, robot):
    process = start_process('-m', MODULE)
    robot.wait(lambda: robot.commands, 'the first command')
    fill(process.stderr.fileno())
    assert robot.call('start', instruction='pick up the bowl').success  # which is logged
    robot.wait(lambda: robot.commands[-1].hold_reason.code == HoldReason.NONE, 'a motion')
    assert robot.call('estop').success
    robot.wait(lambda: robot.commands[-1].hold_reason.code == HoldReason.ESTOP, 'the stop')
    process.send_signal(signal.SIGTERM)
    assert process.wait(3 * TIMEOUT_S) == 0


def fill(pipe):
    """Write into a pipe, of which a reading end is given, what it holds and no more."""
    writer = os.open(f'/proc/self/fd/{pipe}', os.O_WRONLY | os.O_NONBLOCK)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b'x' * size)
    os.close(writer)


def test_a_callback_that_exits_ends_with_a_hold_and_an_error(start_process, robot):
    process = start_process('-c', BROKEN.format(error='SystemExit'))
    code, log = end(process)
    assert code != 0
    assert 'diagnostics are broken' in log
    assert robot.wait(lambda: robot.commands and robot.commands[-1].hold, 'the last hold')
    assert robot.commands[-1].hold_reason.code == HoldReason.INACTIVE


CLIENT = '''
import rclpy, time
from rclpy.action import ActionClient
from vla_msgs.action import ExecuteInstruction
rclpy.init()
node = rclpy.create_node('operator')
client = ActionClient(node, ExecuteInstruction, 'execute_instruction')
client.wait_for_server()
rclpy.spin_until_future_complete(
    node, client.send_goal_async(ExecuteInstruction.Goal(instruction='pick up the bowl')))
print('sent', flush=True)
time.sleep(600)
'''


def test_the_goal_of_a_client_that_was_killed_ends(start_process, robot, monkeypatch):
    for name, value in middleware_environment().items():
        monkeypatch.setenv(name, value)
    robot.forget_action()  # another listener: a goal goes on as long as one is there
    start_process('-m', MODULE)
    robot.wait(lambda: robot.commands and robot.statuses, 'the node')
    client = subprocess.Popen([sys.executable, '-c', CLIENT], stdout=subprocess.PIPE, text=True)
    try:
        assert client.stdout.readline() == 'sent\n'
        robot.wait(lambda: robot.commands[-1].hold_reason.code == HoldReason.NONE, 'a motion')
        robot.wait(lambda: robot.statuses[-1].goal_active, 'the goal')
    finally:
        client.kill()
        client.communicate()
    robot.wait(lambda: not robot.statuses[-1].goal_active, 'the end of the goal')
