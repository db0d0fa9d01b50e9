"""An end effector whose pose nobody measured, or not well: a replay without a workspace.

Nothing moves in a replay. Poses that no policy is told only bound the commands there, so they may
be missing; the report says what is missing with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace

import numpy as np

from vla_policy_node.control.end_effector import EndEffectorMover
from vla_policy_node.control.hold import HoldError
from vla_policy_node.control.limits import Box
from vla_policy_node.replay.bag import Bag
from vla_policy_node.replay.stamps import is_of_other_clock, is_unstamped
from vla_policy_node.replay.topics import BagTopics
from vla_policy_node.wire.states import decode_pose
from vla_policy_node.wire.streams import source_of

# So far away that no command is clipped by it.
_EVERYWHERE = Box(np.full(3, -1e3), np.full(3, 1e3))


class UnmeasuredMover(EndEffectorMover):
    """Bounds steps, velocities and accelerations, but not where the end effector goes.

    Nothing may be moved by it: a robot whose pose is not measured stands still.
    """

    def check(self, now_ns: int) -> None:
        """Look at nothing."""

    def _place(self, now_ns: int) -> tuple[np.ndarray, Box]:
        return np.zeros(3), _EVERYWHERE


def with_usable_poses(
    bag: Bag, topics: BagTopics, frame_ids: Iterable[str]
) -> tuple[BagTopics, str]:
    """Return the topics without poses that are of no use, and why there are none; '' if some are.

    Poses that a policy is told stay, whatever they are. frame_ids: of the commands.
    """
    pose, streams = topics.streams.pose, replace(topics.streams, moves=False)
    if pose in streams.states:
        return topics, ''
    if not pose:
        return topics, 'the bag has none'
    topic = next(topic for topic, stream in topics.inputs.items() if stream == pose)
    if not (why := _why_useless(bag, topics, topic, frame_ids)):
        return topics, ''
    inputs = {name: stream for name, stream in topics.inputs.items() if source_of(stream) != pose}
    return replace(topics, inputs=inputs, streams=streams), f'those on {topic} are not used: {why}'


def _why_useless(bag: Bag, topics: BagTopics, topic: str, frame_ids: Iterable[str]) -> str:
    if not topics.by_log and is_unstamped(bag, topics, topic):
        return 'all stamps are zero'
    if is_of_other_clock(bag, topics, topic):
        return f'their stamps are of another clock than those of {topics.streams.cameras[0]}'
    if topics.streams.pose in topics.streams.transforms:
        return ''  # which was made in the frame of the commands
    with closing(bag.messages([topic])) as messages:
        raw = next((raw for _, _, raw in messages), b'')
    try:
        for frame_id in frame_ids:
            decode_pose(raw, frame_id)
    except HoldError as error:
        return str(error).rstrip('.')
    return ''
