"""Inputs and outputs of the guard, for an end effector and for joints."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

from builtin_interfaces.msg import Duration as DurationMessage
from geometry_msgs.msg import TwistStamped, Vector3
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from std_msgs.msg import Float64MultiArray, Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_msgs.msg import EndEffectorCommand, JointCommand
from vla_policy_node.contract import RobotContract
from vla_policy_node.contract.joints import joint_spec, joint_streams
from vla_policy_node.control.guard import Ceilings, Guard, SentCommand
from vla_policy_node.control.hold import Hold, HoldError
from vla_policy_node.control.joint_guard import JointBounds, SentJointCommand
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.message_classes import message_class
from vla_policy_node.nodes.messages import to_hold, to_time, to_twist
from vla_policy_node.wire.cdr import read_command, read_joint_command
from vla_policy_node.wire.states import decode_positions
from vla_policy_node.wire.streams import InputStreams

# As the policy node allows.
_MOST_STATE_BYTES = 16_384


class EndEffectorOutlet:
    """`command` in, `guarded_command` and, if asked, `guarded_twist_command` out."""

    kind, topic = EndEffectorCommand, 'command'
    read = staticmethod(read_command)
    too_large = 'max_step_translation_m or max_step_rotation_rad of the guard'

    def __init__(self, node: Node, period_s: float, ceilings: Ceilings, twist: bool):
        self.guard = Guard(period_s, ceilings)
        self._period_s = period_s
        profile = qos.guarded_output(period_s)
        self._output = node.create_publisher(EndEffectorCommand, 'guarded_command', profile)
        self._twists = node.create_publisher(
            TwistStamped, 'guarded_twist_command', profile) if twist else None

    def forward(self, command: SentCommand) -> None:
        """Pass a command on."""
        self._send(to_message(command))

    def hold(self, hold: Hold, now_ns: int) -> None:
        """Tell the robot to stand still."""
        self._send(EndEffectorCommand(
            header=Header(stamp=to_time(now_ns), frame_id=self.guard.frame_id),
            gripper=self.guard.gripper, hold=True, hold_reason=to_hold(hold),
            target_time=to_time(now_ns + round(self._period_s * 1e9)), chunk_step=-1,
            disagreement=float('nan'), epoch=self.guard.epoch,
        ))

    def wait(self) -> None:
        """Wait until the robot has acknowledged what was sent, no longer than HOLD_DELIVERY_S."""
        self._output.wait_for_all_acked(Duration(seconds=qos.HOLD_DELIVERY_S))

    def _send(self, message: EndEffectorCommand) -> None:
        self._output.publish(message)
        if self._twists is not None:
            self._twists.publish(to_twist(message, self._period_s))


class JointOutlet:
    """`joint_command` in; to the controllers, a trajectory of one point or velocities per group.

    It listens to the joints itself (executor thread), as bounds of positions need to know where
    the joints are.
    """

    kind, topic = JointCommand, 'joint_command'
    read = staticmethod(read_joint_command)
    too_large = "the contract's bounds for a joint, or far from where the joint is"

    def __init__(self, node: Node, period_s: float, robot: RobotContract):
        spec, streams = joint_spec(robot), joint_streams(robot)
        self._bounds = JointBounds(spec, period_s, streams)
        self.guard = Guard(period_s, self._bounds)
        self._names, self._period_s = spec.names, period_s
        nanoseconds = round(period_s * 1e9)
        self._ahead = DurationMessage(
            sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)
        profile = qos.guarded_output(period_s)
        slices = robot.action_slices()
        self._groups: list[tuple[Publisher, slice, bool]] = []
        for group in robot.actions:
            by_velocity = group.kind == 'joint_velocity'
            kind: Any = Float64MultiArray if by_velocity else JointTrajectory
            self._groups.append((
                node.create_publisher(kind, group.topic, profile), slices[group.name],
                by_velocity))
        # Velocities first: they last until the next one.
        self._groups.sort(key=lambda group: not group[2])
        inputs = InputStreams(robot, compressed=False)
        for stream in streams:
            type_name, topic = inputs.topics[stream]
            node.create_subscription(
                message_class(type_name), topic,
                partial(self._measure, stream, inputs.joints[stream]), qos.state_input(),
                raw=True)

    def forward(self, command: SentJointCommand) -> None:
        """Pass an action on; in the place of a hold, what stands still by the guard itself."""
        self._send(self._bounds.still(time.monotonic()) if command.hold else self._bounds.told)

    def hold(self, hold: Hold, now_ns: int) -> None:
        """Tell the robot to stand still."""
        self._send(self._bounds.still(time.monotonic()))

    def wait(self) -> None:
        """Wait until the controllers have acknowledged what was sent."""
        deadline_s = time.monotonic() + qos.HOLD_DELIVERY_S
        for publisher, _, _ in self._groups:
            publisher.wait_for_all_acked(
                Duration(seconds=max(0.0, deadline_s - time.monotonic())))

    def _send(self, values: tuple[float, ...]) -> None:
        """Tell all groups, even if one cannot be told; then raise what kept it from that."""
        failure: Exception | None = None
        for publisher, place, by_velocity in self._groups:
            try:
                self._tell(publisher, place, by_velocity, values[place])
            except Exception as error:  # the others must hear it all the same
                failure = failure or error
        if failure:
            raise failure

    def _tell(
        self, publisher: Publisher, place: slice, by_velocity: bool, told: tuple[float, ...]
    ) -> None:
        if by_velocity:
            publisher.publish(Float64MultiArray(data=told))
        elif not any(map(math.isnan, told)):
            # Without a stamp it begins now.
            publisher.publish(JointTrajectory(
                joint_names=self._names[place],
                points=[JointTrajectoryPoint(
                    positions=told, time_from_start=self._ahead)]))

    def _measure(self, stream: str, joints: tuple[str, ...], raw: bytes) -> None:
        if len(raw) > _MOST_STATE_BYTES:
            return  # of nobody's joints, and would take time to read
        try:
            stamp_ns, positions = decode_positions(raw, stream, joints)
        except HoldError:
            return  # what is not measured is missed soon
        self._bounds.measure(stream, stamp_ns, positions, time.monotonic())


def to_message(command: SentCommand) -> EndEffectorCommand:
    """Return a command that was read from its bytes as a message."""
    message = EndEffectorCommand(
        header=Header(stamp=to_time(command.stamp_ns), frame_id=command.frame_id),
        translation=Vector3(**dict(zip('xyz', command.translation_m, strict=True))),
        rotation=Vector3(**dict(zip('xyz', command.rotation_rad, strict=True))),
        gripper=command.gripper,
        hold=command.hold,
        observation_stamp=to_time(command.observation_stamp_ns),
        target_time=to_time(command.target_time_ns),
        chunk_step=command.chunk_step,
        disagreement=command.disagreement,
        epoch=command.epoch,
        limited=command.limited,
    )
    reason = message.hold_reason
    reason.code, reason.stream, reason.text = (
        command.hold_code, command.hold_stream, command.hold_text)
    return message
