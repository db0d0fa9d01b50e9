"""A fixed share of the fault campaign on the core of the node; `vla bench faults` runs all of it.

A case runs again alone, as the message of a failure says:

    vla bench faults --layer core --case N --seed S
"""

import os

import pytest

from vla_policy_node.bench.faults.core import run_case, run_cases
from vla_policy_node.bench.faults.draw import draw, kind_of
from vla_policy_node.bench.faults.kinds import KINDS
from vla_policy_node.bench.faults.machine import Machine

SEED = 14
SHARE = 600


def test_a_share_of_the_core_campaign_is_never_unsafe_never_crashes_and_never_hangs():
    workers = min(2, len(os.sched_getaffinity(0)))
    verdicts = list(run_cases(range(SHARE), SEED, workers))
    assert {verdict.kind for verdict in verdicts} == set(KINDS)
    # A robot that stands still keeps every promise but one: most trials move before and after.
    assert sum(verdict.actions > 5 for verdict in verdicts) > 0.9 * len(verdicts)
    failed = [verdict for verdict in verdicts if verdict.findings]
    assert not failed, '\n'.join(
        f'{v.again}: {v.kind}: {v.findings[0].category} {v.findings[0].rule}: '
        f'{v.findings[0].text}' for v in failed)


@pytest.mark.parametrize('case', [0, 7, 23])
def test_a_case_runs_again_alone_exactly(case):
    first, again = (run_case(case, SEED) for _ in range(2))
    assert repr(first) == repr(again)
    assert first.kind == kind_of(case)
    assert first.actions > 0


def test_another_seed_draws_another_trial():
    assert draw(3, SEED)[0] != draw(3, SEED + 1)[0]


@pytest.mark.parametrize('stop', ['cancel', 'estop', 'deactivate'])
def test_a_node_that_ignores_a_stop_is_caught(monkeypatch, stop):
    """A check that cannot fail is none: the campaign on a broken node finds what is broken."""
    monkeypatch.setattr(Machine, stop, lambda machine: None)
    assert 'stopped' in rules_found('goal_stops')


def test_a_node_without_a_speed_limit_is_caught(monkeypatch):
    from vla_policy_node.control import end_effector
    from vla_policy_node.control.limits import CommandLimiter, LimitedDelta

    monkeypatch.setattr(end_effector, 'find_breach', lambda *_: '')
    monkeypatch.setattr(
        CommandLimiter, 'apply', lambda self, delta, *_, **__: LimitedDelta(delta, ()))
    assert 'limits' in rules_found('policy_wild')


def rules_found(kind, cases=400):
    """What is broken in the cases of one kind."""
    return {finding.rule for case in range(cases) if kind_of(case) == kind
            for finding in run_case(case, SEED).findings}
