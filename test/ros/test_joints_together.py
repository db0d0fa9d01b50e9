"""Policy node, guard and controllers of two arms in real time: the robot goes where it is sent."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from robot_double import RobotDouble
from ros_testing import ros  # noqa: F401
from scripted import ScriptedPolicy
from trajectory_msgs.msg import JointTrajectory

from vla_msgs.msg import HoldReason
from vla_policy_node.contract import find_contract
from vla_policy_node.contract.fit import spec_of
from vla_policy_node.contract.joints import joint_spec
from vla_policy_node.loop import parameters as loop_parameters
from vla_policy_node.nodes.lifecycle import shut_down
from vla_policy_node.nodes.policy_node import PolicyNode
from vla_policy_node.policy.interface import ActionChunk, PolicyDescription

PERIOD_S = 0.05
ROBOT = find_contract('two_arms')
SPEC = joint_spec(ROBOT)
MIDDLE = np.array([0.5 * (joint.min_position + joint.max_position) for joint in SPEC.joints])
WANTED = MIDDLE + np.array([0.0 if joint.gripper else 0.1 for joint in SPEC.joints])
ACTION = np.where([joint.gripper is not None for joint in SPEC.joints], 1.0, WANTED)


class Sends(ScriptedPolicy):
    """Sends the arms to one place, and opens the hands."""

    def __init__(self):
        super().__init__()
        self.description = PolicyDescription(
            architecture='scripted', chunk_length=8, spec=spec_of(ROBOT))

    def answer(self, request):
        return ActionChunk(np.tile(ACTION, (8, 1)), (), {'head': 1.0}, 'scripted', 32, 32)


class TwoArms(RobotDouble):
    """Cameras, joints and the four controllers, each of which does what it is told last."""

    def __init__(self):
        super().__init__(contract='two_arms')
        self.positions = dict(zip(SPEC.names, MIDDLE.tolist(), strict=True))
        self.farthest = 0.0  # that a controller was sent at once
        for group in ROBOT.actions:
            self.create_subscription(
                JointTrajectory, group.topic, self._follow, QoSProfile(depth=10))
        self.create_timer(PERIOD_S, self._see)

    def _see(self):
        self.observe(self.get_clock().now().nanoseconds)

    def _follow(self, message):
        told = zip(message.joint_names, message.points[0].positions, strict=True)
        for name, position in told:
            self.farthest = max(self.farthest, abs(position - self.positions[name]))
            self.positions[name] = position

    def where(self):
        return np.array([self.positions[name] for name in SPEC.names])


@pytest.fixture
def guard(ros):  # noqa: F811
    process = subprocess.Popen([
        sys.executable, '-m', 'vla_policy_node.nodes.guard_node', '--ros-args',
        '-p', 'contract:=two_arms', '-p', f'control_rate_hz:={1 / PERIOD_S}'])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def robot(ros, guard, monkeypatch):  # noqa: F811
    monkeypatch.setattr(loop_parameters, 'load_policy', lambda **_: Sends())
    robot = TwoArms()
    node = PolicyNode(parameter_overrides=[Parameter(name, value=value) for name, value in (
        ('checkpoint', 'scripted'), ('contract', 'two_arms'), ('freeze_timeout_s', 0.0),
        # A busy machine is late; this is about the way, not about time.
        ('max_age_s', 5.0), ('input_timeout_s', 0.0))])
    executors = [SingleThreadedExecutor(), SingleThreadedExecutor()]
    threads = []
    for executor, member in zip(executors, (node, robot), strict=True):
        executor.add_node(member)
        threads.append(threading.Thread(target=executor.spin))
        threads[-1].start()
    node.trigger_configure()
    node.trigger_activate()
    # The robot and the guard hear commands, and the guard and the node the joints.
    robot.wait(lambda: robot.count_subscribers('joint_command') == 2 and all(
        robot.count_subscribers(source.topic) == 2 for source in ROBOT.state), 'the guard')
    time.sleep(6 * PERIOD_S)
    yield robot
    for executor in executors:
        executor.shutdown()
    for thread in threads:
        thread.join()
    shut_down(node)
    node.destroy_node()
    robot.destroy_node()


def test_two_arms_go_where_the_policy_sends_them_and_stop_when_told(robot):
    assert robot.call('start', instruction='go').success
    arms = np.array([joint.gripper is None for joint in SPEC.joints])
    robot.wait(lambda: np.abs(robot.where() - WANTED)[arms].max() < 1e-6, 'the arms')
    assert robot.where()[~arms] == pytest.approx(
        [joint.gripper.open_position for joint in SPEC.joints if joint.gripper], abs=0.01)
    assert robot.farthest <= 3.0 * SPEC.column('max_step').max() + 1e-6
    assert robot.call('estop').success
    robot.wait(lambda: robot.commands[-1].hold_reason.code == HoldReason.ESTOP, 'the stop')
    rests = robot.where()
    time.sleep(4 * PERIOD_S)
    np.testing.assert_array_equal(robot.where(), rests)


def test_after_a_cancel_the_arms_stay(robot):
    assert robot.call('start', instruction='go').success
    robot.wait(lambda: abs(robot.where()[0] - MIDDLE[0]) > 0.02, 'motion')
    assert robot.call('cancel').success
    time.sleep(4 * PERIOD_S)
    rests = robot.where()
    time.sleep(6 * PERIOD_S)
    np.testing.assert_array_equal(robot.where(), rests)
