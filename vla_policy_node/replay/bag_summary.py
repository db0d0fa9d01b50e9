"""Summary of a bag: instructions, executed actions, rate of inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_policy_node.policy.interface import MAX_INSTRUCTION_BYTES
from vla_policy_node.replay.actions import ActionReader, Actions
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.stamps import OTHER_CLOCK_S, require_stamps
from vla_policy_node.replay.topics import CHUNK, INFO, RECORDS, STATUS, BagTopics, decode
from vla_policy_node.wire.build import to_ns
from vla_policy_node.wire.cdr import MessageError, stamp_of


@dataclass(frozen=True)
class RecordedGoal:
    """One instruction, from when to when on the clock of the replay (ns)."""

    instruction: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True, eq=False)
class BagSummary:
    """The bag in a few numbers.

    on_stamps: the recording times belong to another clock than the stamps, so the stamps alone
        say when something came.
    inference_ns: how long an inference took in the bag's time, None if it has no chunks; 0 in
        lock-step. notes: sentences for the report.
    """

    goals: tuple[RecordedGoal, ...]
    info: Any | None  # vla_msgs/PolicyInfo
    actions: Actions
    inference_ns: int | None
    on_stamps: bool
    notes: tuple[str, ...] = ()


def summarise_bag(
    bag: Bag, topics: BagTopics, instruction: str, period_ns: int, frame_id: str = ''
) -> BagSummary:
    """Read through a bag once; raises BagError if nobody says what the robot should do.

    instruction: what to follow from the first to the last message; '' for what the bag says.
    frame_id: of the policy's actions, '' for any.
    """
    teller = _Teller(topics, ActionReader(
        topics.action_type, period_ns, frame_id, topics.by_log))
    require_stamps(bag, topics)
    reference = topics.streams.cameras[0]
    first_camera = next(t for t, stream in topics.inputs.items() if stream == reference)
    told = [topic for topic, record in topics.records.items()
            if bag.types.get(topic) == RECORDS[record]]
    wanted = {*told, first_camera, topics.actions} & bag.types.keys()
    for topic, time_ns, raw in bag.messages(wanted):
        teller.hear(topic, time_ns, raw, topic == first_camera)
    return teller.tell(bag, instruction)


class _Teller:
    """Listens to the messages of one bag."""

    def __init__(self, topics: BagTopics, actions: ActionReader):
        self._topics = topics
        self._actions = actions
        self._status = next(t for t, record in topics.records.items() if record == STATUS)
        self._info: Any | None = None
        self._goals: list[RecordedGoal] = []
        self._running: tuple[int, str, int] | None = None  # epoch, instruction, since
        self._pictures: list[tuple[int, int]] = []  # recording time, stamp
        self._inference_ns: list[int] = []

    def hear(self, topic: str, time_ns: int, raw: bytes, is_camera: bool) -> None:
        if is_camera:
            try:
                stamp_ns = time_ns if self._topics.by_log else stamp_of(raw)
            except MessageError:
                return  # the replay counts it
            if not stamp_ns and time_ns > OTHER_CLOCK_S * 1e9:
                return  # says nothing of when the bag begins
            self._pictures.append((time_ns, stamp_ns))
            return
        is_action = topic == self._topics.actions
        record = self._topics.records.get(topic, '')
        kind = self._topics.action_type if is_action else RECORDS[record]
        message = decode(raw, kind, topic)
        if is_action:
            self._actions.hear(message, time_ns)
        elif record == INFO:
            self._info = message
        elif record == STATUS:
            # By its own stamp: the recorder may have received it later.
            self._hear_status(
                message, time_ns if self._topics.by_log else to_ns(message.header.stamp))
        elif record == CHUNK:
            self._hear_chunk(message, time_ns)

    def _hear_status(self, status: Any, time_ns: int) -> None:
        running = (status.epoch, status.instruction) if status.goal_active else None
        if self._running and running != self._running[:2]:
            self._end_goal(time_ns)
        if running and self._running is None:
            self._running = (*running, time_ns)

    def _end_goal(self, time_ns: int) -> None:
        _, instruction, start_ns = self._running
        self._goals.append(RecordedGoal(instruction, start_ns, time_ns))
        self._running = None

    def _hear_chunk(self, chunk: Any, time_ns: int) -> None:
        if not abs(chunk.observation_age_ms) < 1e9:  # nor NaN
            return
        age_ns = round(chunk.observation_age_ms * 1e6)
        self._inference_ns.append(time_ns - to_ns(chunk.header.stamp) - age_ns)

    def _span(self, on_stamps: bool) -> tuple[int, int]:
        """Return when the pictures begin and end, on the clock of the replay (ns)."""
        if on_stamps:
            spans = [(stamp_ns, stamp_ns) for _, stamp_ns in self._pictures]
        else:  # a stamp far from its time says nothing of when the bag begins or ends
            spans = [(min(pair), max(pair)) for pair in self._pictures
                     if max(pair) - min(pair) <= OTHER_CLOCK_S * 1e9]
        return (spans[0][0], max(end_ns for _, end_ns in spans)) if spans else (0, 0)

    def tell(self, bag: Bag, instruction: str) -> BagSummary:
        notes = []
        delay_s = np.median([time_ns - stamp_ns for time_ns, stamp_ns in self._pictures]
                            ) / 1e9 if self._pictures else 0.0
        if self._topics.by_log:
            notes.append('Messages count by the times of their recording (--stamps log), not by '
                         'their stamps: ages and spreads are those of the recorder.')
        on_stamps = abs(delay_s) > OTHER_CLOCK_S
        if on_stamps:
            notes.append('Recording times and stamps are of different clocks, so messages are '
                         'taken to have come at their stamps; ages mean little.')
        first_ns, last_ns = self._span(on_stamps)
        if self._running:
            self._end_goal(last_ns)
        goals = self._goals
        if instruction:
            goals = [RecordedGoal(instruction, first_ns, last_ns)]
        actions = self._actions.actions(round(delay_s * 1e9) if on_stamps else 0)
        notes += self._actions.notes(self._topics.actions)
        longest = max((len(goal.instruction.encode()) for goal in goals), default=0)
        if longest > MAX_INSTRUCTION_BYTES:
            raise BagError(f"An instruction of the bag '{bag.path}' has {longest} bytes; a policy "
                           f'takes {MAX_INSTRUCTION_BYTES}.')
        if not goals:
            raise BagError(
                f"The bag '{bag.path}' does not say what the robot was asked to do: no goal on "
                f'{self._status}; say it with --instruction "..." (a player: with its '
                'parameter instruction).')
        inference_ns = None
        if self._inference_ns and not on_stamps:
            inference_ns = max(0, round(float(np.median(self._inference_ns))))
        return BagSummary(
            tuple(goals), self._info, actions, inference_ns, on_stamps,
            tuple(notes))
