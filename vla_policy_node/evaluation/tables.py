"""Renders the document of an evaluation as terminal tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vla_policy_node.evaluation.grounding import PARTS


def tables(document: Mapping) -> list[Table]:
    """Return tables: success and cost, differences, success per task, failures, kept tokens."""
    made = [_totals(document), _by_task(document), _failures(document)]
    if document['paired']:
        made.insert(1, _differences(document['paired']))
    if any('grounding' in total for total in document['totals']):
        made.append(_grounding(document))
    return made


def _totals(document: Mapping) -> Table:
    control = '' if document['control'] == 'none' else f', control: {document["control"]}'
    untrained = '' if document['checkpoint']['trained'] else ', UNTRAINED'
    tokens = max(total['tokens_total'] for total in document['totals'])
    table = _table(
        f'{document["suite"]}, {document["layout"]} layouts{control}; '
        f'{document["checkpoint"]["name"]}{untrained}, {tokens} visual tokens; '
        f'{document["episodes"]} episodes each')
    table.add_column('method')
    for name in ('success', '95 %', 'tokens', 'GFLOP', 'ms', 'ms p95'):
        table.add_column(name, justify='right')
    for total in document['totals']:
        latency = total['latency_ms'].get('total', {})
        table.add_row(
            total['method'],
            _number(total['success_rate'], 100, '.1f') + ' %',
            f'{100 * total["wilson_low"]:.0f}-{100 * total["wilson_high"]:.0f}',
            _number(total['tokens'], 1, '.0f'),
            _number(total['flops'], 1e-9, '.2f'),
            _number(latency.get('p50'), 1, '.0f'),
            _number(latency.get('p95'), 1, '.0f'),
        )
    return table


def _differences(pairs: Sequence[Mapping]) -> Table:
    """Points that each method gains or loses; docs/evaluating_in_the_world.md has the columns."""
    table = _table(f'Minus {pairs[0]["first"]}, points of success')
    table.add_column('method')
    for name in ('+', '-', 'difference', '95 %', 'other tasks', 'verdict', 'p, Holm'):
        table.add_column(name, justify='right')
    for pair in pairs:
        table.add_row(
            pair['second'], str(pair['only_second']), str(pair['only_first']),
            _number(pair['difference'], 100, '+.1f'), _range(pair['interval']),
            _range(pair['interval_of_tasks']), pair['verdict'], f'{pair["p_holm"]:.2g}')
    return table


def _range(interval: Sequence[float]) -> str:
    return f'{100 * interval[0]:+.0f} to {100 * interval[1]:+.0f}'


def _by_task(document: Mapping) -> Table:
    table = _table('Success by task')
    table.add_column('')
    table.add_column('instruction')
    labels = [total['method'] for total in document['totals']]
    for label in labels:
        table.add_column(label, justify='right')
    rows = {(row['task_id'], row['method']): row for row in document['rows']}
    for task in dict.fromkeys(row['task_id'] for row in document['rows']):
        cells = [rows.get((task, label)) for label in labels]
        instruction = next(row['instruction'] for row in cells if row)
        table.add_row(str(task), instruction, *(
            f'{row["successes"]}/{row["episodes"]}' if row else '' for row in cells))
    return table


def _failures(document: Mapping) -> Table:
    table = _table('Failures')
    table.add_column('method')
    names = dict.fromkeys(name for total in document['totals'] for name in total['failures'])
    for name in names:
        table.add_column(name, justify='right')
    for total in document['totals']:
        table.add_row(total['method'], *(str(total['failures'].get(name, 0)) for name in names))
    return table


def _grounding(document: Mapping) -> Table:
    table = _table('Share of the kept tokens (of all tokens) that lies on')
    table.add_column('method')
    for part in PARTS:
        table.add_column(part, justify='right')
    for total in document['totals']:
        if 'grounding' in total:
            parts = [total['grounding'][part] for part in PARTS]
            table.add_row(total['method'], *(
                f'{part["kept"]:.1%} ({part["image"]:.1%})' for part in parts))
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify='left', box=SIMPLE_HEAD, pad_edge=False)


def _number(value: float | None, factor: float, form: str) -> str:
    return '' if value is None else format(value * factor, form)
