"""Replaces the topics in a robot contract by those that a node really uses."""

from contextlib import suppress

from rclpy.node import Node

from vla_policy_node.contract import ContractError, RobotContract


def resolved(node: Node, robot: RobotContract) -> RobotContract:
    """Return the robot with the topics of its streams as they are called in this node's graph.

    Namespace and remappings are the node's. A name that no contract may have stays as it was.
    """
    for stream, topic in robot.topics.items():
        with suppress(ContractError):
            robot = robot.with_topics({stream: node.resolve_topic_name(topic)})
    return robot
