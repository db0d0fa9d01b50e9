"""Threads that hang do not hang whoever tells them to stop."""

# ruff: noqa: F401 - fixtures are imported by name

import threading

import pytest
from rclpy.clock import Clock
from rclpy.node import Node
from ros_testing import ros

from vla_policy_node.control.pacing import Pacing
from vla_policy_node.nodes import command_loop, spinning
from vla_policy_node.nodes.command_loop import CommandLoop
from vla_policy_node.nodes.failures import FailureLog
from vla_policy_node.nodes.spinning import Spinner

pytestmark = pytest.mark.usefixtures('ros')
WAIT_S = 20.0


@pytest.fixture
def hang():
    """What a thread calls to hang; `hang.begun` and `hang.go_on` are events."""
    def wait(*_):
        wait.begun.set()
        wait.go_on.wait()

    wait.begun, wait.go_on = threading.Event(), threading.Event()
    yield wait
    wait.go_on.set()


def stop_in_a_thread(stop):
    """Return whether `stop` returned, which the old code never did."""
    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    return not thread.is_alive()


def test_stopping_a_command_thread_that_hangs_is_logged_and_comes_back(hang, monkeypatch):
    monkeypatch.setattr(command_loop, 'STOP_S', 0.1)
    log = []
    loop = CommandLoop(Clock(), Pacing.STEADY, 1_000_000, 1.0, hang, log.append)
    assert hang.begun.wait(WAIT_S)
    assert stop_in_a_thread(loop.stop)
    assert log == ['The thread that commands hangs; restart the process.']


def test_stopping_a_served_node_whose_callback_hangs_comes_back(hang, monkeypatch):
    monkeypatch.setattr(spinning, 'STOP_S', 0.1)
    node = Node('served')
    node.create_timer(0.001, hang)
    spinner = Spinner(node, 'served')
    assert hang.begun.wait(WAIT_S)
    assert stop_in_a_thread(spinner.stop)
    hang.go_on.set()
    spinner.stop()
    node.destroy_node()


def test_the_same_exception_is_logged_ever_more_rarely_and_another_one_at_once():
    log = []
    failures = FailureLog(log.append)

    def fail(error):
        raise error

    def fail_elsewhere():
        raise ValueError('elsewhere')

    for step in range(100):
        try:
            fail(ValueError(f'step {step}'))
        except ValueError as error:
            failures.note(error)
    assert [text.split('ValueError: ')[1].split('\n')[0] for text in log] == [
        f'step {step}' for step in (0, 1, 3, 7, 15, 31, 63)]
    assert all(text.startswith('Traceback') for text in log)
    try:
        fail_elsewhere()
    except ValueError as error:
        failures.note(error)
    assert 'elsewhere' in log[-1]
