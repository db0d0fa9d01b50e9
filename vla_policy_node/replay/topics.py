"""Maps topics of a bag to policy inputs, and reads messages from their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from typing import Any

from vla_policy_node.contract import RobotContract, find_contract
from vla_policy_node.contract.parts import Camera, StateSource
from vla_policy_node.policy.interface import PolicySpec
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.finding import (
    COMPRESSED,
    RAW,
    find_picture,
    find_topic,
    fitting,
    parts_of,
)
from vla_policy_node.wire.definitions import MessageDefinitions
from vla_policy_node.wire.streams import InputStreams, is_static, static_of

STATUS, INFO, CHUNK, COMMAND = '/policy_status', '/policy_info', '/action_chunk', '/command'
POLICY_INFO = 'vla_msgs/msg/PolicyInfo'
RECORDS = {STATUS: 'vla_msgs/msg/PolicyStatus', INFO: POLICY_INFO,
           CHUNK: 'vla_msgs/msg/ActionChunk'}
_SHOWN = 8  # topics in a sentence
ACTION_TYPES = ('vla_msgs/msg/EndEffectorCommand', 'geometry_msgs/msg/TwistStamped')


@dataclass(frozen=True)
class BagTopics:
    """The topics that are read from a bag.

    inputs: topic -> stream. streams: of the robot, compressed or not. actions: topic of the
    executed or expert actions, '' if there are none; action_type: its message type. by_log:
    samples count by the time of recording instead of their stamps. records: topic -> which of
    RECORDS it is, of what the robot's policy node told of itself.
    """

    inputs: Mapping[str, str]
    streams: InputStreams
    actions: str = ''
    action_type: str = ACTION_TYPES[0]
    by_log: bool = False
    records: Mapping[str, str] = field(default_factory=lambda: {name: name for name in RECORDS})

    def needed_by(self, spec: PolicySpec) -> BagTopics:
        """Return those that a policy needs; raises BagError if the bag lacks one of them."""
        streams = replace(self.streams, spec=spec)
        inputs = {topic: stream for topic, stream in self.inputs.items()
                  if stream in streams.topics}
        for stream, (_, topic) in streams.topics.items():
            if stream not in inputs.values() and not is_static(stream):
                raise BagError(
                    f"The policy looks at the camera '{stream}', of which the bag has nothing on "
                    f"'/{topic.lstrip('/')}'; name its topic with {option_of(stream)} TOPIC.")
        return replace(self, inputs=inputs, streams=streams)


def find_topics(
    bag: Bag, chosen: Mapping[str, str], actions: str = '', robot: RobotContract | None = None,
    commands: str = COMMAND,
) -> BagTopics:
    """Return the topics to read; raises BagError for one that is missing or of another type.

    A camera that the contract does not require may be missing, see `BagTopics.needed_by`.
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
    for part in parts_of(robot):
        stream = part.name
        name = chosen.get(stream) or f'/{part.topic.lstrip("/")}'
        if isinstance(part, StateSource):
            found[stream] = _require(bag, find_topic(bag.types, name) or name, part, robot)
            continue
        picture = find_picture(bag.types, name)
        if picture is None and not part.required and not chosen.get(stream):
            continue
        found[stream], is_compressed = picture or (name, False)
        _require(bag, found[stream], part, robot)
        if is_compressed:
            compressed.add(stream)
    _refuse_twice(bag, found)
    streams = InputStreams(robot, frozenset(compressed))
    inputs = {topic: stream for stream, topic in found.items()}
    for source in streams.transforms.values():
        static = find_topic(bag.types, f'{found[source.name]}_static')
        if static and bag.types[static] == source.type:
            inputs[static] = static_of(source.name)
    topic = find_topic(bag.types, actions or commands) or actions or commands
    kind = bag.types.get(topic, '')
    if kind in ACTION_TYPES:
        return BagTopics(inputs, streams, topic, kind)
    if actions:
        _require_actions(bag, topic)
    return BagTopics(inputs, streams)


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


def _refuse_twice(bag: Bag, found: Mapping[str, str]) -> None:
    """Raise BagError if two streams have one topic: nothing would tell their messages apart."""
    streams: dict[str, list[str]] = {}
    for stream, topic in found.items():
        streams.setdefault(topic, []).append(stream)
    for topic, names in streams.items():
        if len(names) > 1:
            raise BagError(
                f"The topic '{topic}' of the bag '{bag.path}' is to be {' and '.join(names)} at "
                f'once; name another one with {option_of(names[-1])} TOPIC.')


def _require(bag: Bag, topic: str, part: Camera | StateSource, robot: RobotContract) -> str:
    """Return the topic; BagError if it is not there, or its messages are of another type."""
    found = bag.types.get(topic)
    kinds = (RAW, COMPRESSED) if isinstance(part, Camera) else (part.type,)
    option = f'{option_of(part.name)} TOPIC'
    if found is None:
        others = [*islice(fitting(bag, part, robot), _SHOWN)]
        hint = f'name one with {option}: {", ".join(others)}' if others else (
            f'no topic has usable messages of the type {" or ".join(kinds)}; record the inputs of '
            'the policy with `vla record`')
        if counted := bag.counted.get(topic):
            hint = f'its metadata.yaml counts {counted}, so they were lost; {hint}'
        raise BagError(f"The bag '{bag.path}' has no messages on '{topic}'; {hint}.")
    if found not in kinds:
        raise BagError(
            f"The topic '{topic}' of the bag '{bag.path}' has the type {found}, which is not "
            f'known here: {kinds[0]} is needed; name another topic with {option}.')
    return topic


def _require_actions(bag: Bag, topic: str) -> None:
    """Raise the BagError of a topic that holds no actions."""
    found = bag.types.get(topic)
    others = sorted(t for t, kind in bag.types.items() if kind in ACTION_TYPES)[:_SHOWN]
    reason = f'has the type {found}' if found else 'has no messages'
    raise BagError(
        f"The topic '{topic}' of the bag '{bag.path}' {reason}; actions are of the type "
        f"{' or '.join(ACTION_TYPES)}"
        + (f': {", ".join(others)}.' if others else ', and no topic has them.'))


@cache
def _definitions() -> MessageDefinitions:
    return MessageDefinitions()
