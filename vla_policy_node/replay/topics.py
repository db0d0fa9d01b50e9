"""Which topic of a bag is which input of the policy, and messages to and from their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from geometry_msgs.msg import TwistStamped
from rclpy.serialization import deserialize_message

from vla_msgs.msg import ActionChunk, EndEffectorCommand, PolicyInfo, PolicyStatus
from vla_policy_node.nodes.message_definitions import type_name
from vla_policy_node.policy.interface import CAMERAS
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.wire.streams import input_streams

STATUS, INFO, CHUNK, COMMAND = '/policy_status', '/policy_info', '/action_chunk', '/command'
RECORDS = {STATUS: PolicyStatus, INFO: PolicyInfo, CHUNK: ActionChunk}
_SHOWN = 8  # topics in a sentence
ACTION_TYPES = (EndEffectorCommand, TwistStamped)
# Two empty strings, for bags from before `optimisation` and `preprocessing` were appended. What
# follows a complete message is not read.
APPENDED = {PolicyInfo: bytes(8)}


@dataclass(frozen=True)
class BagTopics:
    """What is read of a bag.

    inputs: topic -> stream, see `wire.streams.input_streams`. compressed: as the node's
    parameter. actions: topic of the executed or expert actions, '' if there are none;
    action_type: its message class.
    """

    inputs: Mapping[str, str]
    compressed: bool
    actions: str = ''
    action_type: type = EndEffectorCommand


def find_topics(bag: Bag, chosen: Mapping[str, str], actions: str = '') -> BagTopics:
    """Return the topics to read; raises BagError for one that is missing or of another type.

    chosen: stream -> topic, where it is not the node's own name. Compressed images are taken where
    there are no raw ones. actions: topic of the actions to compare with; '' for '/command', if
    that is there and of such a type.
    """
    types = bag.types
    names = {stream: chosen.get(stream) or f'/{topic}'
             for stream, (_, topic) in input_streams(False).items()}
    compressed = all(names[c] not in types and f'{names[c]}/compressed' in types for c in CAMERAS)
    inputs = {}
    for stream, (kind, _) in input_streams(compressed).items():
        topic = names[stream] + ('/compressed' if compressed and stream in CAMERAS else '')
        _require(bag, topic, kind, f'--{stream.replace("_", "-")}-topic TOPIC')
        inputs[topic] = stream
    kinds = {type_name(kind): kind for kind in ACTION_TYPES}
    if not actions and types.get(COMMAND) not in kinds:
        return BagTopics(inputs, compressed)
    topic = actions or COMMAND
    kind = kinds.get(types.get(topic, ''), EndEffectorCommand)
    _require(bag, topic, kind, '--actions-topic TOPIC')
    return BagTopics(inputs, compressed, topic, kind)


def decode(raw: bytes, kind: type, topic: str):
    """Return the message; raises BagError if the bytes are none of this type.

    Fields that an old recording does not have are empty.
    """
    try:
        return deserialize_message(raw + APPENDED.get(kind, b''), kind)
    except Exception as error:  # whatever the middleware throws at bytes that do not fit
        raise BagError(
            f"A message on '{topic}' is not the {type_name(kind)} that is installed here; replay "
            'with the version of the messages that it was recorded with.') from error


def _require(bag: Bag, topic: str, kind: type, option: str) -> None:
    found = bag.types.get(topic)
    if found is None:
        fitting = sorted(t for t, name in bag.types.items() if name == type_name(kind))[:_SHOWN]
        hint = f'name one with {option}: {", ".join(fitting)}' if fitting else (
            f'no topic has the type {type_name(kind)}; record the inputs of the policy with '
            '`vla record`')
        raise BagError(f"The bag '{bag.path}' has no messages on '{topic}'; {hint}.")
    if found != type_name(kind):
        raise BagError(
            f"The topic '{topic}' of the bag '{bag.path}' has the type {found}, which is not "
            f'known here: {type_name(kind)} is needed; name another topic with {option}.')
