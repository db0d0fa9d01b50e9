"""A robot without a robot: feeds the policy node over real DDS and records what it sends."""

import copy
import math
import threading
import time
from functools import partial

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TransformStamped, TwistStamped
from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import ActionChunk, EndEffectorCommand, JointCommand, PolicyStatus
from vla_msgs.srv import StartInstruction
from vla_policy_node.contract import find_contract
from vla_policy_node.contract.joints import is_moved_by_joints
from vla_policy_node.contract.state import POSE_TYPE
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.image_messages import to_image_message
from vla_policy_node.nodes.message_classes import message_class
from vla_policy_node.nodes.messages import to_ns, to_time
from vla_policy_node.policy.interface import CAMERAS
from vla_policy_node.wire.streams import InputStreams, is_static, source_of

PERIOD_S = 0.05
TIMEOUT_S = 40.0  # a busy machine is slow; nothing here passes because it waited
STREAMS = (*CAMERAS, 'ee_pose', 'gripper_state')


class RobotDouble(Node):
    """Cameras and state of a contract, best-effort, and a list for every topic of the node.

    The joints of a source that names them come in another order, with a stranger among them.

    alter: stream -> function that changes a message before it is sent, or returns None to lose it.
    """

    def __init__(self, compressed=False, contract='', namespace=''):
        super().__init__('robot', namespace=namespace)
        self._streams = InputStreams(find_contract(contract), compressed)
        self.changed = threading.Condition()
        self.alter = {}
        self.filed = 0
        self.frame = 0
        sensor = qos_profile_sensor_data
        self.inputs = {
            stream: self.create_publisher(
                message_class(kind), topic,
                qos.static_transforms() if is_static(stream) else sensor)
            for stream, (kind, topic) in self._streams.topics.items()}
        self.clock_publisher = self.create_publisher(Clock, '/clock', qos.clock_output())
        by_joints = is_moved_by_joints(self._streams.robot)
        self.commands = self._record(
            JointCommand if by_joints else EndEffectorCommand,
            'joint_command' if by_joints else 'command', qos.command_input())
        self.positions = {}  # joint -> where it is, if not where all are
        self.twists = self._record(TwistStamped, 'twist_command', qos.command_input())
        self.statuses = self._record(PolicyStatus, 'policy_status', qos.event_output())
        self.chunks = self._record(ActionChunk, 'action_chunk', qos.event_output())
        self.diagnostics = self._record(DiagnosticArray, '/diagnostics', qos.event_output())
        self.action = ActionClient(self, ExecuteInstruction, 'execute_instruction')
        self._callers = {
            'start': self.create_client(StartInstruction, 'policy/start'),
            **{
                name: self.create_client(Trigger, f'policy/{name}')
                for name in ('cancel', 'estop', 'reset_estop')
            },
        }

    def destroy_node(self):
        self.forget_action()
        super().destroy_node()

    def forget_action(self):
        """Destroy the client, which rclpy would leave to the garbage collector, and the node."""
        action, self.action = self.action, None
        if action is not None:
            action.destroy()

    def _record(self, message_type, topic, profile):
        messages = []

        def add(message):
            with self.changed:
                messages.append(message)
                self.changed.notify_all()

        self.create_subscription(message_type, topic, add, profile)
        return messages

    def obey(self, command):
        """Put the joints where a command for them says."""
        for name, kind, value in zip(
                command.names, command.kinds, command.values, strict=True):
            if kind == JointCommand.POSITION and not math.isnan(value):
                self.positions[name] = value
            elif kind == JointCommand.VELOCITY:
                self.positions[name] = self.positions.get(name, 0.02) + value * PERIOD_S

    def count_filed(self):
        with self.changed:
            self.filed += 1
            self.changed.notify_all()

    def wait(self, predicate, what):
        deadline_s = time.monotonic() + TIMEOUT_S
        with self.changed:
            while not (value := predicate()):
                assert time.monotonic() < deadline_s, f'waited in vain for {what}'
                # The interval is for predicates that look at more than messages, as discovery.
                self.changed.wait(0.05)
        return value

    def finish(self, future):
        """Result of a future that the robot's executor will complete."""
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        assert done.wait(TIMEOUT_S), 'no answer'
        return future.result()

    def call(self, name, **request):
        client = self._callers[name]
        assert client.wait_for_service(TIMEOUT_S)
        return self.finish(client.call_async(client.srv_type.Request(**request)))

    def observe(self, stamp_ns, streams=None):
        """Publish one sample per stream, of all by default; return how many were sent."""
        self.frame += 1
        header = Header(stamp=to_time(stamp_ns), frame_id='base_link')
        sent = 0
        for stream in self.inputs if streams is None else streams:
            message = self._make(stream, copy.deepcopy(header))
            message = self.alter.get(stream, lambda same: same)(message)
            if message is not None:
                self.inputs[stream].publish(message)
                sent += 1
        return sent

    def _make(self, stream, header):
        source = self._streams.states.get(source_of(stream))
        if source is not None and source.parent:
            # The arm moves to its flange; the tool is fixed to that.
            ends = ('flange', source.child) if is_static(stream) else (source.parent, 'flange')
            transform = TransformStamped(header=header, child_frame_id=ends[1])
            transform.header.frame_id = ends[0]
            transform.transform.translation.z = 0.25
            return message_class(source.type)(transforms=[transform])
        if source is not None and source.type == POSE_TYPE:
            message = PoseStamped(header=header)
            message.pose.position.z = 0.5
            message.pose.orientation.w = 1.0
            return message
        if source is not None and source.joints:
            names = ['stranger', *reversed(source.joints)]
            position = [9.0, *(self.positions.get(name, 0.02) for name in names[1:])]
            return JointState(header=header, name=names, position=position)
        if source is not None:
            return JointState(header=header, name=['left', 'right'], position=[0.02, -0.02])
        pixels = picture(stream, self.frame, self._streams.cameras)
        if self._streams.compressed:
            data = cv2.imencode('.png', pixels[..., ::-1])[1].tobytes()
            return CompressedImage(header=header, format='png', data=data)
        return to_image_message(pixels, header)


def picture(camera, frame, cameras=CAMERAS):
    """What a camera sees, [24, 32, 3]: a view of its own, with the noise of a sensor."""
    view = np.random.default_rng(cameras.index(camera)).integers(40, 216, (6, 8, 3))
    noise = np.random.default_rng([cameras.index(camera), frame]).normal(0, 2, (24, 32, 3))
    return np.clip(np.kron(view, np.ones((4, 4, 1))) + noise, 0, 255).astype(np.uint8)


def stamp(message):
    return to_ns(message.header.stamp)


def lose(message):
    """An alteration: the message never leaves."""


def change(**fields):
    """Return an alteration that sets fields of a message; 'a.b' goes by the name 'a__b'."""
    return partial(_change, fields)


def _change(fields, message):
    for path, value in fields.items():
        *parents, name = path.split('__')
        target = message
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, name, value)
    return message
