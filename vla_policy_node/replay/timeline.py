"""Replays a bag's timeline: what the policy node's executor thread would do, without waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator

from vla_policy_node.control.commander import Command, Commander
from vla_policy_node.control.pairing import Pair
from vla_policy_node.control.session import Outcome
from vla_policy_node.loop.inputs import RefusedError, SensorInputs
from vla_policy_node.policy.interface import ActionChunk, InferenceRequest, Policy
from vla_policy_node.policy.wrapper import PolicyWrapper
from vla_policy_node.replay.bag import Bag
from vla_policy_node.replay.bag_summary import BagSummary, RecordedGoal
from vla_policy_node.replay.stamps import samples
from vla_policy_node.replay.topics import BagTopics
from vla_policy_node.wire.cdr import MessageError
from vla_policy_node.wire.streams import is_static

# The bag itself says when its goals end.
FOR_EVER_NS = 10**18
# After so long without a message every input is older than any max_age_s allows.
SILENCE_NS = 11_000_000_000
_MOST_REFUSALS = 100  # different sentences that are kept
_MOST_TOGETHER = 16  # pictures of one time that wait for its states


class Timeline:
    """Files messages at their times, begins and ends goals, ticks the commander each period.

    Time is counted in the bag's own stamps and in control periods; no clock is ever read.
    on_command: called with the time (ns) and each command.
    """

    def __init__(
        self, bag: Bag, topics: BagTopics, summary: BagSummary, commander: Commander,
        period_ns: int, paced_by_timer: bool, on_command: Callable[[int, Command], None],
    ):
        self._events = events(bag, topics, summary)
        self._next = next(self._events, None)
        self._commander = commander
        self._inputs = SensorInputs(commander, topics.streams)
        self._period_ns = period_ns
        self._on_command = on_command
        self.now_ns = self._next[0] if self._next else 0
        self._tick_ns = self.now_ns + period_ns if paced_by_timer else None
        self._heard_ns = self.now_ns  # of the last event
        self.counts: Counter[str] = Counter()
        self.refusals: Counter[tuple[str, str]] = Counter()  # stream, sentence

    def step(self) -> bool:
        """Process the next event; False at the end of the bag."""
        if self._next is None:
            return False
        self.now_ns = max(self.now_ns, self._next[0])
        if self._tick_ns is not None and self._tick_ns <= self._next[0]:
            self._skip_silence()
            self.now_ns = self._tick_ns
            self._tick_ns += self._period_ns
            self._command(self.now_ns + self._period_ns)
            return True
        self._heard_ns, event, raw = self._next
        self._next = next(self._events, None)
        if isinstance(event, str):
            self._file(event, raw)
        elif event is None:
            self._commander.end(Outcome.CANCELLED)
            self._command(self.now_ns + self._period_ns)  # as in the node: stopped at once
        else:
            self._commander.begin(event.instruction, FOR_EVER_NS)
        return True

    def advance(self, duration_ns: int) -> None:
        """Process all events of this span, as the node does while its worker infers."""
        until_ns = self.now_ns + duration_ns
        while self._next is not None and min(
                self._next[0], self._next[0] if self._tick_ns is None else self._tick_ns
        ) <= until_ns:
            self.step()
        self.now_ns = max(self.now_ns, until_ns)

    def command_for(self, pair: Pair) -> None:
        """Send the one command of an observation, for parameters with `pacing: observation`."""
        self._command(pair.stamp_ns + self._period_ns)

    def _skip_silence(self) -> None:
        """Skip periods of a long gap in the bag: all inputs are stale, so nothing can happen."""
        if self._tick_ns > self._heard_ns + SILENCE_NS:
            periods = (self._next[0] - self._tick_ns) // self._period_ns
            self._tick_ns += periods * self._period_ns
            self.counts['periods_skipped_in_silence'] += periods

    def _command(self, target_ns: int) -> None:
        command = self._commander.tick(self.now_ns, target_ns)
        self._on_command(self.now_ns, command)

    def _file(self, stream: str, raw: bytes) -> None:
        try:
            self._inputs.file(stream, raw)
        except RefusedError as error:
            self.counts[f'{stream}.{error.why}'] += 1
            refusal = stream, str(error)
            if refusal in self.refusals or len(self.refusals) < _MOST_REFUSALS:
                self.refusals[refusal] += 1


class PacedPolicy(PolicyWrapper):
    """A policy whose inferences take a fixed amount of the bag's time, whatever they really take.

    latency_ns: that amount. Messages arrive and commands go out meanwhile, as in the node.
    timeline: set before the first inference.
    """

    timeline: Timeline

    def __init__(self, inside: Policy, latency_ns: int):
        super().__init__(inside)
        self._latency_ns = latency_ns

    def infer(self, request: InferenceRequest) -> ActionChunk:
        """Return the policy's chunk once its latency has passed."""
        chunk = self.inside.infer(request)
        self.timeline.advance(self._latency_ns)
        return chunk


Message = tuple[int, str, bytes]  # time ns, stream, serialised
Event = tuple[int, str | RecordedGoal | None, bytes]  # time ns, stream or goal or its end, message


def events(bag: Bag, topics: BagTopics, summary: BagSummary) -> Iterator[Event]:
    """Yield everything in order of time; a goal begins and ends after the messages of its time."""
    goals = [turn for goal in summary.goals
             for turn in ((goal.start_ns, goal, b''), (goal.end_ns, None, b''))]
    def timed() -> Iterator[Message]:
        for topic, recorded_ns, raw in samples(bag, topics):
            stream, time_ns = topics.inputs[topic], recorded_ns
            if summary.on_stamps:
                try:
                    time_ns = 0 if is_static(stream) else topics.streams.stamp_of(stream, raw)
                except MessageError:
                    time_ns = 0
                time_ns = time_ns or (goals[0][0] if goals else 0)  # else nobody says when it was
            yield time_ns, stream, raw

    for time_ns, stream, raw in states_first(timed(), topics.streams.cameras):
        while goals and goals[0][0] < time_ns:
            yield goals.pop(0)
        yield time_ns, stream, raw
    yield from goals


def states_first(messages: Iterable[Message], cameras: Collection[str]) -> Iterator[Message]:
    """Yield states before the pictures of the same time, which is as fine as a clock of steps.

    On simulated time a recorder writes what arrives within a step in any order of topics. A
    picture before its own state would be paired with that of the step before.
    """
    pictures: list[Message] = []
    for message in messages:
        if pictures and (message[0] != pictures[0][0] or len(pictures) == _MOST_TOGETHER):
            yield from pictures
            pictures.clear()
        if message[1] in cameras:
            pictures.append(message)
        else:
            yield message
    yield from pictures
