"""Renders the table of methods as Markdown, JSON and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vla_policy_node.bench.methods_plot import draw_methods
from vla_policy_node.bench.methods_published import NOTES as PUBLISHED_NOTES

NAMES = ('methods.json', 'methods.md', 'methods.png')

NOTES = '''\
The columns of the tables:

- **success**: closed loop, the same held-out layouts for all, 95 % interval (Wilson).
  **vs dense**: episodes won and lost against the plain model, and McNemar's exact p.
- **tokens**: visual tokens that all layers computed anew, mean. **layers**: of the language
  model, that ran. **reused**: steps that were answered without running the network.
- **GFLOP**: 2 per multiply-accumulate, of what really ran, choosing included; mean.
- **ms**: one inference, median and 95th percentile. **inside**: of it, time in the method itself,
  without blocks of the action head that it runs or reuses.
- **change**: of the action on the same pictures, mean and largest over chunk and dimensions, in
  units of the training data. **flips**: gripper commands that differ.
'''

_PICTURE = '''\
![Time of one inference and success of every method, by what it saves](methods.png)

A filled dot differs from dense (McNemar, corrected by Holm for all rows, 5 %), an open
one does not, on so many episodes; the dotted line is dense.
'''


def write_report(document: Mapping, out: Path) -> list[Path]:
    """Write methods.json, methods.md and methods.png into `out`."""
    paths = [out / name for name in NAMES]
    paths[0].write_text(
        json.dumps(flat_rows(document), indent=1, allow_nan=False) + '\n', encoding='utf-8')
    paths[1].write_text(markdown(document), encoding='utf-8')
    draw_methods([row for model in document['models'] for row in model['rows']], paths[2])
    return paths


def flat_rows(document: Mapping) -> list[dict]:
    """Return all rows in one list, for tools that need nothing else.

    The rest is the 'context' of each model's first row.
    """
    shared = {key: value for key, value in document.items() if key not in ('models', 'published')}
    rows = []
    for model in document['models']:
        first, *others = model['rows']
        context = {**shared, 'checkpoint': model['checkpoint'], 'refused': model['refused']}
        rows += [{**first, 'context': context}, *others]
    return [*rows, *document['published']]


def markdown(document: Mapping) -> str:
    """Return the tables, what was measured with what, and what the columns mean."""
    machine = document['machine']
    parts = [
        f'# Acceleration methods on the same episodes\n\n'
        f'Made by `{document["command"]}`. {document["suite"]}, {document["layout"]} layouts, '
        f'tasks {", ".join(map(str, document["tasks"]))}. {machine["processor"]}, '
        f'{machine["threads_per_worker"]} thread(s), torch {machine["versions"]["torch"]}.\n',
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
        f'({checkpoint["sha256"][:12]}).{untrained} Costs on {rows[0]["frames"]} frames.\n',
        _table(_MEASURED, rows),
        '### Latency by stage\n\nMedian / 95th percentile, ms. `reuse` is the decision whether '
        'to answer without the network.\n',
        _table(_stages(rows), rows),
    ]
    if model['refused']:
        parts.append('### Not run\n\n' + ''.join(
            f'- `{label}`: {why}\n' for label, why in model['refused'].items()))
    return parts


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
    return {'method': lambda row: f'`{row["method"]}`', **{s: column(s) for s in shown}}


def _success(row: Mapping) -> str:
    if not row['episodes']:
        return ''
    return (f'{100 * row["success_rate"]:.0f} % '
            f'({100 * row["wilson_low"]:.0f}-{100 * row["wilson_high"]:.0f})')


def _against(row: Mapping) -> str:
    pair = row.get('against_dense')
    if pair is None:
        return ''
    return f'+{pair["only_second"]} -{pair["only_first"]}, {pair["p_value"]:.2g}'


_MEASURED = {
    'method': lambda row: f'`{row["method"]}`',
    'success': _success,
    'vs dense': _against,
    'tokens': lambda row: f'{row["tokens"]:.0f}',
    'layers': lambda row: f'{row["layers"]:.1f}',
    'reused': lambda row: f'{100 * row["reused"]:.0f} %',
    'GFLOP': lambda row: f'{row["flops"] / 1e9:.2f}',
    'ms': lambda row: f'{row["latency_ms"]:.0f}',
    'p95': lambda row: f'{row["latency_p95_ms"]:.0f}',
    'inside': lambda row: f'{row["overhead_ms"]:.1f}',
    'change': lambda row: f'{row["action_change_mean"]:.3f} / {row["action_change_max"]:.2f}',
    'flips': lambda row: str(row['gripper_flips']),
}

_COUNTED = {
    'method': lambda row: f'`{row["method"]}`' + (' *' if row['depends_on_input'] else ''),
    'tokens': lambda row: f'{row["tokens"]:.0f}',
    'layers': lambda row: f'{row["layers"]:.0f}',
    'TFLOP': lambda row: f'{row["flops"] / 1e12:.2f}',
    'head, GFLOP': lambda row: f'{row["flops_by_stage"]["head"] / 1e9:.1f}',
}
