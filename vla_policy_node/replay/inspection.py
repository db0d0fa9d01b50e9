"""Inspects a bag for replay: which topics it would use, how good they are, and what is wrong."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from vla_policy_node.contract import RobotContract
from vla_policy_node.contract.parts import Camera
from vla_policy_node.contract.state import TRANSFORM_TYPE, StateSource
from vla_policy_node.policy.interface import PolicySpec
from vla_policy_node.replay.actions import ACTION_TYPES
from vla_policy_node.replay.bag import Bag
from vla_policy_node.replay.candidates import candidates
from vla_policy_node.replay.finding import (
    COMPRESSED,
    RAW,
    find_topic,
    fitting,
    parts_of,
    topic_of,
    why_not,
)
from vla_policy_node.replay.robots import commands_in, records_in
from vla_policy_node.replay.stamps import OTHER_CLOCK_S
from vla_policy_node.replay.topics import RECORDS, STATUS, action_topics, option_of
from vla_policy_node.wire.cdr import (
    MessageError,
    read_compressed_image,
    read_image,
    read_joint_fields,
    read_pose_stamped,
    read_transforms,
    stamp_of,
)
from vla_policy_node.wire.encodings import ENCODINGS
from vla_policy_node.wire.images import sample_compressed
from vla_policy_node.wire.streams import InputStreams
from vla_policy_node.wire.transforms import newest_stamp

_SHOWN, _SHOWN_JOINTS = 6, 12  # topics and transforms, joints in a cell
_POSE, _JOINTS = 'geometry_msgs/msg/PoseStamped', 'sensor_msgs/msg/JointState'
_STAMPED = (RAW, COMPRESSED, _POSE, _JOINTS, TRANSFORM_TYPE)


@dataclass
class TopicFacts:
    """What is known of one topic.

    recorded_ns, stamps_ns: of its messages, of types that a policy may read only. contents: of
    the first message.
    """

    name: str
    kind: str
    count: int
    contents: str = ''
    recorded_ns: array = field(default_factory=lambda: array('q'))
    stamps_ns: array = field(default_factory=lambda: array('q'))

    @property
    def rate_hz(self) -> float | None:
        """Messages per second between the first and the last one."""
        times = self.recorded_ns
        span_ns = max(times) - min(times) if len(times) > 1 else 0
        return (len(times) - 1) * 1e9 / span_ns if span_ns else None

    @property
    def gap_s(self) -> float | None:
        """The longest time without a message."""
        if len(self.recorded_ns) < 2:
            return None
        return float(np.diff(np.sort(np.array(self.recorded_ns, np.int64))).max()) / 1e9

    @property
    def is_unstamped(self) -> bool:
        """Whether all stamps are zero."""
        return bool(self.stamps_ns) and not any(self.stamps_ns)


@dataclass(frozen=True)
class InputFacts:
    """What a bag has for one input.

    topic: '' if there is none of the name in the contract. problem: a sentence, why it cannot be
    used as it is. apart_ms: median and 95th percentile of the time from each picture of the first
    camera to the nearest message, None if unknown.
    """

    name: str
    topic: str
    problem: str
    apart_ms: tuple[float, float] | None


@dataclass(frozen=True)
class Inspection:
    """All that was found. remarks: sentences."""

    duration_s: float
    topics: tuple[TopicFacts, ...]
    inputs: tuple[InputFacts, ...]
    remarks: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether every input of the robot is there."""
        return not any(one.problem for one in self.inputs)

    def lacks(self, robot: RobotContract, spec: PolicySpec) -> tuple[str, ...]:
        """Return the inputs that a policy needs for a replay and that are not there."""
        needed = InputStreams(robot, False, spec, moves=False).topics
        return tuple(one.name for one in self.inputs if one.name in needed and one.problem)


def inspect(bag: Bag, robot: RobotContract, namespace: str = '') -> Inspection:
    """Read through a bag once; namespace: of the robot in the bag. Raises BagError."""
    types, counts = bag.types, bag.counts
    topics = {name: TopicFacts(name, kind, counts[name]) for name, kind in sorted(types.items())}
    read = [name for name, kind in types.items() if kind in _STAMPED]
    for name, time_ns, raw in bag.messages(read):
        facts = topics[name]
        facts.contents = facts.contents or _contents(facts.kind, raw)
        facts.recorded_ns.append(time_ns)
        try:
            facts.stamps_ns.append(
                newest_stamp(raw) if facts.kind == TRANSFORM_TYPE else stamp_of(raw))
        except MessageError:
            continue
    found = {part.name: topic_of(bag.types, part) for part in parts_of(robot)}
    first = topics.get(found[robot.cameras[0].name])
    inputs = []
    for part in parts_of(robot):
        apart_ms = _apart_ms(first, topics.get(found[part.name]))
        problem = _advice(bag, part, robot, found, topics) or _far(apart_ms)
        inputs.append(InputFacts(part.name, found[part.name], problem, apart_ms))
    return Inspection(bag.duration_s, tuple(topics.values()), tuple(inputs),
                      (*_other_remarks(bag, namespace, found.values()), *bag.remarks()))


def _advice(
    bag: Bag, part: Camera | StateSource, robot: RobotContract, found: Mapping[str, str],
    topics: Mapping[str, TopicFacts],
) -> str:
    """Return why a part of the robot cannot be used, and what in the bag could be it instead."""
    problem = _problem(bag, part, robot, found, topics)
    if not problem or isinstance(part, Camera):
        return problem
    return f'{problem} {candidates(bag, part, robot)}'.rstrip()


def _problem(
    bag: Bag, part: Camera | StateSource, robot: RobotContract, found: Mapping[str, str],
    topics: Mapping[str, TopicFacts],
) -> str:
    topic = found[part.name]
    if not topic:
        taken = {*found.values()}
        others = [*islice((t for t in fitting(bag, part, robot) if t not in taken), _SHOWN)]
        if others:
            doubt = why_not(bag, others[0], part, robot) if len(others) == 1 else ''
            return (f'Name one: {option_of(part.name)} {" or ".join(others)}'
                    + (f'; but: {doubt}' if doubt else '.'))
        kind = 'a picture with colours' if isinstance(part, Camera) else part.type
        return f'No other topic has {kind}.'
    kinds = (RAW, COMPRESSED) if isinstance(part, Camera) else (part.type,)
    if bag.types[topic] not in kinds:
        return f'It is {bag.types[topic]}; {kinds[0]} is needed.'
    if topics[topic].is_unstamped:
        return 'All stamps are zero; take the times of recording with --stamps log.'
    return why_not(bag, topic, part, robot)


def _far(apart_ms: tuple[float, float] | None) -> str:
    """Return the sentence about stamps that cannot be of the clock of the pictures."""
    if apart_ms is None or apart_ms[0] <= OTHER_CLOCK_S * 1e3:
        return ''
    return (f'Most stamps are more than {OTHER_CLOCK_S:.0f} s from those of the pictures; take '
            'the times of recording with --stamps log.')


def _apart_ms(first: TopicFacts | None, other: TopicFacts | None) -> tuple[float, float] | None:
    if first is None or other is None or first is other or not (
            first.stamps_ns and other.stamps_ns):
        return None
    reference = np.array(first.stamps_ns, np.int64)
    stamps = np.sort(np.array(other.stamps_ns, np.int64))
    right = np.clip(np.searchsorted(stamps, reference), 0, len(stamps) - 1)
    left = np.maximum(right - 1, 0)
    apart = np.minimum(abs(stamps[right] - reference), abs(stamps[left] - reference)) / 1e6
    return float(np.median(apart)), float(np.percentile(apart, 95))


def _contents(kind: str, raw: bytes) -> str:
    """Return what the first message holds, in a few words."""
    try:
        if kind == RAW:
            image = read_image(raw)
            unknown = '' if image.encoding in ENCODINGS else ', which has no defined colours'
            return f'{image.width}x{image.height} {image.encoding}{unknown}'
        if kind == COMPRESSED:
            packed = read_compressed_image(raw)
            return f'{sample_compressed(packed)[0]} ({packed.format})'
        if kind == _POSE:
            return f'in {read_pose_stamped(raw)[1]}'
        if kind == TRANSFORM_TYPE:
            links = read_transforms(raw)
            shown = ', '.join(f'{link.child} in {link.parent}' for link in links[:_SHOWN])
            return f'{len(links)} transforms: {shown}{", ..." if len(links) > _SHOWN else ""}'
        names = read_joint_fields(raw)[0]
        more = ', ...' if len(names) > _SHOWN_JOINTS else ''
        return f'{len(names)} joints: {", ".join(names[:_SHOWN_JOINTS])}{more}'
    except MessageError as error:
        return str(error)


def _other_remarks(bag: Bag, namespace: str, inputs: Collection[str]) -> list[str]:
    types, commands = bag.types, commands_in(bag, namespace)
    remarks = []
    if not any(types.get(topic) == RECORDS[STATUS]
               for topic, record in records_in(bag, namespace).items() if record == STATUS):
        remarks.append(
            f'No {namespace}{STATUS} says what the robot was asked to do: give --instruction.')
    if types.get(find_topic(types, commands) or '') not in ACTION_TYPES:
        others = action_topics(types, inputs)
        remarks.append(
            f'No actions on {commands} to compare with'
            + (f': name them with --actions-topic {" or ".join(others)}.' if others
               else '.'))
    return remarks
