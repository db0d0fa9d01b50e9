"""Which names nodes really use: topics of a contract or of another node, and namespaces."""

from contextlib import suppress

from rclpy.node import Node, NodeNameNonExistentError

from vla_policy_node.contract import ContractError, RobotContract

_STATUS = 'vla_msgs/msg/PolicyStatus'


def resolved(node: Node, robot: RobotContract) -> RobotContract:
    """Return the robot with the topics of its streams as they are called in this node's graph.

    Namespace and remappings are the node's. A name that no contract may have stays as it was.
    """
    for stream, topic in robot.topics.items():
        with suppress(ContractError):
            robot = robot.with_topics({stream: node.resolve_topic_name(topic)})
    return robot


def elsewhere(node: Node) -> str:
    """Return a sentence about policy nodes in other namespaces, '' if there are none."""
    spoken = {name.removesuffix('/policy_status') or '/'
              for name, types in node.get_topic_names_and_types()
              if name.endswith('/policy_status') and _STATUS in types
              and node.count_publishers(name)}
    others = sorted(spoken - {node.get_namespace()})
    return f" Policy nodes are in {', '.join(others)}: choose one with --namespace." * bool(others)


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
