"""Runs core trials, singly or by the thousand in several processes."""

import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vla_policy_node.bench.faults.draw import RECOVERS_WITHIN_S, draw, kind_of
from vla_policy_node.bench.faults.oracle import judge, stop_latencies
from vla_policy_node.bench.faults.trial import Simulation
from vla_policy_node.bench.faults.verdicts import CaseVerdict
from vla_policy_node.common.worker_pool import WorkerEndedError, worker_pool

CASES = 9_500
# A trial takes milliseconds; one that takes so long (s) hangs.
_STUCK_S = 20.0
_BATCH = 50


def run_case(case: int, seed: int) -> CaseVerdict:
    """Run and judge one core case; the same one always."""
    setup, faults, rng, recover_at_s = draw(case, seed)
    simulation = Simulation(setup, faults, rng)
    trial = simulation.trial
    trial.recovers_within_s = RECOVERS_WITHIN_S
    try:
        with _deadline():
            simulation.run(recover_at_s, recover_at_s + RECOVERS_WITHIN_S)
    except TimeoutError:
        trial.stuck.append(traceback.format_exc(limit=-4))
    except BaseException as error:  # SystemExit of a policy as well: it would end the worker
        if isinstance(error, (KeyboardInterrupt, WorkerEndedError)):
            raise
        trial.ends.append(traceback.format_exc(limit=-4))
    findings = [] if trial.ends or trial.stuck else judge(trial)
    if trial.ends or trial.stuck:
        trial.recovers_from_s, trial.active = None, []
        findings = judge(trial)
    return CaseVerdict(
        'core', case, seed, kind_of(case), tuple(findings), stop_latencies(trial),
        sum(not sent.hold for sent in trial.sent))


def run_cases(cases: Sequence[int], seed: int, workers: int) -> Iterator[CaseVerdict]:
    """Yield the verdicts of many core cases in order."""
    if workers == 1:
        yield from (run_case(case, seed) for case in cases)
        return
    batches = [cases[i:i + _BATCH] for i in range(0, len(cases), _BATCH)]
    with worker_pool(min(workers, len(batches)), 'fork') as submit:
        for future in [submit(_run_batch, batch, seed) for batch in batches]:
            yield from future.result()


def _run_batch(cases: Sequence[int], seed: int) -> list[CaseVerdict]:
    return [run_case(case, seed) for case in cases]


@contextmanager
def _deadline() -> Iterator[None]:
    def stuck(*_) -> None:
        raise TimeoutError(f'not done after {_STUCK_S:g} s')

    before = signal.signal(signal.SIGALRM, stuck)
    signal.setitimer(signal.ITIMER_REAL, _STUCK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
