"""Finds the topic of an input in a bag, and candidates to suggest if there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import islice

from vla_policy_node.contract import RobotContract
from vla_policy_node.contract.parts import Camera, EndEffectorGroup
from vla_policy_node.contract.state import StateSource
from vla_policy_node.control.hold import HoldError
from vla_policy_node.control.transform_tree import TransformError
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.wire.cdr import MessageError, read_compressed_image, read_image
from vla_policy_node.wire.images import sample_compressed, sample_image
from vla_policy_node.wire.states import decode_state
from vla_policy_node.wire.transforms import TransformPoses

RAW, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
_ENDING = '/compressed'
_NO_COLOURS = ('depth', 'disparity')
_FIRST = 20  # messages of joints that are looked at
_MOST_TRANSFORMS = 100_000  # messages that are read to find a pose


def parts_of(robot: RobotContract) -> tuple[Camera | StateSource, ...]:
    """Return all inputs of a robot, cameras first."""
    return *robot.cameras, *robot.state


def find_picture(types: Mapping[str, str], name: str) -> tuple[str, bool] | None:
    """Return the topic of a camera and whether it is compressed; None if there is none.

    The name may have a leading slash and `/compressed` or not. What has exactly this name comes
    first, then raw pictures.
    """
    base = name.removesuffix(_ENDING)
    for topic in (*_spelled(name), *_spelled(base), *_spelled(base + _ENDING)):
        if types.get(topic) in (RAW, COMPRESSED):
            return topic, types[topic] == COMPRESSED
    return None


def find_topic(types: Mapping[str, str], name: str) -> str | None:
    """Return the topic of this name, with or without leading slash; None if there is none."""
    return next((topic for topic in _spelled(name) if topic in types), None)


def topic_of(types: Mapping[str, str], part: Camera | StateSource) -> str:
    """Return the topic of an input by its name in the contract, '' for none."""
    name = f'/{part.topic.lstrip("/")}'
    if isinstance(part, Camera):
        return (find_picture(types, name) or ('', False))[0]
    return find_topic(types, name) or ''


def _spelled(name: str) -> tuple[str, ...]:
    bare = name.strip().lstrip('/')
    return name, f'/{bare}', bare


def fitting(bag: Bag, part: Camera | StateSource, robot: RobotContract) -> Iterator[str]:
    """Yield the topics that can be this input, in order; never one of depth."""
    wanted = (RAW, COMPRESSED) if isinstance(part, Camera) else (part.type,)
    for topic, kind in sorted(bag.types.items()):
        # A state in another frame, or with other joints, may still be the right one.
        if kind in wanted and not (
                isinstance(part, Camera) and why_not(bag, topic, part, robot)):
            yield topic


def why_not(bag: Bag, topic: str, part: Camera | StateSource, robot: RobotContract) -> str:
    """Return why the first messages of a topic cannot be this input; '' if one can.

    Of joints, several nodes may publish theirs on one topic.
    """
    if isinstance(part, Camera) and any(word in topic.lower() for word in _NO_COLOURS):
        return 'It has no colours.'
    many = not isinstance(part, Camera) and not part.is_pose
    try:
        if isinstance(part, StateSource) and part.parent:
            first = [_first_pose(bag, topic, part)]
        else:
            with closing(bag.messages([topic])) as messages:
                first = [raw for _, _, raw in islice(messages, _FIRST if many else 1)]
    except (BagError, MessageError, TransformError) as error:
        return str(error)
    reasons = [_why_not_one(raw, bag.types[topic], part, robot) for raw in first]
    return '' if '' in reasons else (reasons or ['It has no message.'])[0]


def _why_not_one(raw: bytes, kind: str, part: Camera | StateSource, robot: RobotContract) -> str:
    try:
        if not isinstance(part, Camera):
            decode_state(raw, part, frame_of(robot))
        elif kind == COMPRESSED:
            sample_compressed(read_compressed_image(raw))
        else:
            sample_image(read_image(raw))
    except (MessageError, HoldError) as error:
        return str(error)
    return ''


def _first_pose(bag: Bag, topic: str, source: StateSource) -> bytes:
    """Return the first pose that transforms lead to. Raises as `TransformPoses`."""
    poses, static = TransformPoses(source), f'{topic}_static'
    trouble: TransformError | None = None
    with closing(bag.messages([topic, static])) as messages:
        for name, _, raw in islice(messages, _MOST_TRANSFORMS):
            try:
                if (found := poses.take(raw, name == static)) is not None:
                    return found
            except TransformError as error:
                trouble = error
    raise trouble or TransformError(
        f"The transforms do not lead from '{source.parent}' to '{source.child}'.")


def frame_of(robot: RobotContract) -> str:
    """Return the frame that poses have to be in."""
    return next((group.frame for group in robot.actions if isinstance(group, EndEffectorGroup)),
                '')
