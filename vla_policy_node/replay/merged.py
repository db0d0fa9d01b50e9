"""Report over many bags: one folder with a report per bag and a summary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vla_policy_node.outputs.files import write_json, write_text
from vla_policy_node.outputs.folder import claim, clear, seal
from vla_policy_node.replay.html import document, number, table
from vla_policy_node.replay.settings import COMMAND, ReplaySettings

# The plan of the folder, so that an interrupted run can resume.
PLAN = 'plan.json'
REPORT, TIMES, PAGE = 'report.json', 'latency.json', 'report.html'


@dataclass(frozen=True)
class BagOutcome:
    """The outcome of one bag: its figures, or the sentence that says why there are none."""

    bag: str
    folder: str
    report: dict | None = None
    latency: dict | None = None
    passed: bool = False
    problem: str = ''

    @property
    def gate(self) -> list[dict]:
        """The requested limits and their outcomes."""
        return self.latency['gate'] if self.latency else []


def prepare(
    out: Path, jobs: Sequence[tuple[str, str]], settings: ReplaySettings
) -> dict[tuple[str, str], BagOutcome]:
    """Prepare the folder; return what an interrupted run of the same plan has already done.

    jobs: bag and the folder of its report. The results of another plan are removed. Raises
    OutputError.
    """
    plan = {'settings': asdict(settings), 'bags': {bag: _identity(Path(bag)) for bag, _ in jobs}}
    plan = json.loads(json.dumps(plan))
    if _read(out / PLAN) != plan:
        clear(out, COMMAND)
    # Not known to be complete until it is sealed; report.json is written last.
    claim(out, [PLAN, TIMES, PAGE, REPORT], COMMAND, [Path(folder).name for _, folder in jobs])
    (out / REPORT).unlink(missing_ok=True)
    write_json(out / PLAN, plan)
    done = {}
    for bag, folder in jobs:
        report, latency = (_read(Path(folder) / name) for name in (REPORT, TIMES))
        if report and latency and 'load' in latency:  # else of an earlier version
            passed = all(verdict['passed'] for verdict in latency['gate'])
            done[bag, folder] = BagOutcome(bag, folder, report, latency, passed)
    return done


def _identity(bag: Path) -> list:
    """Return a fingerprint of a bag: its files, their sizes and times."""
    files = sorted(bag.rglob('*')) if bag.is_dir() else [bag]  # which may not exist
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns]
            for file in files if file.is_file()]


def _read(path: Path) -> Mapping | None:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None


def write_merged(outcomes: Sequence[BagOutcome], folder: Path) -> None:
    """Write latency.json, report.html and report.json over the reports in the subfolders.

    Each file is written atomically, report.json last.
    """
    done = [outcome for outcome in outcomes if outcome.report]
    write_json(folder / TIMES, {Path(o.folder).name: o.latency for o in done})
    write_text(folder / PAGE, _page(outcomes, done))
    write_json(folder / REPORT, {
        'bags': {Path(o.folder).name: o.report for o in done},
        'failed': {Path(o.folder).name: o.problem for o in outcomes if o.problem},
        'mean': _means(done)})
    seal(folder, COMMAND)


def _figures(outcome: BagOutcome) -> dict[str, float | None]:
    """Return those figures of one bag that the summary table shows."""
    report: Any = outcome.report  # only what was replayed comes here
    compared = report['difference'] or report['a']['actions'] or {}
    figures = {}
    for kind in ('translation', 'rotation'):
        axes = [row['p95'] for row in compared.get('error', ()) if row['kind'] == kind]
        known = [value for value in axes if value is not None]
        figures[f'{kind}_error_p95'] = max(known) if known else None
    figures['gripper_agreement'] = compared.get('gripper', {}).get('agreement')
    for key in 'ab':
        if report[key]:
            figures[f'tokens_kept_{key}'] = report[key]['tokens_kept']['mean']
            figures[f'gflops_{key}'] = report[key]['gflops']['mean']
    return figures


def _means(done: Sequence[BagOutcome]) -> dict[str, float | None]:
    """Return the mean of each figure over bags, weighted by their number of inferences."""
    weights = np.array([outcome.report['a']['inferences'] for outcome in done], float)
    rows = [_figures(outcome) for outcome in done]
    result = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = np.array([np.nan if row.get(name) is None else row[name] for row in rows], float)
        known = np.isfinite(values)
        result[name] = (float(np.average(values[known], weights=weights[known]))
                        if known.any() else None)
    return result


def _page(outcomes: Sequence[BagOutcome], done: Sequence[BagOutcome]) -> str:
    failed = [outcome for outcome in outcomes if outcome.problem]
    parts = [f'<h1>{len(done)} of {len(outcomes)} bags</h1>']
    if failed:
        parts.append('<div class="card">' + ''.join(
            f'<p><span class="badge fail">failed</span> {escape(o.problem)}</p>' for o in failed)
            + '</div>')
    rows = [_row(Path(o.folder).name, _figures(o), o) for o in done]
    if len(done) > 1:
        rows.append(_row('mean, by inferences', _means(done), None))
    # Bags that were done before an interruption may be of an earlier day, and of other code.
    made = dict.fromkeys(f'{o.latency["date"][:10]}, {o.latency["code"]}' for o in done)
    caption = (f'Replayed on {"; ".join(made)}. Others: what else kept cores busy.'
               if made else '')
    parts.append('<div class="card">' + table(
        ['bag', 'gate', 'inferences', 'translation p95, mm', 'rotation p95, mrad', 'gripper, %',
         'tokens', 'GFLOP', 'p50, ms', 'others, cores'], rows,
        caption) + '</div>')
    parts.append('<p>' + ' '.join(
        f'<a href="{escape(name)}/report.html">{escape(name)}</a>'
        for name in (Path(o.folder).name for o in done)) + '</p>')
    return document('Replay of many bags', parts)


def _row(name: str, figures: dict, outcome: BagOutcome | None) -> list[str]:
    def both(key: str, digits: int) -> str:
        return ' → '.join(number(figures[f'{key}_{run}'], 1, digits) for run in 'ab'
                          if f'{key}_{run}' in figures)

    times, gate, inferences, others = '', '', '', ''
    if outcome is not None:
        inferences = str(outcome.report['a']['inferences'])
        times = ' → '.join(number(outcome.latency[run]['total']['p50'], digits=0) for run in 'ab'
                           if outcome.latency[run])
        others = number(outcome.latency['load']['busy_with_others_cores'], digits=1)
        gate = ('passed' if outcome.passed else 'failed') if outcome.gate else ''
    return [name, gate, inferences, number(figures['translation_error_p95'], 1e3),
            number(figures['rotation_error_p95'], 1e3),
            number(figures['gripper_agreement'], 100, 1), both('tokens_kept', 0),
            both('gflops', 2), times, others]
