"""The publishers of the policy node's commands."""

from __future__ import annotations

from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from rclpy.publisher import Publisher

from vla_msgs.msg import EndEffectorCommand, JointCommand
from vla_policy_node.nodes import qos


class CommandOutputs:
    """They live as long as the node: the last hold must stay deliverable after cleanup.

    by_joints: whether commands are for joints. Executor thread.
    """

    def __init__(self, node: Node, by_joints: bool):
        self._node = node
        self._by_joints = by_joints
        self._make(self._promised())

    def renew(self) -> None:
        """Make the publishers anew if they promise another period than the parameters say."""
        period_s = self._promised()
        if period_s == self._promised_s:
            return
        for publisher in (self.commands, self.twists):
            if publisher is not None:
                self._node.destroy_publisher(publisher)
        self._make(period_s)

    @property
    def topics(self) -> list[str]:
        """What this node alone may publish."""
        return [publisher.topic_name for publisher in (self.commands, self.twists)
                if publisher is not None]

    def _promised(self) -> float | None:
        # In lock-step a command follows each inference.
        if self._node.get_parameter('pacing').value == 'observation':
            return None
        return 1.0 / self._node.get_parameter('control_rate_hz').value

    def _make(self, period_s: float | None) -> None:
        self._promised_s = period_s
        profile = qos.command_output(period_s)
        self.commands: Publisher
        self.twists: Publisher | None = None
        if self._by_joints:
            self.commands = self._node.create_publisher(JointCommand, 'joint_command', profile)
            return
        self.commands = self._node.create_publisher(EndEffectorCommand, 'command', profile)
        self.twists = self._node.create_publisher(TwistStamped, 'twist_command', profile)
