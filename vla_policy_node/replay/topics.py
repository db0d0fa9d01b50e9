"""Maps topics of a bag to policy inputs, and reads messages from their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from vla_policy_node.contract import RobotContract, find_contract
from vla_policy_node.policy.interface import PolicySpec
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.wire.definitions import MessageDefinitions
from vla_policy_node.wire.streams import InputStreams

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
    samples count by the time of recording instead of their stamps.
    """

    inputs: Mapping[str, str]
    streams: InputStreams
    actions: str = ''
    action_type: str = ACTION_TYPES[0]
    by_log: bool = False

    def needed_by(self, spec: PolicySpec) -> BagTopics:
        """Return those that a policy needs; raises BagError if the bag lacks one of them."""
        streams = replace(self.streams, spec=spec)
        inputs = {topic: stream for topic, stream in self.inputs.items()
                  if stream in streams.topics}
        for stream, (_, topic) in streams.topics.items():
            if stream not in inputs.values():
                raise BagError(
                    f"The policy looks at the camera '{stream}', of which the bag has nothing on "
                    f"'/{topic.lstrip('/')}'; name its topic with {_option(stream)}.")
        return replace(self, inputs=inputs, streams=streams)


def find_topics(
    bag: Bag, chosen: Mapping[str, str], actions: str = '', robot: RobotContract | None = None
) -> BagTopics:
    """Return the topics to read; raises BagError for one that is missing or of another type.

    A camera that the contract does not require may be missing, see `BagTopics.needed_by`.
    chosen: stream -> topic, where that is not the node's own name. Compressed images are used
    where there are no raw ones. actions: topic of the actions to compare with; '' for '/command',
    if that is there and of such a type.
    """
    types = bag.types
    streams = InputStreams(robot or find_contract(''), compressed=False)
    names = {stream: chosen.get(stream) or f'/{topic.lstrip("/")}'
             for stream, (_, topic) in streams.topics.items()}
    required = [camera.name for camera in streams.robot.cameras if camera.required]
    if all(names[camera] not in types and f'{names[camera]}/compressed' in types
           for camera in required):
        streams = replace(streams, compressed=True)
    optional = {camera.name for camera in streams.robot.cameras
                if not camera.required and not chosen.get(camera.name)}
    inputs = {}
    for stream, (kind, _) in streams.topics.items():
        topic = names[stream]
        if stream in streams.cameras:
            _, topic = streams.pictures(topic)
        if topic not in types and stream in optional:
            continue
        _require(bag, topic, kind, _option(stream))
        inputs[topic] = stream
    if not actions and types.get(COMMAND) not in ACTION_TYPES:
        return BagTopics(inputs, streams)
    topic = actions or COMMAND
    kind = types.get(topic, '')
    if kind not in ACTION_TYPES:
        kind = ACTION_TYPES[0]
    _require(bag, topic, kind, '--actions-topic TOPIC')
    return BagTopics(inputs, streams, topic, kind)


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


def _option(stream: str) -> str:
    return f'--{stream.replace("_", "-")}-topic TOPIC'


def _require(bag: Bag, topic: str, kind: str, option: str) -> None:
    found = bag.types.get(topic)
    if found is None:
        fitting = sorted(t for t, name in bag.types.items() if name == kind)[:_SHOWN]
        hint = f'name one with {option}: {", ".join(fitting)}' if fitting else (
            f'no topic has the type {kind}; record the inputs of the policy with '
            '`vla record`')
        if counted := bag.counted.get(topic):
            hint = f'its metadata.yaml counts {counted}, so they were lost; {hint}'
        raise BagError(f"The bag '{bag.path}' has no messages on '{topic}'; {hint}.")
    if found != kind:
        raise BagError(
            f"The topic '{topic}' of the bag '{bag.path}' has the type {found}, which is not "
            f'known here: {kind} is needed; name another topic with {option}.')


@cache
def _definitions() -> MessageDefinitions:
    return MessageDefinitions()
