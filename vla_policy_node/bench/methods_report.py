"""Renders the table of methods as Markdown, JSON and a plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vla_policy_node.bench.methods_plot import draw_methods
from vla_policy_node.bench.methods_published import NOTES as PUBLISHED_NOTES
from vla_policy_node.evaluation.progress import FAILURES

NAMES = ('methods.json', 'methods.md', 'methods.png')

NOTES = '''\
The columns of the tables:

- **success**: closed loop, the same held-out layouts for all, 95 % interval (Wilson).
- **won, lost**: episodes that only the method, and only dense, succeeded in.
- **minus dense**: difference of the success rates in points, its 95 % interval for other
  layouts (Newcombe), and **other tasks**, for other tasks (bootstrap over whole tasks).
- **verdict**: what the first interval allows to say of this row alone; `undecided` is not
  `equal`. **p, Holm**: McNemar's exact p, corrected for all rows of the table: of so many
  rows, some differ by chance.
- **tokens**: visual tokens that all layers computed anew, mean. **layers**: of the language
  model, that ran. **reused**: steps that were answered without running the network.
- **GFLOP**: 2 per multiply-accumulate, of what really ran, choosing included; mean.
- **ms**: one inference, median and 95th percentile. **inside**: of it, time in the method itself,
  without blocks of the action head that it runs or reuses. **wall**: median of the time that
  passed, which other work on the machine makes longer.
- **change**: of the action on the same pictures, mean and largest over chunk and dimensions, in
  units of the training data. **flips**: gripper commands that differ.
'''

_CLOCKS = {
    'processor': 'Times are processor time of one thread',
    'wall': 'Times are wall time, which other work on the machine makes longer',
}
_SPLITS = {
    'development': 'development layouts, to choose on: whatever is chosen because it is best here '
                   'looks better here than it is',
    'test': 'test layouts, on which nothing was chosen',
}
FEW = 50  # episodes of a row: with fewer, even a loss of 15 points stays undecided

_PICTURE = '''\
![Time of one inference and success of every method, by what it saves](methods.png)

A filled dot differs from dense (McNemar, corrected by Holm for all rows, 5 %), an open
one does not, on so many episodes; the dotted line is dense.
'''


def write_report(document: Mapping, out: Path) -> list[Path]:
    """Write methods.json, methods.md and methods.png into `out`."""
    paths = [out / name for name in NAMES]
    rows = flat_rows(document)
    paths[0].write_text(json.dumps(rows, indent=1, allow_nan=False) + '\n', encoding='utf-8')
    paths[1].write_text(markdown(document), encoding='utf-8')
    draw_methods([row for row in rows if row['latency_ms'] is not None], paths[2])
    return paths


def flat_rows(document: Mapping) -> list[dict]:
    """Return all rows in one list, for tools that need nothing else.

    The rest is the 'context' of each model's first row.
    """
    shared = {key: value for key, value in document.items() if key not in ('models', 'published')}
    rows = []
    for model in document['models']:
        first, *others = model['rows']
        context = {**shared, **{key: value for key, value in model.items() if key != 'rows'}}
        rows += [{**first, 'context': context}, *others]
    return [*rows, *document['published']]


def markdown(document: Mapping) -> str:
    """Return the tables, what was measured with what, and what the columns mean."""
    machine = document['machine']
    parts = [
        f'# Acceleration methods on the same episodes\n\n'
        f'Made by `{document["command"]}`. {document["suite"]}, {document["layout"]} layouts, '
        f'tasks {", ".join(map(str, document["tasks"]))}; {_SPLITS[document["split"]]}. '
        f'{machine["processor"]}, {machine["threads_per_worker"]} thread(s), '
        f'torch {machine["versions"]["torch"]}, {machine["date"]}, {machine["code"]}. '
        f'{_CLOCKS[document["clock"]]}.\n',
        _PICTURE if any(row['episodes'] for row in document['models'][0]['rows']) else
        '![Time of one inference and change of the actions](methods.png)\n',
        NOTES,
    ]
    for model in document['models']:
        parts += _model_sections(model)
    if document['published']:
        parts.append(f'## Published sizes\n\n{PUBLISHED_NOTES}')
    for name in dict.fromkeys(row['model'] for row in document['published']):
        rows = [row for row in document['published'] if row['model'] == name]
        parts += [f'### {name}\n', _table(_COUNTED, rows)]
    return '\n'.join(parts)


def _model_sections(model: Mapping) -> list[str]:
    checkpoint, rows = model['checkpoint'], model['rows']
    untrained = '' if checkpoint['trained'] else ' **This checkpoint is untrained.**'
    parts = [
        f'## `{checkpoint["name"]}`\n\n{checkpoint["architecture"]} '
        f'({checkpoint["sha256"][:12]}).{untrained}\n']
    if rows[0]['episodes']:
        parts += ['### Success\n', f'{_episodes(model)}\n', _table(_SUCCESS, rows)]
    parts += [
        '### Cost\n', f'On {rows[0]["frames"]} frames. {said_load(model["load"])}.\n',
        _table(_COST, rows)]
    if rows[0]['episodes']:
        parts += ['### Failures\n', _table(_failures(rows), rows),
                  '### Successes by task\n', _table(_by_task(rows), rows)]
    parts += [
        '### Latency by stage\n\nMedian / 95th percentile, ms. `reuse` is the decision whether '
        'to answer without the network.\n',
        _table(_stages(rows), rows)]
    if model['refused']:
        parts.append('### Not run\n\n' + ''.join(
            f'- `{label}`: {why}\n' for label, why in model['refused'].items()))
    return parts


def said_load(load: Mapping) -> str:
    """Say how busy the machine was while times were measured."""
    return (f'Load of the machine meanwhile {load["mean"]:.1f}, at most {load["highest"]:.1f}, on '
            f'{load["cores"]} cores; 1 of it is the measurement')


def _episodes(model: Mapping) -> str:
    count = model['rows'][0]['episodes']
    few = '' if count >= FEW else (
        f' With fewer than {FEW}, most differences stay undecided.')
    return f'{count} episodes a row, layouts `{model["layouts_sha256"][:12]}`.{few}'


def _table(columns: Mapping, rows: Sequence[Mapping]) -> str:
    lines = [' | '.join(columns), ' | '.join(['---', *['---:'] * (len(columns) - 1)])]
    lines += [' | '.join(cell(row) for cell in columns.values()) for row in rows]
    return ''.join(f'| {line} |\n' for line in lines)


def _stages(rows: Sequence[Mapping]) -> dict:
    """Columns of the table of stages."""
    def column(stage: str):
        def cell(row: Mapping) -> str:
            times = row['latency_by_stage_ms'].get(stage)
            return f'{times["p50"]:.1f} / {times["p95"]:.1f}' if times else ''

        return cell

    # In the order of a step; only some methods have a stage of decision.
    order = ('preprocess', 'upload', 'reuse', 'vision', 'select', 'language_model', 'head')
    stages = {stage for row in rows for stage in row['latency_by_stage_ms']}
    shown = [stage for stage in order if stage in stages] + sorted(stages - set(order))
    return {'method': _label, **{s: column(s) for s in shown}}


def _success(row: Mapping) -> str:
    return (f'{100 * row["success_rate"]:.0f} % '
            f'({100 * row["wilson_low"]:.0f}-{100 * row["wilson_high"]:.0f})')


def _against(name: str) -> Callable[[Mapping], str]:
    """Make the cells of a column of the comparison with dense; the row of dense has none."""
    def cell(row: Mapping) -> str:
        pair = row.get('against_dense')
        if pair is None:
            return ''
        if name == 'difference':
            return f'{100 * pair[name]:+.0f} ({_range(pair["interval"])})'
        if name == 'counts':
            return f'+{pair["only_second"]} -{pair["only_first"]}'
        return {
            'interval_of_tasks': _range,
            'p_holm': lambda value: f'{value:.2g}',
        }.get(name, str)(pair[name])

    return cell


def _range(interval: Sequence[float]) -> str:
    return f'{100 * interval[0]:+.0f} to {100 * interval[1]:+.0f}'


def _failures(rows: Sequence[Mapping]) -> dict:
    """Columns of the table of failures: the classes that occur."""
    def column(name: str) -> Callable[[Mapping], str]:
        return lambda row: str(row['failures'].get(name, 0))

    names = [name for name in FAILURES if any(name in row['failures'] for row in rows)]
    return {'method': _label, **{name: column(name) for name in names}}


def _by_task(rows: Sequence[Mapping]) -> dict:
    """Columns of the table of successes: one a task."""
    def column(task: str) -> Callable[[Mapping], str]:
        return lambda row: str(row['successes_by_task'][task])

    episodes = rows[0]['episodes_by_task']
    return {'method': _label, **{
        f'{task} (of {count})': column(task) for task, count in episodes.items()}}


def _label(row: Mapping) -> str:
    return f'`{row["method"]}`'


_SUCCESS = {
    'method': _label,
    'success': _success,
    'won, lost': _against('counts'),
    'minus dense': _against('difference'),
    'other tasks': _against('interval_of_tasks'),
    'verdict': _against('verdict'),
    'p, Holm': _against('p_holm'),
}

_COST = {
    'method': _label,
    'tokens': lambda row: f'{row["tokens"]:.0f}',
    'layers': lambda row: f'{row["layers"]:.1f}',
    'reused': lambda row: f'{100 * row["reused"]:.0f} %',
    'GFLOP': lambda row: f'{row["flops"] / 1e9:.2f}',
    'ms': lambda row: f'{row["latency_ms"]:.0f}',
    'p95': lambda row: f'{row["latency_p95_ms"]:.0f}',
    'inside': lambda row: f'{row["overhead_ms"]:.1f}',
    'wall': lambda row: f'{row["wall_ms"]:.0f}',
    'change': lambda row: f'{row["action_change_mean"]:.3f} / {row["action_change_max"]:.2f}',
    'flips': lambda row: str(row['gripper_flips']),
}

_COUNTED = {
    'method': lambda row: _label(row) + (' *' if row['depends_on_input'] else ''),
    'tokens': lambda row: f'{row["tokens"]:.0f}',
    'layers': lambda row: f'{row["layers"]:.0f}',
    'TFLOP': lambda row: f'{row["flops"] / 1e12:.2f}',
    'head, GFLOP': lambda row: f'{row["flops_by_stage"]["head"] / 1e9:.1f}',
}
