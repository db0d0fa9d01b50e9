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
    """Return what another node listens to, None if nobody knows yet.

    other: a policy node, relative to this node's namespace. It begins to serve goals when it has
    all its inputs: what is seen of it before that may be a part.
    """
    start = node.resolve_service_name(f'{other}/start')
    place, _, name = start.removesuffix('/start').rpartition('/')
    place = place or '/'
    try:
        services = node.get_service_names_and_types_by_node(f'{name}_goals', place)
        if start not in dict(services):
            return None
        return set(dict(node.get_subscriber_names_and_types_by_node(name, place)))
    except NodeNameNonExistentError:
        return None
