"""`vla bench headline`: what a release says of itself, on layouts that nothing was chosen on.

The test layouts are run once for each release: a second look, with other checkpoints, would choose
the one that is best on them. A row may be trained several times, with other seeds; then the table
says how far the results lie apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.console import Console

from vla_policy_node.bench.origins import origin_of
from vla_policy_node.checkpoints.reading import read_json
from vla_policy_node.common.terminal import fitted
from vla_policy_node.evaluation.contenders import Contender, parse_contender
from vla_policy_node.evaluation.evaluate import make_plan
from vla_policy_node.evaluation.plan import Plan
from vla_policy_node.evaluation.results import Results
from vla_policy_node.evaluation.run_plan import run_plan
from vla_policy_node.evaluation.statistics import clustered_interval
from vla_policy_node.evaluation.summary import layouts_digest, summarise
from vla_policy_node.evaluation.tables import tables
from vla_policy_node.outputs.files import write_text
from vla_policy_node.outputs.folder import claim, seal

COMMAND = 'vla bench headline'  # whose files they are
NAMES = ('headline.json', 'headline.md')
SHIPPED = ('dense=dense@checkpoints/libero_object_dense',
           'LightVLA=lightvla@checkpoints/libero_object')


@dataclass(frozen=True)
class HeadlineRow:
    """One row of the table: a method, trained once or several times.

    contenders: one for each training seed; their labels are unique in the table.
    """

    label: str
    contenders: tuple[Contender, ...]


def parse_rows(texts: Sequence[str]) -> list[HeadlineRow]:
    """Read 'LABEL=METHOD@CHECKPOINT'; the same label again is another training seed of a row.

    Raises ValueError with one sentence for what is not written so, and without a checkpoint.
    """
    rows: dict[str, list[Contender]] = {}
    for text in texts:
        label, equals, rest = text.partition('=')
        if not (equals and label.strip() and '@' in rest):
            raise ValueError(
                f"--row takes 'LABEL=METHOD@CHECKPOINT', e.g. 'LightVLA=lightvla@runs/lightvla/"
                f"checkpoint', not '{text}'.")
        rows.setdefault(label.strip(), []).append(parse_contender(rest))
    return [HeadlineRow(label, tuple(
        replace(contender, label=label if len(found) == 1 else f'{label} ({number})')
        for number, contender in enumerate(found, 1))) for label, found in rows.items()]


def report(
    rows: Sequence[HeadlineRow], suite: str, episodes: int, workers: int, out: Path,
    console: Console,
) -> dict:
    """Run the rows on the test layouts, write headline.json and headline.md, return the document.

    Resumes an interrupted run. Raises ValueError with one sentence for an impossible request, and
    if the release has been reported with other checkpoints.
    """
    contenders = tuple(contender for row in rows for contender in row.contenders)
    origins = [{**origin_of(contender), 'ran': _ran(contender)} for contender in contenders]
    release = version('vla_policy_node')
    claim(out, NAMES, COMMAND)
    file, table = (out / name for name in NAMES)
    _refuse_a_second_look(file, release, origins, suite, episodes)
    plan = make_plan(
        arguments={'checkpoint': str(contenders[0].checkpoint)}, suite=suite, episodes=episodes,
        changes={'execution_mode': 'sync'}, split='test')
    plan = replace(plan, contenders=contenders)
    results = Results(file, plan.identity(), COMMAND)
    run_plan(plan, results, workers, console)
    episodes_of = results.rows(plan.keys)
    document = {
        'release': release,
        'layouts_sha256': layouts_digest(episodes_of),
        'episodes_per_task': episodes,
        **summarise(plan, episodes_of, workers),
        'checkpoints': origins,
        'seeds': _seeds(rows, plan, results),
    }
    for part in tables(document):
        console.print(fitted(part, 1 if part.columns[0].header == '' else 0))
    write_text(file, json.dumps(document, indent=1, allow_nan=False) + '\n')
    write_text(table, markdown(document))
    results.discard_side_file()
    seal(out, COMMAND, NAMES)
    console.print(f'Wrote {file} and {table}.', markup=False, soft_wrap=True)
    return document


def _ran(contender: Contender) -> dict:
    """Return which methods a row ran, with the settings that were given."""
    return {name: dict(contender.settings.get(name, {})) for name in contender.methods}


def _refuse_a_second_look(
    file: Path, release: str, origins: Sequence[Mapping], suite: str, episodes: int
) -> None:
    """Raise ValueError if the release has been reported otherwise, with more rows or fewer."""
    if not file.is_file():
        return
    found = read_json(file)
    before = [(origin['sha256'], origin.get('ran')) for origin in found['checkpoints']]
    now = [(origin['sha256'], origin['ran']) for origin in origins]
    layouts = found['suite'], found.get('episodes_per_task')
    if found['release'] == release and (before != now or layouts != (suite, episodes)):
        raise ValueError(
            f"'{file}' has the test results of release {release}, with other checkpoints, methods "
            'or episodes; choose with `vla eval` on development layouts, and report what is '
            'chosen in the next release.')


def _seeds(rows: Sequence[HeadlineRow], plan: Plan, results: Results) -> list[dict]:
    """Return mean and spread of the rows that were trained several times, and their differences.

    against: one entry for each row before; the first is also in `difference` and
    `interval_of_tasks`. Seeds are compared one by one, the second with the second.
    """
    def outcomes(row: HeadlineRow) -> list[dict[tuple[int, int], bool]]:
        return [{(one['task_id'], one['episode']): one['success'] for one in results.rows(
            {key for key in plan.keys if key[0] == contender.label})}
            for contender in row.contenders]

    of_rows = [outcomes(row) for row in rows]
    found = []
    for place, (row, own) in enumerate(zip(rows, of_rows, strict=True)):
        if len(own) == 1:
            continue
        rates = [float(np.mean([*outcome.values()])) for outcome in own]
        against = [{'row': before.label, **_difference(base, own)}
                   for before, base in zip(rows[:place], of_rows, strict=False)]
        entry = {'row': row.label, 'labels': [c.label for c in row.contenders],
                 'mean': float(np.mean(rates)), 'lowest': min(rates), 'highest': max(rates),
                 'against': against}
        if against:
            entry |= {name: against[0][name] for name in ('difference', 'interval_of_tasks')}
        found.append(entry)
    return found


def _difference(
    first: Sequence[Mapping[tuple[int, int], bool]], own: Sequence[Mapping[tuple[int, int], bool]]
) -> dict:
    pairs = [(first[index % len(first)], outcome) for index, outcome in enumerate(own)]
    interval = clustered_interval(*(
        {(task, (index, episode)): success for index, pair in enumerate(pairs)
         for (task, episode), success in pair[side].items()} for side in (0, 1)))
    return {
        'difference': float(np.mean([
            one[key] - float(base[key]) for base, one in pairs for key in base])),
        'interval_of_tasks': list(interval)}


def markdown(document: Mapping) -> str:
    """Return the document as the tables of docs/results.md."""
    first = document['totals'][0]['method']
    pairs = {pair['second']: pair for pair in document['paired']}
    lines = [
        f'Release {document["release"]}, {document["suite"]}, {document["episodes"]} test '
        f'layouts (`{document["layouts_sha256"][:12]}`), '
        f'processor {document["machine"]["processor"]}, {document["machine"]["date"]}, '
        f'{document["machine"]["code"]}.', '',
        f'| | success (95 %) | minus {first}, points (95 %) | for other tasks | verdict '
        '| p (Holm) | tokens | GFLOP | checkpoint |', '|---' * 9 + '|']
    for total, origin in zip(document['totals'], document['checkpoints'], strict=True):
        pair = pairs.get(total['method'])
        compared = [
            f'{100 * pair["difference"]:+.1f} ({_range(pair["interval"])})',
            _range(pair['interval_of_tasks']), pair['verdict'], f'{pair["p_holm"]:.2g}',
        ] if pair else [''] * 4
        lines.append('| ' + ' | '.join([
            total['method'],
            f'{100 * total["success_rate"]:.1f} % ({100 * total["wilson_low"]:.0f}-'
            f'{100 * total["wilson_high"]:.0f})',
            *compared, f'{total["tokens"]:.0f}', f'{total["flops"] / 1e9:.2f}',
            f'`{origin["sha256"][:12]}`']) + ' |')
    if document['seeds']:
        lines += ['', '| trained several times | mean | lowest to highest | minus '
                  f'{first}, points (for other tasks) |', '|---' * 4 + '|']
    for row in document['seeds']:
        difference = _points(row) if 'difference' in row else ''
        lines.append(f'| {row["row"]}, {len(row["labels"])} seeds | {100 * row["mean"]:.1f} % | '
                     f'{100 * row["lowest"]:.1f} to {100 * row["highest"]:.1f} | {difference} |')
    others = [(row['row'], pair) for row in document['seeds'] for pair in row['against'][1:]]
    if others:
        lines += ['', '| other differences, of all seeds | points (for other tasks) |',
                  '|---' * 2 + '|']
    lines += [f'| {label} minus {pair["row"]} | {_points(pair)} |' for label, pair in others]
    return '\n'.join([*lines, *_by_task(document), *_failures(document)]) + '\n'


def _points(difference: Mapping) -> str:
    interval = _range(difference['interval_of_tasks'])
    return f'{100 * difference["difference"]:+.1f} ({interval})'


def _by_task(document: Mapping) -> list[str]:
    labels = [total['method'] for total in document['totals']]
    rows = {(row['task_id'], row['method']): row for row in document['rows']}
    lines = ['', '| successes by task | ' + ' | '.join(labels) + ' |',
             '|---' * (1 + len(labels)) + '|']
    for task in dict.fromkeys(row['task_id'] for row in document['rows']):
        cells = [f'{rows[task, label]["successes"]}/{rows[task, label]["episodes"]}'
                 for label in labels]
        lines.append(f'| {rows[task, labels[0]]["instruction"]} | ' + ' | '.join(cells) + ' |')
    return lines


def _failures(document: Mapping) -> list[str]:
    names = dict.fromkeys(name for total in document['totals'] for name in total['failures'])
    lines = ['', '| failures | ' + ' | '.join(names) + ' |', '|---' * (1 + len(names)) + '|']
    for total in document['totals']:
        lines.append(f'| {total["method"]} | ' + ' | '.join(
            str(total['failures'].get(name, 0)) for name in names) + ' |')
    return lines


def _range(interval: Sequence[float]) -> str:
    return f'{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}'
