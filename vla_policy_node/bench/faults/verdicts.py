"""Collects the campaign's verdicts into a table and a file."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vla_policy_node.bench.faults.oracle import StopLatency
from vla_policy_node.bench.faults.oracle_findings import CRASH, HANG, UNSAFE, BrokenPromise
from vla_policy_node.common.code_version import date_and_code
from vla_policy_node.control.latency import percentiles

FILES = ('faults.json', 'faults.md')
CATEGORIES = (UNSAFE, CRASH, HANG)


@dataclass(frozen=True)
class CaseVerdict:
    """What came of one case."""

    layer: str
    case: int
    seed: int
    kind: str
    findings: tuple[BrokenPromise, ...]
    stops: tuple[StopLatency, ...] = ()
    actions: int = 0

    @property
    def again(self) -> str:
        """The command that runs this case alone."""
        return f'vla bench faults --layer {self.layer} --case {self.case} --seed {self.seed}'

    @property
    def only_late(self) -> bool:
        """Whether all that was broken is that something was said too late.

        A machine that stands still for a moment looks like that, and so does a datagram that was
        lost, which the middleware sends again after 3 s. Both are seldom. Stops have bounds of
        their own, see `slow_stops`.
        """
        return bool(self.findings) and all(
            finding.rule in ('gap', 'late_answer') for finding in self.findings)

    @property
    def text(self) -> str:
        """One line: what was broken first, and how to see it again."""
        first = self.findings[0]
        return f'{self.again}  # {self.kind}: {first.category}, {first.rule}: {first.text}'


def slow_stops(verdicts: Iterable[CaseVerdict], bounds_s: Mapping[str, float]) -> list[str]:
    """Return a sentence for every kind of stop that took longer than its bound, or has none."""
    sentences = []
    for kind, stops in _stops(verdicts).items():
        slowest = max(stops, key=lambda stop: stop.latency_s - stop.excused_s)
        bound_s = bounds_s.get(kind)
        if bound_s is None:
            sentences.append(f'{kind} has no bound in stop_bounds.py.')
        elif slowest.latency_s - slowest.excused_s > bound_s:
            sentences.append(f'{kind} took {slowest.latency_s:.3f} s, {bound_s:g} s at most.')
    return sentences


def _stops(verdicts: Iterable[CaseVerdict]) -> dict[str, list[StopLatency]]:
    """Return the stops of nodes that run; in the core a stop is its hold."""
    by_kind = defaultdict(list)
    for verdict in verdicts:
        for stop in verdict.stops:
            if verdict.layer != 'core':
                by_kind[stop.kind].append(stop)
    return dict(sorted(by_kind.items()))


def _milliseconds(stops: Iterable[StopLatency]) -> list[float]:
    return [1e3 * stop.latency_s for stop in stops]


def markdown(verdicts: Sequence[CaseVerdict], bounds_s: Mapping[str, float]) -> str:
    """Return the tables of docs/reliability.md."""
    rows = defaultdict(lambda: dict.fromkeys(('cases', *CATEGORIES), 0))
    for verdict in verdicts:
        row = rows[verdict.layer, verdict.kind]
        row['cases'] += 1
        for category in {finding.category for finding in verdict.findings}:
            row[category] += 1
    lines = ['| layer | fault | cases | unsafe | crash | hang |', '|---|---|--:|--:|--:|--:|']
    for (layer, kind), row in rows.items():
        lines.append(f'| {layer} | {kind} | ' + ' | '.join(map(str, row.values())) + ' |')
    total = {name: sum(row[name] for row in rows.values()) for name in ('cases', *CATEGORIES)}
    lines.append('| **all** | | ' + ' | '.join(f'**{n}**' for n in total.values()) + ' |')
    lines += ['', '| stop | times | p50 [ms] | p95 [ms] | longest [ms] | bound [ms] |',
              '|---|--:|--:|--:|--:|--:|']
    for kind, stops in _stops(verdicts).items():
        spread, longest = percentiles(_milliseconds(stops)), max(_milliseconds(stops))
        bound_s = bounds_s.get(kind, math.nan)
        lines.append(f'| {kind} | {len(stops)} | {spread["p50"]:.1f} | {spread["p95"]:.1f} '
                     f'| {longest:.1f} | {1e3 * bound_s:.0f} |')
    return '\n'.join(lines) + '\n'


def write(verdicts: Sequence[CaseVerdict], bounds_s: Mapping[str, float], out: Path) -> None:
    """Write faults.json, with every finding, and faults.md."""
    made = date_and_code()
    document = {
        **made,
        'cases': len(verdicts),
        **{category: sum(any(f.category == category for f in v.findings) for v in verdicts)
           for category in CATEGORIES},
        'stop_latency_ms': {
            kind: percentiles(_milliseconds(stops)) | {'max': max(_milliseconds(stops))}
            for kind, stops in _stops(verdicts).items()},
        'failed': [{**asdict(verdict), 'again': verdict.again}
                   for verdict in verdicts if verdict.findings],
    }
    (out / FILES[0]).write_text(json.dumps(document, indent=1) + '\n')
    (out / FILES[1]).write_text(f'{", ".join(made.values())}\n\n{markdown(verdicts, bounds_s)}')
