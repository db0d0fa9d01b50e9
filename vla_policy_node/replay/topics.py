"""Maps topics of a bag to policy inputs, and reads messages from their bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

from vla_policy_node.contract import RobotContract, find_contract
from vla_policy_node.contract.fit import pose_of
from vla_policy_node.contract.parts import Camera
from vla_policy_node.contract.state import StateSource
from vla_policy_node.policy.interface import PolicySpec
from vla_policy_node.replay.actions import ACTION_TYPES, NO_ACTIONS
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.candidates import candidates
from vla_policy_node.replay.finding import (
    COMPRESSED,
    RAW,
    find_picture,
    find_topic,
    fitting,
    parts_of,
    topic_of,
    why_not,
)
from vla_policy_node.wire.definitions import MessageDefinitions
from vla_policy_node.wire.streams import InputStreams, static_of

STATUS, INFO, CHUNK, COMMAND = '/policy_status', '/policy_info', '/action_chunk', '/command'
POLICY_INFO = 'vla_msgs/msg/PolicyInfo'
RECORDS = {STATUS: 'vla_msgs/msg/PolicyStatus', INFO: POLICY_INFO,
           CHUNK: 'vla_msgs/msg/ActionChunk'}
_SHOWN = 8  # topics in a sentence


class Missing(NamedTuple):
    """Why a stream has no topic in a bag, and what to do about it: two halves of a sentence."""

    problem: str
    cure: str


@dataclass(frozen=True)
class BagTopics:
    """The topics that are read from a bag.

    inputs: topic -> stream. streams: of the robot, compressed or not. missing: streams that the
    bag does not have. actions: topic of the executed or expert actions, '' if there are none;
    action_type: its message type. by_log: samples count by the time of recording instead of their
    stamps. records: topic -> which of RECORDS it is, of what the robot's policy node told of
    itself.
    """

    inputs: Mapping[str, str]
    streams: InputStreams
    actions: str = ''
    action_type: str = ACTION_TYPES[0]
    by_log: bool = False
    missing: Mapping[str, Missing] = field(default_factory=dict)
    records: Mapping[str, str] = field(default_factory=lambda: {name: name for name in RECORDS})

    def needed_by(self, policies: Mapping[str, PolicySpec], moves: bool = False) -> BagTopics:
        """Return those that these policies need together; BagError if the bag lacks one of them.

        policies: what each needs, by what sentences call it. moves: their commands move a robot,
        so that the pose of the end effector is needed whether or not a policy is told it.
        """
        specs = policies.values()
        together = PolicySpec(
            tuple(dict.fromkeys(camera for spec in specs for camera in spec.cameras)),
            tuple(dict.fromkeys(quantity for spec in specs for quantity in spec.state)))
        has_pose = pose_of(self.streams.robot) in self.inputs.values()
        streams = replace(self.streams, spec=together, moves=moves or has_pose)
        for stream in streams.topics:
            if missing := self.missing.get(stream):
                raise BagError(f'{missing.problem}, and {self._reason(stream, policies)}; '
                               f'{missing.cure}.')
        inputs = {topic: stream for topic, stream in self.inputs.items()
                  if stream in streams.topics}
        return replace(self, inputs=inputs, streams=streams)

    def _reason(self, stream: str, policies: Mapping[str, PolicySpec]) -> str:
        """Return why a stream is needed."""
        for who, spec in policies.items():
            if stream in spec.cameras:
                return f"{who} looks at the camera '{stream}'"
            one = replace(self.streams, spec=spec, moves=False)
            if stream in one.states:
                return f'{who} is told what {stream} measures'
        if stream in self.streams.robot.camera_names:
            return f"the contract of {self.streams.robot.name} requires the camera '{stream}'"
        return f'without {stream} nothing may be moved (`vla replay` moves nothing)'


def find_topics(
    bag: Bag, chosen: Mapping[str, str], actions: str = '', robot: RobotContract | None = None,
    commands: str = COMMAND,
) -> BagTopics:
    """Return the topics that there are; whether they are enough says `BagTopics.needed_by`.

    Raises BagError for one that was chosen and is missing or of another type.
    chosen: stream -> topic, where that is not the name of the contract; `/compressed` and the
    leading slash may be left out. Compressed images are used where there are no raw ones.
    actions: topic of the actions to compare with; '' for that of the commands, if it is there and
    of such a type.
    """
    robot = robot or find_contract('')
    if strangers := [name for name, topic in chosen.items() if topic and name not in robot.topics]:
        raise BagError(f'{robot.name} has no stream {", ".join(strangers)}; it has '
                       f'{", ".join(robot.topics)}.')
    found: dict[str, str] = {}
    compressed = set()
    missing = {}
    for part in parts_of(robot):
        stream = part.name
        name = chosen.get(stream) or f'/{part.topic.lstrip("/")}'
        topic, is_compressed = find_topic(bag.types, name) or name, False
        if isinstance(part, Camera):
            topic, is_compressed = find_picture(bag.types, name) or (name, False)
        if lack := _missing(bag, topic, part, robot):
            if chosen.get(stream):
                raise BagError(f'{lack.problem}; {lack.cure}.')
            missing[stream] = lack
            continue
        found[stream] = topic
        if is_compressed:
            compressed.add(stream)
    for stream, lack in _taken(bag, found, chosen).items():
        missing[stream] = lack
        del found[stream]
        compressed.discard(stream)
    streams = InputStreams(robot, frozenset(compressed))
    inputs = {topic: stream for stream, topic in found.items()}
    for source in streams.transforms.values():
        static = find_topic(bag.types, f'{found[source.name]}_static') if (
            source.name in found) else None
        if static and bag.types[static] == source.type:
            inputs[static] = static_of(source.name)
    topics = BagTopics(inputs, streams, missing=missing)
    topic = find_topic(bag.types, actions or commands) or actions or commands
    kind = bag.types.get(topic, '')
    if kind in ACTION_TYPES and topic not in inputs:
        return replace(topics, actions=topic, action_type=kind)
    if actions:
        _require_actions(bag, topic, inputs)
    return topics


def option_of(stream: str) -> str:
    """Return the option that names the topic of a stream."""
    return f'--{stream.replace("_", "-")}-topic'


def decode(raw: bytes, kind: str, topic: str) -> Any:
    """Return the message; raises BagError if the bytes are none of this type.

    Fields that an old recording does not have are empty.
    """
    try:
        return _definitions().read(raw, kind)
    except Exception as error:  # the library may raise anything for bytes that do not fit
        raise BagError(
            f"A message on '{topic}' is not the {kind} that is installed here; replay "
            'with the version of the messages that it was recorded with.') from error


def _taken(
    bag: Bag, found: Mapping[str, str], chosen: Mapping[str, str]
) -> dict[str, Missing]:
    """Return the streams that lost their topic to the one for which the user chose it.

    Raises BagError if two streams have one topic otherwise: nothing would tell their messages
    apart.
    """
    streams: dict[str, list[str]] = {}
    for stream, topic in found.items():
        streams.setdefault(topic, []).append(stream)
    lost = {}
    for topic, names in streams.items():
        if len(names) == 1:
            continue
        kept = [name for name in names if chosen.get(name)]
        if len(kept) != 1:
            raise BagError(
                f"The topic '{topic}' of the bag '{bag.path}' is to be {' and '.join(names)} at "
                f'once; name another one with {option_of(names[-1])} TOPIC.')
        lost |= {name: Missing(
            f"The topic '{topic}' of the bag '{bag.path}' is {kept[0]} already",
            f'name another one with {option_of(name)} TOPIC') for name in names if name != kept[0]}
    return lost


def _missing(
    bag: Bag, topic: str, part: Camera | StateSource, robot: RobotContract
) -> Missing | None:
    """Return why a topic cannot be this input, not there or of another type; None if it can."""
    found = bag.types.get(topic)
    kinds = (RAW, COMPRESSED) if isinstance(part, Camera) else (part.type,)
    option = f'{option_of(part.name)} TOPIC'
    if found in kinds:
        # What is wrong with others may be for some time, or under some parameters.
        if isinstance(part, StateSource) and part.parent and (
                why := why_not(bag, topic, part, robot)):
            return Missing(f"The topic '{topic}' of the bag '{bag.path}' holds no {part.name} "
                           f'({why.rstrip(".")})', _advice(bag, part, robot)
                           or 'correct parent and child in the contract')
        return None
    if found is not None:
        return Missing(
            f"The topic '{topic}' of the bag '{bag.path}' has the type {found}, and "
            f'{kinds[0]} is needed', f'name another topic with {option}')
    others = [*islice(fitting(bag, part, robot), _SHOWN)]
    taken = {topic_of(bag.types, other) for other in parts_of(robot) if other is not part}
    already = ' (another input already)' if taken.issuperset(others) else ''
    cure = f'name one with {option}: {", ".join(others)}{already}' if others else _advice(
        bag, part, robot) or (
        f'no topic has usable messages of the type {" or ".join(kinds)} to name with {option}; '
        'record the inputs of the policy with `vla record`')
    if counted := bag.counted.get(topic):
        cure = f'its metadata.yaml counts {counted}, so they were lost; {cure}'
    return Missing(f"The bag '{bag.path}' has no messages on '{topic}'", cure)


def action_topics(types: Mapping[str, str], inputs: Collection[str]) -> list[str]:
    """Return the topics that may hold actions; no input of the policy is one."""
    return [topic for topic, kind in sorted(types.items())
            if kind in ACTION_TYPES and topic not in inputs][:_SHOWN]


def _advice(bag: Bag, part: Camera | StateSource, robot: RobotContract) -> str:
    """Return the end of a sentence: what else in the bag could be a source; '' for nothing."""
    advice = candidates(bag, part, robot) if isinstance(part, StateSource) else ''
    return f'{advice[0].lower()}{advice[1:-1]}' if advice else ''


def _require_actions(bag: Bag, topic: str, inputs: Mapping[str, str]) -> None:
    """Raise the BagError of a topic that holds no actions."""
    found = bag.types.get(topic)
    others = action_topics(bag.types, inputs)
    reason = f'has the type {found}' if found else 'has no messages'
    if topic in inputs:
        reason = f'measures {inputs[topic]} and {reason}'
    if found in NO_ACTIONS:
        reason += f': {NO_ACTIONS[found]}'
    raise BagError(
        f"The topic '{topic}' of the bag '{bag.path}' {reason}; actions are of the type "
        f"{' or '.join(ACTION_TYPES)}"
        + (f': {", ".join(others)}.' if others else ', and no topic has them.'))


@cache
def _definitions() -> MessageDefinitions:
    return MessageDefinitions()
