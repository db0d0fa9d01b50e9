"""Trials on a running node over DDS, with its own /clock, one fault after the other."""

import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import rclpy
from builtin_interfaces.msg import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from vla_policy_node.bench.faults.draw import draw_fault
from vla_policy_node.bench.faults.kinds import KINDS, MISTIMED_M
from vla_policy_node.bench.faults.machine import promise_of
from vla_policy_node.bench.faults.oracle import judge, stop_latencies
from vla_policy_node.bench.faults.oracle_findings import UNSAFE
from vla_policy_node.bench.faults.records import (
    Sample,
    Sent,
    ServiceAnswer,
    Stop,
    TimeSpan,
    Trial,
    TrialGoal,
)
from vla_policy_node.bench.faults.starvation import SAMPLE_S, Starvation
from vla_policy_node.bench.faults.trial import INSTRUCTION, Fault, Views
from vla_policy_node.bench.faults.verdicts import CaseVerdict
from vla_policy_node.bench.faults.world import Clock
from vla_policy_node.bench.live.child import Child, start_victim
from vla_policy_node.bench.live.feeder import Feeder
from vla_policy_node.bench.live.receiver import Receiver
from vla_policy_node.bench.live.victim import (
    CHUNK_LENGTH,
    LATENCY_S,
    create_checkpoint,
    live_setup,
)
from vla_policy_node.loop.parameters import PolicyParameters

CASES = 450
PARAMETERS = {
    'autostart': True, 'warmup_inferences': 1, 'threads': 1, 'use_sim_time': True,
    'workspace_min_m': (-0.12, -0.12, 0.38), 'workspace_max_m': (0.12, 0.12, 0.62),
}
START_S = 60.0
ANSWER_S = 1.0
# How long an answer is waited for; whether it was late is the judge's, who knows how long the
# machine kept the node waiting.
PATIENCE_S = 20.0
RECOVERS_WITHIN_S = 3.0
# From the node to the receiver, and between this process's clocks.
RECEIVE_SLACK_S = 0.05
_PATIENCE_S = 30.0  # with a busy machine
# The first action of a trial may come from what was seen before it.
_MEMORY_S = 1.0


def live_kinds() -> list[str]:
    """Return the kinds that make sense on a running node, in turn."""
    return sorted(KINDS)


class Live:
    """A policy node as a process, and what a fault may do to it.

    The same interface for faults as `trial.Simulation`. Its methods are the campaign's own
    thread's, except where they say so.
    """

    def __init__(self, folder: Path, parameters: dict | None = None):
        self.folder = folder
        self.values = {**PARAMETERS, **(parameters or {})}
        self.simulated = self.values['use_sim_time']
        self.setup = live_setup()
        self.policy = SimpleNamespace(answer=None, latency_s=LATENCY_S)
        self.trial = Trial()
        self.views = Views()
        self._planned: list = []
        self._changes: dict = {}
        self._starts = 0
        self.may_end = False  # the trial ends the node
        self.environment: dict[str, str] = {}

    def __enter__(self) -> 'Live':
        """Start everything and wait until the node is active."""
        self._stack = ExitStack()
        with self._stack:
            rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
            self._stack.callback(rclpy.try_shutdown)
            self.zero_s = time.monotonic()
            self.starvation = self._stack.enter_context(Starvation(self.zero_s))
            self.receiver = Receiver(self.zero_s, self._on_sent)
            self.node = Node('robot')
            self.feeder = Feeder(self.node, self.setup, self.zero_s, *self._make_clocks(),
                                 self.simulated, self._on_sample)
            executor = SingleThreadedExecutor()
            for node in (self.receiver, self.node):
                executor.add_node(node)
                self._stack.callback(node.destroy_node)
            thread = threading.Thread(target=_spin, args=(executor,), daemon=True)
            thread.start()
            self._stack.callback(thread.join)
            self._stack.callback(executor.shutdown)  # before that
            self.feeder.start()
            self._stack.callback(self.feeder.stop)
            checkpoint = self.folder / 'checkpoint'
            if not checkpoint.exists():
                create_checkpoint(checkpoint)
            self.values['checkpoint'] = str(checkpoint)
            self._child: Child | None = None
            self._stack.callback(lambda: self._child and self._child.end())
            self.start_node()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        """End everything."""
        self._stack.close()

    def _make_clocks(self) -> tuple[Clock, Clock]:
        """Return the clock of the node and that of the stamps."""
        return Clock(self.setup.clock_start_s), Clock(self.setup.clock_start_s)

    # --- the node ---

    @property
    def child(self) -> Child:
        """The process of the node."""
        return self._child

    def start_node(self) -> None:
        """Start the node anew and wait until it is active. Raises RuntimeError if it is not."""
        if self._child is not None:
            self._child.end()
        self._starts += 1
        self.receiver.status = None
        # The next trial begins free, whatever was latched when the node died.
        values = {**self.values, 'state_directory': str(self.folder / f'state{self._starts}')}
        self._child = start_victim(
            self.folder / f'node{self._starts}.log', values, self.environment)
        self.starvation.watch(self._child.process.pid)
        self.receiver.wait(
            lambda: self._child.code is not None or (
                self.receiver.status is not None
                and self.receiver.status.lifecycle_state == 'active'), START_S)
        if self._child.code is not None or self.receiver.status is None:
            raise RuntimeError(f'The policy node did not start:\n{self._child.log[-2000:]}')

    # --- what faults use ---

    @property
    def now_s(self) -> float:
        """Time since the beginning (any thread)."""
        return time.monotonic() - self.zero_s

    @property
    def node_clock(self):
        """The clock of the node."""
        return self.feeder.node_clock

    @property
    def source_clock(self):
        """The clock of the stamps."""
        return self.feeder.source_clock

    @property
    def robot(self):
        """The robot."""
        return self.feeder.robot

    @property
    def parameters(self) -> PolicyParameters:
        """The parameters of the node."""
        return PolicyParameters(**{k: v for k, v in self.values.items() if k != 'use_sim_time'})

    def at(self, at_s: float, what) -> None:
        """Plan something."""
        self._planned.append((at_s, what))
        self._planned.sort(key=lambda planned: planned[0])

    def begin(self, instruction: str = INSTRUCTION, duration_s: float = 100.0) -> bool:
        """Ask for a goal; whether it was accepted."""
        asked_s = self.now_s
        seconds, nanoseconds = divmod(round(duration_s * 1e9), 1_000_000_000)
        response = self._call('start', lambda: self.receiver.call(
            'start', PATIENCE_S, instruction=instruction.replace('\x00', ' '),
            max_duration=Duration(sec=seconds, nanosec=nanoseconds)))
        if response is None or not response.success:
            return False
        self._end_goals(asked_s)
        self.views.begin(self.trial, asked_s)
        self.trial.goals.append(TrialGoal(response.epoch, asked_s))
        return True

    def stop(self, kind: str) -> None:
        """Ask for a stop."""
        asked_s = self.now_s
        if kind == 'deactivate':
            response = self._call(kind, lambda: self.receiver.transition(kind, 5.0), 5.0)
        else:
            response = self._call(kind, lambda: self.receiver.call(kind, PATIENCE_S))
        if response is not None and response.success:
            self.trial.stops.append(Stop(kind, asked_s, self.now_s))
        if response is not None:
            self._end_goals(self.now_s)
        if kind == 'deactivate' and response is not None:
            self.trial.active[-1] = TimeSpan(self.trial.active[-1].from_s, asked_s)

    def reset_estop(self) -> None:
        """Release the emergency stop."""
        self._call('reset_estop', lambda: self.receiver.call('reset_estop', PATIENCE_S))

    def activate(self) -> None:
        """Activate the node if it is not."""
        if self.trial.active and self.trial.active[-1].until_s != float('inf'):
            self._call('activate', lambda: self.receiver.transition('activate', 5.0), 5.0)
            self.trial.active.append(TimeSpan(self.now_s))

    def change(self, **values) -> bool:
        """Set parameters; whether all were accepted."""
        asked_s = self.now_s
        response = self._call('set_parameters', lambda: self.receiver.set_parameters(
            PATIENCE_S, **values), 2 * ANSWER_S)
        if response is None:
            return False
        accepted = {name: value for (name, value), result in zip(
            values.items(), response.results, strict=True) if result.successful}
        self.values.update(accepted)
        self._promise(asked_s, self.now_s)
        return len(accepted) == len(values)

    def _call(self, name: str, call, bound_s: float = ANSWER_S):
        asked_s = self.now_s
        response = call()
        self.trial.answers.append(ServiceAnswer(
            name, asked_s, None if response is None else self.now_s, bound_s))
        return response

    # --- trials ---

    def run_case(self, case: int, seed: int) -> CaseVerdict:
        """Run and judge one fault."""
        kinds = live_kinds()
        kind = kinds[case % len(kinds)]
        fault = draw_fault(kind, case, seed, self.prepare() + 0.1)
        if not self.trial.stuck:
            self.disturb(fault, {'kind': kind if kind.startswith('policy') else '',
                                  'case': case, 'seed': seed})
            self.recover()
        trial = self.close()
        verdict = CaseVerdict(
            'dds', case, seed, kind, tuple(judge(trial)), stop_latencies(trial),
            sum(not sent.hold for sent in trial.sent))
        if any(finding.category != UNSAFE for finding in verdict.findings):
            self.start_node()
        return verdict

    def prepare(self) -> float:
        """Make everything well, begin a goal, and return when the robot moves."""
        self.child.order(kind='', motion='calm')
        self._changes = {}
        self._first_sample = len(self.starvation.samples) - 1
        for clock in (self.node_clock, self.source_clock):
            clock.set(self.now_s)
        self.receiver.call('cancel', PATIENCE_S)
        self.feeder.new_robot(self.parameters.control_rate_hz)
        time.sleep(0.1)  # poses of where it is now
        self.trial = Trial(
            samples=[s for s in self.trial.samples if s.arrived_s > self.now_s - _MEMORY_S],
            start_m=self.setup.start_m, simulated=self.simulated, receive_slack_s=RECEIVE_SLACK_S,
            recovers_within_s=RECOVERS_WITHIN_S, active=[TimeSpan(self.now_s)])
        self._promise(self.now_s, self.now_s)
        self.begin()
        if not self.moves_after(self.now_s, RECOVERS_WITHIN_S):
            self.trial.stuck.append('nothing moved although all was well')
        return self.now_s

    def disturb(self, fault: Fault, order: dict) -> None:
        """Let a fault happen; order: for the victim meanwhile."""
        self._changes = fault.promise
        self.trial.promises = [p.but(**fault.promise) for p in self.trial.promises]
        self._planned.clear()

        def begin() -> None:
            self.child.order(**order)
            fault.begin(self)
            self.feeder.faults = [fault]

        def end() -> None:
            self.child.order(kind='')
            fault.end(self)

        self.at(fault.span.from_s, begin)
        self.at(fault.span.until_s, end)
        while self._planned:
            at_s, what = self._planned.pop(0)
            time.sleep(max(0.0, at_s - self.now_s))
            what()
        self.feeder.faults = []
        time.sleep(0.1 + fault.lingers_s)

    def recover(self) -> None:
        """Make all well again, as an operator would, and ask for a new goal."""
        self.child.order(kind='', motion='calm')
        self.reset_estop()
        self.activate()
        self.stop('cancel')
        deadline_s = self.now_s + RECOVERS_WITHIN_S
        while not self.begin() and self.now_s < deadline_s:
            time.sleep(0.1)
        self.trial.recovers_from_s = self.now_s
        self.moves_after(self.now_s, RECOVERS_WITHIN_S)
        time.sleep(0.1)

    def close(self) -> Trial:
        """Return the record of the trial that ends now. RuntimeError if nothing is fed."""
        if self.feeder.error is not None:
            raise RuntimeError('The feeder of the campaign has ended.') from self.feeder.error
        trial = self.trial
        self.trial = Trial(samples=list(trial.samples))
        if self.child.code is not None and not self.may_end:
            trial.ends.append(f'The node ended with code {self.child.code}:\n'
                              f'{self.child.log[-2000:]}')
            trial.recovers_from_s = None
        end_s = max((sent.at_s for sent in trial.sent), default=0.0)
        trial.active = [TimeSpan(s.from_s, min(s.until_s, end_s)) for s in trial.active]
        time.sleep(2 * SAMPLE_S)
        trial.starved = self.starvation.samples[self._first_sample:]
        return trial

    def moves_after(self, from_s: float, within_s: float) -> bool:
        """Whether an action comes in time, and in the time for which nobody could run."""
        starved_s = self.starvation.samples[-1][1]

        def moves() -> bool:
            return self.child.code is not None or any(
                not s.hold and s.at_s >= from_s for s in reversed(self.trial.sent[-50:]))

        deadline_s = self.now_s + within_s
        while not self.receiver.wait(moves, 0.5):
            waited_s = self.starvation.samples[-1][1] - starved_s
            if self.now_s > deadline_s + min(waited_s, _PATIENCE_S):
                return False
        return True

    def _promise(self, from_s: float, settled_s: float) -> None:
        """Both the old and the new bounds hold until the change was acknowledged."""
        trial = self.trial
        trial.promises = [
            p.but(span=TimeSpan(p.span.from_s, min(p.span.until_s, settled_s)))
            for p in trial.promises]
        trial.promises.append(promise_of(
            self.parameters, CHUNK_LENGTH, TimeSpan(from_s)).but(
                **{'workspace_slack_m': MISTIMED_M, **self._changes}))

    def _end_goals(self, at_s: float) -> None:
        self.trial.goals = [
            goal if goal.until_s < at_s else TrialGoal(goal.epoch, goal.from_s, at_s)
            for goal in self.trial.goals]

    def _on_sent(self, sent: Sent) -> None:
        self.feeder.obey(sent)
        self.trial.sent.append(sent)

    def _on_sample(self, sample: Sample) -> None:
        self.trial.samples.append(self.views.judge(sample))


def _spin(executor: SingleThreadedExecutor) -> None:
    with suppress(ExternalShutdownException):
        executor.spin()
