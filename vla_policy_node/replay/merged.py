"""One report over many bags."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla_policy_node.replay.folder import write_json
from vla_policy_node.replay.page import document, number, table

if TYPE_CHECKING:
    from vla_policy_node.replay.many import Outcome


def write_merged(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Write report.json, latency.json and report.html over the reports in the folder's folders."""
    done = [outcome for outcome in outcomes if outcome.report]
    write_json(folder / 'report.json', {
        'bags': {Path(o.folder).name: o.report for o in done},
        'failed': {Path(o.folder).name: o.problem for o in outcomes if o.problem},
        'mean': _means(done)})
    write_json(folder / 'latency.json', {Path(o.folder).name: o.latency for o in done})
    (folder / 'report.html').write_text(_page(outcomes, done), encoding='utf-8')


def _figures(outcome: Outcome) -> dict[str, float | None]:
    """Return the figures of one bag that the table over all of them shows."""
    report = outcome.report
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


def _means(done: Sequence[Outcome]) -> dict[str, float | None]:
    """Return the mean of each figure over bags, each bag counting as much as its inferences."""
    weights = np.array([outcome.report['a']['inferences'] for outcome in done], float)
    rows = [_figures(outcome) for outcome in done]
    result = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = np.array([np.nan if row.get(name) is None else row[name] for row in rows], float)
        known = np.isfinite(values)
        result[name] = (float(np.average(values[known], weights=weights[known]))
                        if known.any() else None)
    return result


def _page(outcomes: Sequence[Outcome], done: Sequence[Outcome]) -> str:
    failed = [outcome for outcome in outcomes if outcome.problem]
    parts = [f'<h1>{len(done)} of {len(outcomes)} bags</h1>']
    if failed:
        parts.append('<div class="card">' + ''.join(
            f'<p><span class="badge fail">failed</span> {escape(o.problem)}</p>' for o in failed)
            + '</div>')
    rows = [_row(Path(o.folder).name, _figures(o), o) for o in done]
    if len(done) > 1:
        rows.append(_row('mean, by inferences', _means(done), None))
    parts.append('<div class="card">' + table(
        ['bag', 'inferences', 'translation p95, mm', 'rotation p95, mrad', 'gripper, %',
         'tokens', 'GFLOP', 'p50, ms', 'gate'], rows) + '</div>')
    parts.append('<p>' + ' '.join(
        f'<a href="{escape(name)}/report.html">{escape(name)}</a>'
        for name in (Path(o.folder).name for o in done)) + '</p>')
    return document('Replay of many bags', parts)


def _row(name: str, figures: dict, outcome: Outcome | None) -> list[str]:
    def both(key: str, digits: int) -> str:
        return ' → '.join(number(figures[f'{key}_{run}'], 1, digits) for run in 'ab'
                          if f'{key}_{run}' in figures)

    times, gate, inferences = '', '', ''
    if outcome is not None:
        inferences = str(outcome.report['a']['inferences'])
        times = ' → '.join(number(outcome.latency[run]['total']['p50'], digits=0) for run in 'ab'
                           if outcome.latency[run])
        gate = ('passed' if outcome.passed else 'failed') if outcome.verdicts else ''
    return [name, inferences, number(figures['translation_error_p95'], 1e3),
            number(figures['rotation_error_p95'], 1e3),
            number(figures['gripper_agreement'], 100, 1), both('tokens_kept', 0),
            both('gflops', 2), times, gate]
