"""What the campaign writes: the gate, the table, and the command that runs a failure again."""

import json
import math

import pytest

from vla_policy_node.bench.faults import verdicts
from vla_policy_node.bench.faults.oracle import StopLatency
from vla_policy_node.bench.faults.oracle_findings import CRASH, UNSAFE, BrokenPromise
from vla_policy_node.bench.faults.verdicts import CaseVerdict, slow_stops

BOUNDS_S = {'estop': 0.1}
GOOD = CaseVerdict('dds', 3, 7, 'lost_stream', (), (StopLatency('estop', 0.05),), 9)
BAD = CaseVerdict('core', 4, 7, 'pose_frozen', (
    BrokenPromise(UNSAFE, 'workspace', 1.0, 'outside'),
    BrokenPromise(UNSAFE, 'limits', 1.1, 'too fast'),
    BrokenPromise(CRASH, 'ended', math.nan, 'exit code 139')))


def stopped_after(latency_s, excused_s=0.0, kind='estop'):
    return CaseVerdict('dds', 0, 7, 'goal_stops', (), (StopLatency(kind, latency_s, excused_s),))


@pytest.mark.parametrize(('verdict', 'slow'), [
    (stopped_after(0.1), False), (stopped_after(0.11), True), (stopped_after(math.inf), True),
    (stopped_after(0.3, excused_s=0.25), False), (stopped_after(0.3, excused_s=0.1), True),
    (stopped_after(0.01, kind='SIGUSR1'), True)])
def test_a_stop_beyond_its_bound_or_without_one_fails_the_gate(verdict, slow):
    assert bool(slow_stops([GOOD, verdict], BOUNDS_S)) == slow


@pytest.mark.parametrize(('rules', 'late'), [
    ((), False), (('gap',), True), (('gap', 'late_answer'), True), (('gap', 'workspace'), False),
    (('no_answer',), False), (('stopped',), False)])
def test_only_a_verdict_of_nothing_but_lateness_may_be_the_machine_s(rules, late):
    findings = tuple(BrokenPromise(UNSAFE, rule, 1.0, 'broken') for rule in rules)
    assert CaseVerdict('dds', 3, 7, 'lost_stream', findings).only_late == late


def test_a_failure_names_the_command_that_runs_it_again():
    assert BAD.text.startswith('vla bench faults --layer core --case 4 --seed 7')


def test_the_files_count_cases_and_keep_every_finding(tmp_path):
    verdicts.write([GOOD, BAD], BOUNDS_S, tmp_path)
    document = json.loads((tmp_path / 'faults.json').read_text())
    assert (document['cases'], document['unsafe'], document['crash'], document['hang']) == (
        2, 1, 1, 0)
    (failed,) = document['failed']
    assert [finding['rule'] for finding in failed['findings']] == ['workspace', 'limits', 'ended']
    table = (tmp_path / 'faults.md').read_text()
    assert table.startswith(f'{document["date"]}, {document["code"]}\n\n| layer |')
    assert '| core | pose_frozen | 1 | 1 | 1 | 0 |' in table
    assert '| dds | lost_stream | 1 | 0 | 0 | 0 |' in table
    assert '| estop | 1 | 50.0 | 50.0 | 50.0 | 100 |' in table
