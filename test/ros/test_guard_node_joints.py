"""The guard between policy and controllers of joints: what passes, and what it says in silence."""

import signal
import subprocess
import sys
import time
from functools import cached_property

import pytest
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from ros_testing import ros, spin_until  # noqa: F401
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from vla_msgs.msg import JointCommand
from vla_policy_node.contract import find_contract
from vla_policy_node.contract.joints import joint_spec
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.guard_outlets import JointOutlet

PERIOD_S = 0.1
ROBOT = find_contract('two_arms')
SPEC = joint_spec(ROBOT)
MIDDLE = [0.5 * (joint.min_position + joint.max_position) for joint in SPEC.joints]
SENDER = f'''
import time
import rclpy
from rclpy.duration import Duration
from vla_msgs.msg import JointCommand
from vla_policy_node.nodes import qos
rclpy.init()
node = rclpy.create_node('sender')
publisher = node.create_publisher(JointCommand, 'joint_command', qos.command_output({PERIOD_S}))
while True:
    now = node.get_clock().now()
    command = JointCommand(names={list(SPEC.names)!r}, kinds=[0] * 14, values={MIDDLE!r}, epoch=1)
    command.header.stamp = now.to_msg()
    command.target_time = (now + Duration(seconds={PERIOD_S})).to_msg()
    publisher.publish(command)
    time.sleep({PERIOD_S})
'''


class Controllers(Node):
    """The controllers of all groups, and the drivers that measure their joints."""

    def __init__(self):
        super().__init__('controllers')
        self.executor_ = SingleThreadedExecutor()
        self.executor_.add_node(self)
        self.told = []  # (time, group, positions)
        self.positions = dict(zip(SPEC.names, MIDDLE, strict=True))
        self.speaks = True
        for group in ROBOT.actions:
            self.create_subscription(
                JointTrajectory, group.topic, lambda msg, name=group.name: self.told.append(
                    (time.monotonic(), name, msg)), QoSProfile(depth=100))
        self.sources = [(self.create_publisher(
            JointState, source.topic, qos_profile_sensor_data), source.joints)
            for source in ROBOT.state]
        self.create_timer(0.02, self._measure)

    @cached_property
    def commands(self):
        """For tests without SENDER: where rclpy names no sender, an idle publisher is one."""
        publisher = self.create_publisher(
            JointCommand, 'joint_command', qos.command_output(PERIOD_S))
        self.wait(publisher.get_subscription_count, 'the guard')
        return publisher

    def _measure(self):
        for publisher, joints in self.sources if self.speaks else ():
            message = JointState(
                name=[*reversed(joints)],
                position=[self.positions[joint] for joint in reversed(joints)])
            message.header.stamp = self.get_clock().now().to_msg()
            publisher.publish(message)

    def wait(self, predicate, what):
        assert spin_until(self.executor_, predicate, 30.0), f'Waited for {what} in vain.'

    def spin(self, seconds):
        end_s = time.monotonic() + seconds
        spin_until(self.executor_, lambda: time.monotonic() > end_s, seconds + 1.0)

    def send(self, values, **changes):
        now = self.get_clock().now()
        message = JointCommand(names=SPEC.names, kinds=[0] * 14, values=values, epoch=1)
        message.header.stamp = now.to_msg()
        message.target_time = (now + Duration(seconds=PERIOD_S)).to_msg()
        for name, value in changes.items():
            setattr(message, name, value)
        self.commands.publish(message)


@pytest.fixture
def controllers(ros):  # noqa: F811
    made = Controllers()
    yield made
    made.destroy_node()


@pytest.fixture
def start():
    processes = []

    def start_process(*arguments):
        processes.append(subprocess.Popen([sys.executable, *arguments]))
        return processes[-1]

    yield start_process
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def guard(controllers, start):
    process = start('-m', 'vla_policy_node.nodes.guard_node', '--ros-args', '-p',
                    f'control_rate_hz:={1 / PERIOD_S}', '-p', 'contract:=two_arms')
    controllers.wait(lambda: controllers.count_subscribers('joint_command')
                     and all(publisher.get_subscription_count()
                             for publisher, _ in controllers.sources), 'the guard')
    controllers.spin(0.3)
    return process


def until_it_passes(controllers, values):
    controllers.wait(
        lambda: controllers.send(values) or controllers.told, 'a command for the controllers')


def test_one_message_becomes_one_point_for_each_group(controllers, guard):
    assert not controllers.told, 'a position before any was commanded'
    until_it_passes(controllers, MIDDLE)
    controllers.wait(lambda: len({name for _, name, _ in controllers.told}) == 4, 'all groups')
    for group in ROBOT.actions:
        message = next(msg for _, name, msg in controllers.told if name == group.name)
        place = ROBOT.action_slices()[group.name]
        assert tuple(message.joint_names) == SPEC.names[place]
        [point] = message.points
        assert list(point.positions) == MIDDLE[place]
        assert point.time_from_start.nanosec == 100_000_000


def test_a_position_far_from_the_joints_never_passes(controllers, guard):
    far = [MIDDLE[0] + 0.5, *MIDDLE[1:]]
    for _ in range(10):
        controllers.send(far)
        controllers.spin(0.05)
    assert not controllers.told
    until_it_passes(controllers, MIDDLE)


def test_without_measured_joints_nothing_passes(controllers, guard):
    controllers.speaks = False
    controllers.spin(0.8)
    for _ in range(10):
        controllers.send(MIDDLE)
        controllers.spin(0.05)
    assert not controllers.told


def test_a_policy_that_is_killed_leaves_the_joints_where_they_were_told(
        controllers, guard, start):
    sender = start('-c', SENDER)
    controllers.wait(lambda: len(controllers.told) > 12, 'motion')
    sender.send_signal(signal.SIGKILL)
    sender.wait()
    controllers.spin(1.0)
    controllers.told.clear()
    controllers.spin(1.0)
    times = [at for at, name, _ in controllers.told if name == 'left_arm']
    assert len(times) > 4, 'it is silent'
    assert all(list(message.points[0].positions) == MIDDLE[ROBOT.action_slices()[name]]
               for _, name, message in controllers.told)


def test_what_somebody_moved_meanwhile_is_not_drawn_back(controllers, guard):
    until_it_passes(controllers, MIDDLE)
    controllers.positions[SPEC.names[0]] += 0.6
    controllers.spin(0.5)
    controllers.told.clear()
    controllers.spin(0.8)
    assert {name for _, name, _ in controllers.told} == {
        'left_gripper', 'right_arm', 'right_gripper'}


def test_a_signal_ends_it_with_a_last_hold(controllers, guard):
    until_it_passes(controllers, MIDDLE)
    controllers.spin(0.3)
    guard.send_signal(signal.SIGINT)
    controllers.wait(lambda: guard.poll() is not None, 'the end')
    assert guard.returncode == 0
    assert list(controllers.told[-1][2].points[0].positions) == MIDDLE[
        ROBOT.action_slices()[controllers.told[-1][1]]]


def test_a_group_that_cannot_be_told_keeps_no_other_from_its_stop():
    class Publisher:
        def __init__(self, fails):
            self.fails, self.told = fails, []

        def publish(self, message):
            if self.fails:
                raise RuntimeError('no room')
            self.told.append(list(message.data))

    left, right = Publisher(True), Publisher(False)
    outlet = object.__new__(JointOutlet)
    outlet._groups = [(left, slice(0, 1), True), (right, slice(1, 2), True)]
    with pytest.raises(RuntimeError, match='no room'):
        outlet._send((0.0, 0.0))
    assert right.told == [[0.0]]


def test_a_contract_that_is_none_is_said_in_a_sentence():
    done = subprocess.run(
        [sys.executable, '-m', 'vla_policy_node.nodes.guard_node', '--ros-args', '-p',
         'contract:=three_arms'], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "There is no contract 'three_arms'" in done.stderr
