"""Names what else in a bag could be an input: frames for a pose, joints for a gripper."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice

from vla_policy_node.contract import RobotContract
from vla_policy_node.contract.state import JOINT_STATE_TYPE, TRANSFORM_TYPE, StateSource
from vla_policy_node.control.transform_tree import TransformError, TransformTree, shown
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.finding import frame_of
from vla_policy_node.wire.cdr import MessageError, read_joint_fields, read_transforms

_MOST_MESSAGES = 2000
_SHOWN = 4
# In the order in which a frame is likely to be that of the commands, or of the end effector.
_BASES = ('base_link', 'link0', 'link_0', 'base', 'world')
_ENDS = ('tcp', 'tool', 'hand', 'gripper', 'eef', 'end_effector', 'ee_', 'flange')
_NO_ENDS = ('camera', 'optical', 'finger', 'knuckle', 'pad')
_GRIPPERS = ('finger', 'gripper', 'knuckle', 'robotiq', 'jaw')


def candidates(bag: Bag, source: StateSource, robot: RobotContract) -> str:
    """Return a sentence with what could be a source that is not there, '' for nothing."""
    return _frames(bag, frame_of(robot)) if source.is_pose else _joints(bag)


def _frames(bag: Bag, base: str) -> str:
    """Return between which frames the pose could be."""
    topics = [topic for topic, kind in sorted(bag.types.items()) if kind == TRANSFORM_TYPE]
    tree, moving = TransformTree(), [t for t in topics if not t.endswith('_static')]
    if not moving:
        return ''
    parents = set()
    for topic, raw in _first(bag, topics):
        try:
            for link in read_transforms(raw, topic.endswith('_static')):
                tree.put(link)
                parents.add(link.parent)
        except (MessageError, TransformError):
            continue
    frames = tree.frames
    ends = _likely([frame for frame in frames if not _has(frame, _NO_ENDS)], _ENDS)
    if base in frames and not ends:
        ends = [frame for frame in frames if frame not in parents]
    for root in [base] if base in frames else _likely(frames, _BASES):
        found = [frame for frame in ends if frame != root and _moves(tree, root, frame)]
        if found:
            return (f'From {moving[0]} it could be {TRANSFORM_TYPE} with parent: {shown(root)}, '
                    f'child: {" or ".join(map(shown, found[:_SHOWN]))}.')
    return ''


def _joints(bag: Bag) -> str:
    """Return which joints could be the gripper."""
    for topic, kind in sorted(bag.types.items()):
        if kind != JOINT_STATE_TYPE:
            continue
        for _, raw in islice(_first(bag, [topic]), 1):
            try:
                names = [name for name in read_joint_fields(raw)[0] if _has(name, _GRIPPERS)]
            except MessageError:
                continue
            if names:
                return (f'With `joint:` in the contract, {topic} has '
                        f'{" and ".join(map(shown, names[:_SHOWN]))}.')
    return ''


def _first(bag: Bag, topics: list[str]) -> Iterator[tuple[str, bytes]]:
    try:
        with closing(bag.messages(topics)) as messages:
            for topic, _, raw in islice(messages, _MOST_MESSAGES):
                yield topic, raw
    except BagError:
        return


def _moves(tree: TransformTree, parent: str, child: str) -> bool:
    try:
        return tree.look(parent, child) is not None
    except TransformError:
        return False


def _likely(names: list[str], words: tuple[str, ...]) -> list[str]:
    """Return the names that have one of the words, in the order of the words."""
    return sorted((name for name in names if _has(name, words)), key=lambda name: next(
        place for place, word in enumerate(words) if word in name.lower()))


def _has(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name.lower() for word in words)
