"""Which robot of a bag is meant: its namespace, and where its topics are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from vla_policy_node.common.ros_names import checked_namespace
from vla_policy_node.contract import RobotContract
from vla_policy_node.contract.parts import Camera
from vla_policy_node.contract.state import StateSource
from vla_policy_node.replay.actions import ACTION_TYPES
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.finding import find_picture, find_topic, parts_of
from vla_policy_node.replay.topics import (
    COMMAND,
    RECORDS,
    BagTopics,
    find_topics,
)

OPTION = '--bag-namespace (bag_namespace:= of a launch file)'
_COMPRESSED = '/compressed'
_SHOWN = 8  # in a sentence


def find_namespace(
    bag: Bag, wanted: str = '', robot: RobotContract | None = None, named: Collection[str] = ()
) -> str:
    """Return the namespace of a robot in a bag, as '/r1', '' for the root.

    wanted: what the user chose, '/' for the root, '' for nothing: then it is the one in which a
    policy node told of itself, or else the one with most of the robot's inputs, but for those that
    are named. Raises BagError if there are several, or none of that name.
    """
    found = told_namespaces(bag)
    if not found and robot:
        found = _namespaces_of_inputs(bag, [
            part for part in parts_of(robot)
            if part.name not in named and not part.topic.startswith('/')])
    if wanted:
        return _chosen(bag, wanted, found)
    if len(found) > 1:
        raise BagError(f"The bag '{bag.path}' holds several robots, in the namespaces "
                       f'{_listed(found)}; choose one with {OPTION}.')
    return next(iter(found), '')


def topics_of_robot(
    bag: Bag, robot: RobotContract, chosen: Mapping[str, str], actions: str = '', wanted: str = ''
) -> BagTopics:
    """Return the topics of one robot of a bag, as `find_topics` does of the only one.

    robot: its contract, with the topics that are known of it. wanted: as of `find_namespace`.
    """
    named = {stream for stream, topic in chosen.items() if topic}
    namespace = find_namespace(bag, wanted, robot, named)
    topics = find_topics(bag, chosen, actions, placed(bag, robot, namespace),
                         commands_in(bag, namespace))
    return replace(topics, records=records_in(bag, namespace))


def told_namespaces(bag: Bag) -> tuple[str, ...]:
    """Return the namespaces in which a policy node told of itself."""
    return tuple(sorted({
        topic.removesuffix(record) for topic, kind in bag.types.items()
        for record, told in RECORDS.items() if kind == told and topic.endswith(record)}))


def placed(bag: Bag, robot: RobotContract, namespace: str) -> RobotContract:
    """Return the robot with its topics in the namespace, where the bag does not contradict.

    Relative ones are in the root if they are only there, and absolute ones, such as /tf, in the
    namespace if they are only there.
    """
    if not namespace:
        return robot
    topics = {}
    for part in parts_of(robot):
        bare = part.topic.lstrip('/')
        is_inside, is_outside = (
            bool(_find(bag, part, f'{place}/{bare}')) for place in (namespace, ''))
        speaks_for = all if part.topic.startswith('/') else any
        if speaks_for((is_inside, not is_outside)):
            topics[part.name] = f'{namespace}/{bare}'
    return robot.with_topics(topics)


def records_in(bag: Bag, namespace: str) -> dict[str, str]:
    """Return topic -> record of all that the policy node of a namespace told of itself.

    A record that is nowhere under its name is the only topic of its type, if there is one.
    """
    found = {}
    for record, kind in RECORDS.items():
        topic = f'{namespace}{record}'
        if bag.types.get(topic) != kind:
            topic = _only(bag.types, (kind,), record) or topic
        found[topic] = record
    return found


def commands_in(bag: Bag, namespace: str) -> str:
    """Return the topic of what the policy node of a namespace commanded."""
    topic = f'{namespace}{COMMAND}'
    if bag.types.get(topic) in ACTION_TYPES:
        return topic
    return _only(bag.types, ACTION_TYPES[:1], COMMAND, '/guarded_command') or topic


def _only(types: Mapping[str, str], kinds: tuple[str, ...], *usual: str) -> str:
    """Return the one topic of some types that is not called as in any namespace, '' if none."""
    others = [
        topic for topic, kind in types.items() if kind in kinds and not topic.endswith(usual)]
    return others[0] if len(others) == 1 else ''


def _namespaces_of_inputs(
    bag: Bag, parts: Sequence[Camera | StateSource]
) -> tuple[str, ...]:
    """Return where most of some inputs are; the root alone if as many are there."""
    places: Counter[str] = Counter()
    for part in parts:
        suffix = f'/{part.topic}'
        places.update({
            name.removesuffix(suffix) for topic in bag.types
            if (name := topic.removesuffix(_COMPRESSED)).endswith(suffix)
            and _find(bag, part, name)})
    most = max(places.values(), default=0)
    best = tuple(sorted(place for place, count in places.items() if count == most))
    return ('',) if '' in best else best


def _find(bag: Bag, part: Camera | StateSource, name: str) -> object:
    if isinstance(part, Camera):
        return find_picture(bag.types, name)
    return bag.types.get(find_topic(bag.types, name) or '') == part.type


def _chosen(bag: Bag, wanted: str, found: tuple[str, ...]) -> str:
    try:
        namespace = checked_namespace(wanted)
    except ValueError as error:
        raise BagError(str(error)) from None
    if namespace not in found and not any(
            topic.startswith(f'{namespace}/') for topic in bag.types):
        robots = f'its robots are in {_listed(found)}' if found else 'its topics begin with ' + (
            ', '.join(_first_parts(bag)[:_SHOWN]) or 'nothing')
        raise BagError(
            f"The bag '{bag.path}' has no topics in the namespace '{namespace}': {robots}.")
    return namespace


def _first_parts(bag: Bag) -> list[str]:
    return sorted({f'/{topic.split("/")[1]}' for topic in bag.types if topic.count('/') > 1})


def _listed(namespaces: tuple[str, ...]) -> str:
    *others, last = (namespace or '/' for namespace in namespaces)
    return f'{", ".join(others)} and {last}' if others else last
