"""The guard as a process, between a sender of commands and the driver of a robot, over real DDS.

Regression pinned: after SIGKILL of the policy node the last message on the wire was an action.
"""

# ruff: noqa: F401, F811 - fixtures are imported by name

import contextlib
import signal
import subprocess
import sys
import time
from functools import cached_property

import pytest
from geometry_msgs.msg import TwistStamped
from hypothesis import given, settings
from hypothesis import strategies as st
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import LivelinessPolicy, QoSProfile
from rclpy.serialization import serialize_message
from ros_testing import ros, spin_until

from vla_msgs.msg import EndEffectorCommand, HoldReason
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.guard_node import GuardNode
from vla_policy_node.nodes.guard_outlets import to_message
from vla_policy_node.wire.cdr import MessageError, read_command

TIMEOUT_S = 30.0
PERIOD_S = 0.1  # slow: a busy machine must not look like a policy that is silent
MODULE = 'vla_policy_node.nodes.guard_node'
SENDER = f'''
import itertools, sys, time
import rclpy
from rclpy.node import Node
from vla_msgs.msg import EndEffectorCommand
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.messages import to_time

rclpy.init()
node = Node('policy')
commands = node.create_publisher(EndEffectorCommand, 'command', qos.command_output({PERIOD_S}))
for step in itertools.count():
    now_ns = time.time_ns()
    command = EndEffectorCommand(gripper=1.0, epoch=1)
    command.header.stamp = to_time(now_ns)
    command.target_time = to_time(now_ns + {round(PERIOD_S * 1e9)})
    command.translation.x = 0.01
    command.chunk_step = step % 8
    commands.publish(command)
    time.sleep({PERIOD_S})
'''


class Driver(Node):
    """The driver of the robot: what the guard says, and when it came by the steady clock."""

    def __init__(self):
        super().__init__('driver')
        self.told = []
        self.executor_ = SingleThreadedExecutor()
        self.executor_.add_node(self)
        profile = qos.command_input()
        profile.depth = 1000
        self.create_subscription(EndEffectorCommand, 'guarded_command', self._keep, profile)
        self.twists = []
        self.create_subscription(
            TwistStamped, 'guarded_twist_command', self.twists.append, profile)

    @cached_property
    def commands(self):
        """For tests without SENDER: where rclpy names no sender, an idle publisher is one."""
        publisher = self.create_publisher(
            EndEffectorCommand, 'command', qos.command_output(PERIOD_S))
        self.wait(publisher.get_subscription_count, 'the guard')
        return publisher

    def _keep(self, message):
        self.told.append((time.monotonic(), message))

    def wait(self, predicate, what):
        assert spin_until(self.executor_, predicate, TIMEOUT_S), f'Waited for {what} in vain.'

    def wait_for_hold(self, code, stream='command'):
        count = len(self.told)
        self.wait(lambda: any(
            message.hold and (message.hold_reason.code, message.hold_reason.stream)
            == (code, stream) for _, message in self.told[count:]), f'a hold of code {code}')

    def wait_for_motion(self):
        count = len(self.told)
        self.wait(lambda: sum(not message.hold for _, message in self.told[count:]) > 3, 'motion')

    def command(self, **changes):
        now = self.get_clock().now()
        message = EndEffectorCommand(gripper=1.0, epoch=1)
        message.header.stamp = now.to_msg()
        message.target_time = (now + Duration(seconds=PERIOD_S)).to_msg()
        message.translation.x = 0.01
        for name, value in changes.items():
            setattr(message, name, value)
        return message


@pytest.fixture
def driver(ros):
    made = Driver()
    yield made
    made.destroy_node()


@pytest.fixture
def start():
    processes = []

    def start_process(*arguments):
        process = subprocess.Popen([sys.executable, *arguments])
        processes.append(process)
        return process

    yield start_process
    for process in processes:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@pytest.fixture
def guard(driver, start):
    process = start('-m', MODULE, '--ros-args', '-p', f'control_rate_hz:={1 / PERIOD_S}',
                    '-p', 'publish_twist:=true')
    driver.wait_for_hold(HoldReason.INPUT_MISSING)  # nobody has said anything yet
    driver.wait(lambda: driver.count_subscribers('command'), 'the guard')
    return process


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.usefixtures('guard')
def test_a_policy_that_is_killed_or_hangs_is_followed_by_holds(driver, start, number):
    sender = start('-c', SENDER)
    driver.wait_for_motion()
    sender.send_signal(number)
    driver.wait_for_hold(HoldReason.INPUT_STALE)
    driver.wait_for_hold(HoldReason.INPUT_STALE)  # and again
    last = driver.told[-1][1]
    assert last.translation.x == last.rotation.z == 0.0
    assert last.gripper == 1.0  # as it was
    moving = [message.header.stamp for _, message in driver.told if not message.hold]
    assert len({(stamp.sec, stamp.nanosec) for stamp in moving}) == len(moving)  # none twice


@pytest.mark.usefixtures('guard')
def test_two_senders_are_held_and_named_and_one_left_over_moves_on(driver, start):
    start('-c', SENDER)
    driver.wait_for_motion()
    other = start('-c', SENDER)
    driver.wait_for_hold(HoldReason.SOURCE_CONFLICT)
    other.kill()
    driver.wait_for_motion()


@pytest.mark.usefixtures('guard')
def test_bytes_that_are_no_command_are_a_hold_and_the_guard_lives_on(driver):
    raw = serialize_message(driver.command())
    for broken in (raw[:60], raw[:3], raw[:4] + b'\xff' * (len(raw) - 4)):
        driver.commands.publish(bytes(broken))
        driver.wait_for_hold(HoldReason.INPUT_INVALID)
    driver.wait(lambda: driver.commands.publish(driver.command()) or not driver.told[-1][1].hold,
                'a command after all that')


def test_a_request_that_rclpy_cannot_serve_does_not_end_the_guard(driver, guard):
    client = driver.create_client(SetParameters, '/guard/set_parameters')
    driver.wait(client.service_is_ready, 'the service')

    def ask(**value):
        parameter = Parameter(name='control_rate_hz', value=ParameterValue(**value))
        return client.call_async(SetParameters.Request(parameters=[parameter]))

    ask(type=77)
    future = ask(type=ParameterType.PARAMETER_STRING, string_value='fast')
    driver.wait(future.done, 'an answer to the next request')
    assert not future.result().results[0].successful
    driver.wait_for_hold(HoldReason.INPUT_MISSING)
    assert guard.poll() is None


@pytest.mark.usefixtures('guard')
def test_what_passes_is_what_came_as_a_command_and_as_a_twist(driver):
    sent = []

    def passed():
        command = driver.command(chunk_step=5, disagreement=0.5, limited=True)
        command.rotation.z = -0.02
        command.header.frame_id = 'base_link'
        sent.append(command)
        driver.commands.publish(command)  # one that is too old by the time it is read does not
        return not driver.told[-1][1].hold

    driver.wait(passed, 'the command')
    assert driver.told[-1][1] in sent
    driver.wait(lambda: any(twist.twist.linear.x for twist in driver.twists), 'its twist')
    (speed,) = {twist.twist.linear.x for twist in driver.twists} - {0.0}
    assert speed == pytest.approx(0.01 / PERIOD_S)
    driver.wait(lambda: driver.twists[-1].twist.linear.x == 0.0, 'the twist of a hold')


def test_the_last_word_of_the_guard_is_a_hold(driver, guard, start):
    start('-c', SENDER)
    driver.wait_for_motion()
    guard.send_signal(signal.SIGTERM)
    driver.wait_for_hold(HoldReason.INACTIVE, '')
    assert guard.wait(TIMEOUT_S) == 0
    assert driver.told[-1][1].hold_reason.code == HoldReason.INACTIVE


def test_a_reader_may_ask_to_be_told_that_the_sender_is_silent_or_gone(driver, start):
    alive, missed = [], []
    profile = qos.command_input()
    profile.deadline = profile.liveliness_lease_duration = Duration(seconds=2 * PERIOD_S)
    profile.liveliness = LivelinessPolicy.MANUAL_BY_TOPIC
    plain = []
    driver.create_subscription(EndEffectorCommand, 'command', plain.append, QoSProfile(depth=10))
    driver.create_subscription(
        EndEffectorCommand, 'command', lambda message: None, profile,
        event_callbacks=SubscriptionEventCallbacks(
            deadline=missed.append, liveliness=lambda event: alive.append(event.alive_count)))
    sender = start('-c', SENDER)
    driver.wait(lambda: alive and alive[-1] == 1 and plain, 'both readers to match')
    sender.send_signal(signal.SIGSTOP)  # its middleware's threads hang, too; see qos
    driver.wait(lambda: alive[-1] == 0, 'the loss of liveliness')
    driver.wait(lambda: missed, 'the missed deadline')


def test_a_driver_that_stalled_does_not_get_the_commands_it_missed(driver):
    old, kept = [], []
    lifespan = Duration(seconds=2 * PERIOD_S)  # Fast DDS goes by the reader's own
    driver.create_subscription(EndEffectorCommand, 'expires', old.append,
                               QoSProfile(depth=10, lifespan=lifespan))
    driver.create_subscription(EndEffectorCommand, 'keeps', kept.append, QoSProfile(depth=10))
    expires = driver.create_publisher(
        EndEffectorCommand, 'expires', qos.guarded_output(PERIOD_S))
    keeps = driver.create_publisher(EndEffectorCommand, 'keeps', qos.command_output(None))
    driver.wait(lambda: expires.get_subscription_count() and keeps.get_subscription_count(),
                'both readers')
    for publisher in (expires, keeps):
        publisher.publish(driver.command())
    time.sleep(3 * PERIOD_S)  # the stall
    driver.wait(lambda: kept, 'the command that does not expire')
    assert not spin_until(driver.executor_, lambda: old, 2 * PERIOD_S)
    driver.wait(lambda: expires.publish(driver.command()) or old, 'a command after the stall')


def test_commands_are_read_as_they_were_serialised(driver):
    message = driver.command(chunk_step=-1, disagreement=0.25, hold=True, limited=True)
    message.hold_reason = HoldReason(code=7, stream='wrist', text='Zu alt – halt!')
    message.header.frame_id = 'panda_link0'
    message.observation_stamp.sec = 17
    message.rotation.y = -1e-300
    assert to_message(read_command(serialize_message(message))) == message


@settings(max_examples=500)
@given(st.data())
def test_whatever_can_be_read_can_be_sent_on(data):
    raw = bytearray(serialize_message(EndEffectorCommand(
        gripper=1.0, hold_reason=HoldReason(stream='wrist', text='Too old.'))))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(4, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MessageError):
        serialize_message(to_message(read_command(bytes(raw))))


def test_the_guard_starts_quickly_because_it_needs_little():
    code = (f'import sys, {MODULE}; '
            "assert not {'torch', 'cv2', 'PIL', 'scipy', 'mujoco'} & set(sys.modules)")
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.usefixtures('ros')
def test_the_robot_hears_of_a_hold_before_the_log_does(monkeypatch):
    node, order = GuardNode(), []
    monkeypatch.setattr(node._outlet, 'hold', lambda hold, now_ns: order.append('sent'))
    monkeypatch.setattr(node, '_warn', lambda text: order.append('told'))
    node._look()
    assert order == ['sent', 'told']
    node.destroy_node()
