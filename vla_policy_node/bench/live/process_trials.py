"""Trials with whole processes on the system clock; `scenarios` has what is done to them."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vla_policy_node.bench.faults.clocks import ShimmedClock, WallClock
from vla_policy_node.bench.faults.oracle import judge, stop_latencies
from vla_policy_node.bench.faults.oracle_findings import UNSAFE
from vla_policy_node.bench.faults.records import Stop, TimeSpan
from vla_policy_node.bench.faults.verdicts import CaseVerdict
from vla_policy_node.bench.faults.world import Clock
from vla_policy_node.bench.live.fault_trials import Live

CASES = 50
# A node has ended so long after the wish, also one that hangs (`ros2 launch` waits 5 s).
EXIT_S = 5.0
INFERENCE_TIMEOUT_S = 1.0

Scenario = Callable[['Processes', np.random.Generator], None]
SCENARIOS: dict[str, Scenario] = {}


def scenario(run: Scenario) -> Scenario:
    """Register what is done to a node that moves the robot."""
    SCENARIOS[run.__name__] = run
    return run


class Processes(Live):
    """A node on the system clock, which a shim may step, and processes around it."""

    def __init__(self, folder: Path):
        super().__init__(folder, {
            'use_sim_time': False, 'inference_timeout_s': INFERENCE_TIMEOUT_S})
        self._shim = ShimmedClock(folder)
        self.environment = dict(self._shim.environment)

    def _make_clocks(self) -> tuple[Clock, Clock]:
        return self._shim, WallClock()

    def run_case(self, case: int, seed: int) -> CaseVerdict:
        """Run and judge one scenario."""
        names = sorted(SCENARIOS)
        name = names[case % len(names)]
        rng = np.random.default_rng([seed, case])
        self.case, self.seed, self.may_end = case, seed, False
        if self.child.code is not None:
            self.start_node()
        self.prepare()
        if not self.trial.stuck:
            SCENARIOS[name](self, rng)
            if self.child.code is None and self.trial.recovers_from_s is None:
                self.recover()
        trial = self.close()
        verdict = CaseVerdict(
            'processes', case, seed, name, tuple(judge(trial)), stop_latencies(trial),
            sum(not sent.hold for sent in trial.sent))
        if any(finding.category != UNSAFE for finding in verdict.findings):
            self.start_node()
        return verdict

    def expect_exit(self, kind: str, end: Callable[[], None], codes: tuple = (0,)) -> None:
        """End the node and note whether it went as it should: hold, then exit, in time."""
        asked_s, self.may_end = self.now_s, True
        self.trial.active = [
            TimeSpan(s.from_s, min(s.until_s, asked_s)) for s in self.trial.active]
        self.trial.recovers_from_s = None
        end()
        took_s = self.child.wait(EXIT_S + 1.0)
        if took_s is None or took_s > EXIT_S:
            self.trial.stuck.append(
                f'{kind}: the node ended after {took_s} s, {EXIT_S:g} at most:\n'
                f'{self.child.log[-1500:]}')
            self.child.end()
        elif self.child.code not in codes:
            self.trial.ends.append(
                f'{kind}: exit code {self.child.code}:\n{self.child.log[-1500:]}')
        time.sleep(0.2)  # whatever is still on the wire
        self.trial.stops.append(Stop(kind, asked_s, self.now_s))
        if not (self.trial.sent and self.trial.sent[-1].hold):
            self.trial.stuck.append(f'{kind}: the last word of the node was no hold')

    def hears(self, reasons: set[int], within_s: float) -> bool:
        """Whether a hold for one of these reasons comes in time."""
        from_s = self.now_s
        return bool(self.receiver.wait(lambda: any(
            sent.hold and sent.reason in reasons and sent.at_s >= from_s
            for sent in reversed(self.trial.sent[-100:])), within_s))
