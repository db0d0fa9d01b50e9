"""What of a bag is played to a live policy node, in place of cameras and a robot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vla_policy_node.common.ros_names import absolute
from vla_policy_node.contract import find_contract
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.robots import told_namespaces, topics_of_robot
from vla_policy_node.replay.settings import as_recorded, read_info
from vla_policy_node.replay.topics import BagTopics
from vla_policy_node.system.description import NodeSpec


@dataclass(frozen=True)
class Played:
    """Topics of a bag, with pictures as they are published; packed: cameras that are unpacked."""

    topics: BagTopics
    packed: frozenset[str]


def find_played(
    bag: Bag, contract: str, compressed: bool, bag_namespace: str, namespace: str,
    name_of: Callable[[str], str],
) -> Played:
    """Return what to play: from where a remapping says, or else where the bag says itself.

    contract, compressed: as of the policy node. bag_namespace: of the robot in the bag, '' for
    that of the player, `namespace`, or else the only one. name_of: what a topic of the contract is
    called by whoever plays.
    Raises BagError, or ContractError.
    """
    robot = find_contract(contract)
    if not bag_namespace and namespace and namespace in told_namespaces(bag):
        bag_namespace = namespace
    told = as_recorded(robot, bag, read_info(bag, bag_namespace), bool(contract)).topics
    chosen = {}
    for stream, topic in robot.topics.items():
        name = name_of(topic)
        is_there = {name, f'{name}/compressed'} & bag.types.keys()
        if name != absolute(topic, namespace) and (is_there or told[stream] == topic):
            chosen[stream] = name
    topics = topics_of_robot(bag, robot.with_topics(told), chosen, wanted=bag_namespace)
    topics.needed_by({})  # what the contract requires
    return _unpacked(bag, topics, compressed)


def check_played(nodes: Sequence[NodeSpec]) -> None:
    """Raise ValueError if a system is to play a bag that its player would refuse."""
    for node in nodes:
        if node.name == 'player':
            p = node.parameters
            with Bag(str(p['bag'])) as bag:
                find_played(
                    bag, str(p.get('contract') or ''), bool(p.get('compressed')),
                    str(p.get('bag_namespace') or ''), node.namespace, node.name_of)


def _unpacked(bag: Bag, topics: BagTopics, compressed: bool) -> Played:
    cameras = {*topics.inputs.values()} & {*topics.streams.cameras}
    packed = frozenset(camera for camera in cameras if topics.streams.is_compressed(camera))
    if compressed and packed != cameras:
        raw = ', '.join(sorted(cameras - packed))
        raise BagError(
            f"The bag '{bag.path}' has raw pictures of {raw}, but the policy node takes "
            'compressed ones; set its parameter compressed to false.')
    return Played(replace(topics, streams=replace(topics.streams, compressed=compressed)),
                  frozenset() if compressed else packed)
