"""One core trial: a robot, its sensors, a policy and the node's core on one virtual clock."""

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from vla_policy_node.bench.faults import messages
from vla_policy_node.bench.faults.machine import Machine, promise_of
from vla_policy_node.bench.faults.messages import Message
from vla_policy_node.bench.faults.records import (
    CAMERA_STREAMS,
    STREAMS,
    Promise,
    Sample,
    SampleVerdict,
    Stop,
    TimeSpan,
    Trial,
    TrialGoal,
)
from vla_policy_node.bench.faults.world import SECOND, Clock, Robot, ScriptedPolicy, Setup

INSTRUCTION = 'pick up the black bowl'
_VIEWS = frozenset({'swapped', 'resized'})


@dataclass
class Fault:
    """Something that goes wrong during `span`.

    alter: called with every message captured in the span, returns those that leave instead.
    begin, end: called with the running simulation at the ends of the span.
    promise: what of a promise is different because of it, for the whole trial.
    lingers_s: how long after its span it may still be felt (an inference that was begun).
    """

    kind: str
    span: TimeSpan
    alter: Callable[[Message], Iterable[Message]] | None = None
    begin: Callable[['Simulation'], None] = lambda simulation: None
    end: Callable[['Simulation'], None] = lambda simulation: None
    promise: dict = field(default_factory=dict)
    lingers_s: float = 0.0


class Views:
    """What a goal that begins takes for the views of its cameras: what they show just then.

    Without a reference picture nobody can tell that they were swapped, or set to another size,
    before.
    """

    def __init__(self):
        self._taken: frozenset[str] = frozenset()

    def begin(self, trial: Trial, now_s: float) -> None:
        """Begin a goal; what it has seen of such views already is as good."""
        recent = [s for s in trial.samples if s.arrived_s > now_s - 1.0]
        self._taken = frozenset(s.fault for s in recent) & _VIEWS
        trial.samples = [self.judge(s) if s.arrived_s > now_s - 1.0 else s for s in trial.samples]

    def judge(self, sample: Sample) -> Sample:
        """Return a sample as the goal may take it."""
        is_taken = sample.fault in self._taken
        return replace(sample, verdict=SampleVerdict.OPEN) if is_taken else sample


class Simulation:
    """Runs one trial; everything that happens is an event in one queue.

    crashed: text of the exception that ended it.
    """

    def __init__(self, setup: Setup, faults: list[Fault], rng: np.random.Generator):
        self.setup, self.faults, self.rng = setup, faults, rng
        self.now_s = 0.0
        self.node_clock, self.source_clock = (Clock(setup.clock_start_s) for _ in range(2))
        self.policy = ScriptedPolicy(
            setup, rng, lambda spent_s: self.run_until(self.now_s + spent_s))
        self.machine = Machine(setup.parameters, self.policy, self.node_ns, setup.simulated)
        self.period_s = 1.0 / self.machine.parameters.control_rate_hz
        self.robot = Robot(setup.start_m, self.period_s, setup.lag_s)
        self.trial = Trial(start_m=setup.start_m, simulated=setup.simulated)
        self.views = Views()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._thinking = False
        self._frames = dict.fromkeys(STREAMS, int(rng.integers(0, messages.PICTURES)))
        self._changes: dict = {}
        for fault in faults:
            for name, value in fault.promise.items():
                self._changes[name] = max(value, self._changes.get(name, value))

    # --- what faults and the script use ---

    def node_ns(self) -> int:
        """Return the node's clock."""
        return self.node_clock.ns(self.now_s)

    def at(self, at_s: float, what: Callable[[], None]) -> None:
        """Let something happen at a time, after what was planned for it before."""
        heapq.heappush(self._events, (at_s, next(self._order), what))

    def begin(self, instruction: str = INSTRUCTION, duration_s: float = 100.0) -> bool:
        """Ask for a goal; whether it was accepted."""
        try:
            epoch = self.machine.begin(instruction, duration_s)
        except ValueError:
            return False
        self._end_goals()
        self.views.begin(self.trial, self.now_s)
        until_s = self.now_s + duration_s + self.period_s if self._clock_is_honest() else inf
        self.trial.goals.append(TrialGoal(epoch, self.now_s, until_s))
        return True

    def stop(self, kind: str) -> None:
        """Ask for a stop: 'cancel', 'estop' or 'deactivate'."""
        getattr(self.machine, kind)()
        self.trial.sent.append(self.machine.command(self.now_s))
        self.trial.stops.append(Stop(kind, self.now_s, self.now_s))
        self._end_goals()

    def reset_estop(self) -> None:
        """Release the emergency stop."""
        self.machine.reset_estop()

    def activate(self) -> None:
        """Allow goals."""
        self.machine.activate()

    @property
    def parameters(self) -> object:
        """The parameters of the node, by attribute."""
        return self.machine.parameters

    def change(self, **values) -> bool:
        """Set parameters; whether they were accepted."""
        try:
            self.machine.change(**values)
        except ValueError:
            return False
        self._promise()
        return True

    # --- running ---

    def run(self, recover_at_s: float, end_s: float) -> Trial:
        """Run the whole trial and return its record."""
        trial = self.trial
        self._promise()
        self.machine.activate()
        trial.active = [TimeSpan(0.0, end_s)]
        for stream in STREAMS:
            rate_hz = self.setup.camera_hz if stream in CAMERA_STREAMS else self.setup.state_hz
            self._capture(stream, 1.0 / rate_hz, self.rng.uniform(0.0, 1.0 / rate_hz))
        for fault in self.faults:
            self.at(fault.span.from_s, lambda fault=fault: fault.begin(self))
            self.at(fault.span.until_s, lambda fault=fault: fault.end(self))
        self.at(self.setup.goal_at_s, self.begin)
        self.at(recover_at_s, self._recover)
        self.machine.start_commands(0.0)
        self._poll()
        trial.recovers_from_s = recover_at_s
        self.run_until(end_s)
        return trial

    def run_until(self, until_s: float) -> None:
        """Let everything happen that is planned until then."""
        while self._events and self._events[0][0] <= until_s:
            at_s, _, what = heapq.heappop(self._events)
            self.now_s = max(self.now_s, at_s)
            what()
            if not self._thinking:
                self._think()
        self.now_s = max(self.now_s, until_s)

    def _think(self) -> None:
        self._thinking = True
        try:
            self.machine.work()
        finally:
            self._thinking = False

    def _capture(self, stream: str, period_s: float, at_s: float) -> None:
        self.at(at_s, lambda: self._send(stream, period_s))

    def _send(self, stream: str, period_s: float) -> None:
        self._capture(stream, period_s, self.now_s + period_s)
        self._frames[stream] += 1
        message = messages.healthy(
            stream, self._frames[stream], self.now_s, self.now_s + self.setup.transport_s,
            self.source_clock.ns(self.now_s), *self.robot.pose(self.now_s))
        leaving = [message]
        for fault in self.faults:
            if fault.alter is not None and fault.span.holds(self.now_s):
                leaving = [altered for one in leaving for altered in fault.alter(one)]
        for one in leaving:
            self.at(one.arrives_s, lambda one=one: self._arrive(one))

    def _arrive(self, message: Message) -> None:
        self.trial.samples.append(self.views.judge(Sample(
            message.stream, self.now_s, message.stamp_ns / SECOND, self.node_ns() / SECOND,
            message.fault, message.verdict)))
        self.machine.file(message.stream, message.raw)

    def _poll(self) -> None:
        sent = self.machine.poll(self.now_s)
        if sent is not None:
            self.trial.sent.append(sent)
            if not sent.hold:
                self.robot.obey(self.now_s, sent.translation_m, sent.rotation_rad)
        self.at(self.machine.next_poll_s(self.now_s), self._poll)

    def _recover(self) -> None:
        """Make all well again, as an operator would, and ask for a new goal."""
        self.policy.answer, self.policy.latency_s = lambda actions: actions, 0.02
        self.setup.motion = 'calm'
        ahead_s = (self.node_ns() - self.source_clock.ns(self.now_s)) / SECOND
        self.node_clock.set(self.now_s)
        self.source_clock.set(self.now_s, ahead_s)
        self.stop('cancel')
        self.reset_estop()
        self.activate()
        if not self.begin():
            self.trial.stuck.append('a goal was refused after everything was made well again')

    def _end_goals(self) -> None:
        self.trial.goals = [
            goal if goal.until_s < self.now_s else TrialGoal(goal.epoch, goal.from_s, self.now_s)
            for goal in self.trial.goals]

    def _promise(self) -> None:
        trial, now_s = self.trial, self.now_s
        trial.promises = [
            p.but(span=TimeSpan(p.span.from_s, min(p.span.until_s, now_s)))
            for p in trial.promises]
        promise: Promise = promise_of(
            self.machine.parameters, self.setup.chunk_length, TimeSpan(now_s))
        trial.promises.append(promise.but(**self._changes))

    def _clock_is_honest(self) -> bool:
        return not any(fault.kind.startswith('clock') for fault in self.faults)
