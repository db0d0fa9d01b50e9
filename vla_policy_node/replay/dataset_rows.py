"""The rows of a LeRobot dataset that a recorded bag holds: which samples, which actions, when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from vla_policy_node.contract import RobotContract
from vla_policy_node.contract.fit import action_names, spec_of
from vla_policy_node.contract.joints import is_moved_by_joints, joint_spec, joint_streams
from vla_policy_node.contract.parts import EndEffectorGroup
from vla_policy_node.control.hold import HoldError
from vla_policy_node.control.transform_tree import TransformError
from vla_policy_node.policy.interface import PolicySpec
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.bag_summary import BagSummary, summarise_bag
from vla_policy_node.replay.commanded import (
    action_of,
    check_actions,
    filled,
    joint_actions,
    joint_topic,
    motion_actions,
)
from vla_policy_node.replay.robots import topics_of_robot
from vla_policy_node.replay.row_times import Newest, RowTimes, runs
from vla_policy_node.replay.settings import read_info, robot_of
from vla_policy_node.replay.stamps import LOG, samples
from vla_policy_node.replay.topics import BagTopics
from vla_policy_node.wire.cdr import MessageError, stamp_of
from vla_policy_node.wire.states import decode_positions, decode_state
from vla_policy_node.wire.streams import is_static, source_of
from vla_policy_node.wire.transforms import TransformPoses

MAX_AGE_NS = 500_000_000  # of what a row takes; older, and the episode ends
LEAST_ROWS = 2  # of an episode
USUAL_HZ = 20
_OFF = 0.25  # of a period: commands at another rate than the rows mean other motions


@dataclass(frozen=True)
class BagRequest:
    """How a bag is to be read; see the options of `vla dataset from-bag`."""

    contract: str = ''
    instruction: str = ''
    fps: int = 0
    topics: Mapping[str, str] = field(default_factory=dict)
    actions_topic: str = ''
    measured: bool = False
    stamps: str = 'header'
    namespace: str = ''


@dataclass(frozen=True, eq=False)
class BagEpisode:
    """Consecutive rows of one goal. pictures: camera -> [N], which message of its topic."""

    instruction: str
    state: np.ndarray
    actions: np.ndarray
    pictures: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class BagRows:
    """All that a bag has for a dataset. cameras: name -> topic. notes: on what is odd."""

    robot: RobotContract
    fps: int
    topics: BagTopics
    cameras: Mapping[str, str]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    episodes: tuple[BagEpisode, ...]
    notes: tuple[str, ...]


def read_rows(bag: Bag, request: BagRequest) -> BagRows:
    """Read through a bag once or twice; BagError with one sentence if it has no rows."""
    info = read_info(bag, request.namespace)
    robot, _ = robot_of(bag, request.contract, request.namespace)
    check_actions(robot, request.measured)
    fps = request.fps or _rate_of(info)
    period_ns = round(1e9 / fps)
    topics, cameras, notes = _inputs(bag, robot, request)
    frame = next((group.frame for group in robot.actions
                  if isinstance(group, EndEffectorGroup)), '')
    summary = summarise_bag(bag, topics, request.instruction, period_ns, frame)
    times = RowTimes(summary.goals, fps)
    reading = _Reading(bag, topics, times, frame)
    valid, state, pictures, measured = reading.read()
    if request.measured:
        actions, near = _one_later(measured, robot, times)
    else:
        told, near = _told(bag, robot, request, topics, summary, times, period_ns)
        actions = filled(told, near, robot)
    known = np.isfinite(actions).all(1)
    # A goal ends as its last command does: the row of that moment has none.
    found = runs(valid & known, times.goal)
    stretches = [(first, end - (not near[end - 1])) for first, end in found]
    stretches = [(first, end) for first, end in stretches if end - first >= LEAST_ROWS]
    if not stretches:
        silent = topics.actions if near.any() and not known.any() else ''
        raise BagError(_why_nothing(bag, reading, valid, known, silent))
    for name, numbers in pictures.items():
        taken = np.concatenate([numbers[first:end] for first, end in stretches])
        if (np.diff(taken) < 0).any():
            raise BagError(f"The pictures of '{name}' in the bag '{bag.path}' go back in time; "
                           'record again, or take the times of recording with --stamps log.')
    used = sum(end - first for first, end in stretches)
    if used + sum(not near[end - 1] for _, end in found) < len(times):
        notes.append(f'{len(times) - used} of {len(times)} rows were left out: an input was '
                     f'missing or older than {MAX_AGE_NS / 1e9:g} s, or nothing had been '
                     'commanded yet.')
    if still := sum(int((~near[first:end]).sum()) for first, end in stretches):
        notes.append(f'In {still} rows nothing was commanded; they stand still.')
    names = {stream: topic for topic, stream in topics.inputs.items()}
    return BagRows(
        robot, fps, topics, {camera: names[camera] for camera in cameras},
        tuple(value.name for source in topics.streams.states.values() for value in source.values),
        action_names(robot),
        tuple(BagEpisode(
            summary.goals[times.goal[first]].instruction, state[first:end], actions[first:end],
            {camera: numbers[first:end] for camera, numbers in pictures.items()})
            for first, end in stretches),
        (*notes, *summary.notes, *reading.notes()))


def _inputs(
    bag: Bag, robot: RobotContract, request: BagRequest
) -> tuple[BagTopics, list[str], list[str]]:
    """Return the topics of all that the contract has, the cameras that are there, and notes."""
    by_joints = is_moved_by_joints(robot)
    topics = topics_of_robot(
        bag, robot, request.topics, '' if by_joints else request.actions_topic, request.namespace)
    topics = replace(topics, by_log=request.stamps == LOG)
    absent = [camera.name for camera in robot.cameras
              if camera.name in topics.missing and not camera.required]
    cameras = [name for name in robot.camera_names if name not in absent]
    topics = topics.needed_by(
        {'a dataset': PolicySpec(tuple(cameras), spec_of(robot).state)}, moves=not by_joints)
    if not by_joints and not topics.actions:
        raise BagError(f"The bag '{bag.path}' holds no commands of {robot.name}; name their topic "
                       'with --actions-topic.')
    return topics, cameras, [
        f"The bag has no pictures of '{name}', which the contract does not require; the dataset "
        'is without.' for name in absent]


def _told(
    bag: Bag, robot: RobotContract, request: BagRequest, topics: BagTopics, summary: BagSummary,
    times: RowTimes, period_ns: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what was commanded in each row [N, A], and for which rows there is any."""
    if is_moved_by_joints(robot):
        topic = joint_topic(bag, request.actions_topic)
        return joint_actions(bag, topic, robot, times, period_ns, topics.by_log)
    _check_rate(bag, summary, topics, period_ns)
    return motion_actions(summary.actions, robot, times, period_ns)


def _one_later(
    measured: np.ndarray, robot: RobotContract, times: RowTimes
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions [N, A] of the next row as actions; the last one of a goal has none."""
    joints = joint_spec(robot).joints
    values = np.array([action_of(row, joints) for row in measured]).reshape(-1, len(joints))
    told = np.concatenate([values[1:], values[-1:]])
    told[:-1][times.goal[1:] != times.goal[:-1]] = np.nan
    told[-1:] = np.nan
    return told, np.isfinite(told).all(1)


class _Reading:
    """One pass over the inputs of a bag, which keeps what rows take."""

    def __init__(self, bag: Bag, topics: BagTopics, grid: RowTimes, frame: str):
        self._bag, self._topics, self._grid, self._frame = bag, topics, grid, frame
        streams = topics.streams
        self._cameras = {camera: Newest(grid, 1) for camera in streams.cameras}
        self._states = {name: Newest(grid, len(source.values))
                        for name, source in streams.states.items()}
        robot = streams.robot
        self._places = joint_streams(robot) if is_moved_by_joints(robot) else {}
        self._joints = {name: Newest(grid, len(places)) for name, places in self._places.items()}
        self._poses = {name: TransformPoses(source)
                       for name, source in streams.transforms.items()}
        self._seen: Counter[str] = Counter()
        self._refused: dict[str, tuple[int, str]] = {}

    def read(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """Return for which rows all is there, the state, the messages with pictures, and joints.

        State [N, S]; camera -> [N] number of the message of its topic; positions of moved joints
        [N, J], as measured, in the order of an action.
        """
        for topic, _, raw in samples(self._bag, self._topics):
            stream = self._topics.inputs[topic]
            try:
                self._take(stream, raw)
            except (HoldError, MessageError, TransformError) as error:
                count, _ = self._refused.get(source_of(stream), (0, ''))
                self._refused[source_of(stream)] = count + 1, str(error)
        valid = np.ones(len(self._grid), bool)
        columns, pictures = [], {}
        for name, kept in {**self._cameras, **self._states}.items():
            ages, values = kept.ages_and_values()
            valid &= ages <= MAX_AGE_NS
            if name in self._cameras:
                pictures[name] = values[:, 0].astype(np.int64)
            else:
                columns.append(values)
        measured = np.zeros((len(self._grid), sum(map(len, self._places.values()))))
        for name, places in self._places.items():
            measured[:, list(places)] = self._joints[name].ages_and_values()[1]
        state = np.concatenate(columns, axis=1) if columns else np.zeros((len(self._grid), 0))
        return valid, state, pictures, measured

    def notes(self) -> list[str]:
        """Return a sentence for each stream of which messages were refused."""
        return [f'{count} messages of {stream} were refused: {why}'
                for stream, (count, why) in self._refused.items()]

    def _take(self, stream: str, raw: bytes) -> None:
        static, stream = is_static(stream), source_of(stream)
        streams = self._topics.streams
        if stream in self._cameras:
            number = self._seen[stream]
            self._seen[stream] += 1
            self._cameras[stream].put(streams.stamp_of(stream, raw), number)
            return
        pose = self._poses[stream].take(raw, static) if stream in self._poses else raw
        if pose is None:
            return
        source = streams.states[stream]
        stamp_ns = stamp_of(pose)
        self._states[stream].put(stamp_ns, decode_state(pose, source, self._frame))
        if stream in self._places:
            names = joint_spec(streams.robot).names
            joints = tuple(names[place] for place in self._places[stream])
            self._joints[stream].put(stamp_ns, np.array(decode_positions(raw, stream, joints)[1]))


def _rate_of(info: object) -> int:
    """Return how many control periods a second has, as the recording says, or as is usual."""
    period_s = getattr(info, 'control_period_s', 0.0) or 0.0
    return max(1, round(1 / period_s)) if 1e-3 <= period_s <= 10 else USUAL_HZ


def _check_rate(bag: Bag, summary: BagSummary, topics: BagTopics, period_ns: int) -> None:
    """Raise BagError if motions are of another period than rows."""
    if topics.action_type != 'vla_msgs/msg/EndEffectorCommand':
        return  # velocities and targets are turned into motions of any period
    apart = np.diff(summary.actions.target_ns)
    usual_ns = float(np.median(apart)) if len(apart) else period_ns
    if usual_ns and abs(usual_ns - period_ns) > _OFF * period_ns:
        raise BagError(
            f"The commands of the bag '{bag.path}' are motions over {usual_ns / 1e6:.0f} ms, and "
            f'a row is {period_ns / 1e6:.0f} ms; give --fps {max(1, round(1e9 / usual_ns))}.')


def _why_nothing(
    bag: Bag, reading: _Reading, valid: np.ndarray, known: np.ndarray, silent: str
) -> str:
    """Return the sentence of a bag without rows. silent: a topic of motions without a gripper."""
    if not valid.any():
        why = ('no moment has all inputs at once'
               + ''.join(f'; {note.rstrip(".")}' for note in reading.notes()[:1]))
    elif silent:
        why = (f'{silent} says nothing of the gripper; name a topic of EndEffectorCommand with '
               '--actions-topic, or take a contract whose actions have no gripper')
    elif not known.any():
        why = 'nothing usable was commanded; name the topic of actions with --actions-topic'
    else:
        why = 'nothing was commanded while all inputs were there'
    return f"The bag '{bag.path}' holds no rows of a dataset: {why}."
