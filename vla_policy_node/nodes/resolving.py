"""Which topics nodes really use: of a contract in one's own graph, and those of another node."""

from contextlib import suppress

from rclpy.node import Node, NodeNameNonExistentError

from vla_policy_node.contract import ContractError, RobotContract


def resolved(node: Node, robot: RobotContract) -> RobotContract:
    """Return the robot with the topics of its streams as they are called in this node's graph.

    Namespace and remappings are the node's. A name that no contract may have stays as it was.
    """
    for stream, topic in robot.topics.items():
        with suppress(ContractError):
            robot = robot.with_topics({stream: node.resolve_topic_name(topic)})
    return robot


def topics_of(node: Node, other: str) -> set[str] | None:
    """Return what another node in this node's namespace listens to, None if nobody knows yet.

    other: a policy node, which begins to serve goals when it has all its inputs: what is seen of
    it before that may be a part.
    """
    place = node.get_namespace()
    try:
        services = dict(node.get_service_names_and_types_by_node(f'{other}_goals', place))
        if node.resolve_service_name(f'{other}/start') not in services:
            return None
        return set(dict(node.get_subscriber_names_and_types_by_node(other, place)))
    except NodeNameNonExistentError:
        return None
