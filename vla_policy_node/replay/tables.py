"""The tables of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vla_policy_node.replay.html import number, table


def tables(
    report: Mapping, latency: Mapping, runs: Sequence[Mapping], run_line: str, load: str
) -> list[str]:
    """Return headings and tables, HTML; each table names the run.

    load: the sentence about what else ran while times were measured.
    """
    labels = [run['label'] for run in runs]
    times = [latency[key] for key in 'ab' if latency[key]]
    difference, faster = report['difference'], latency['difference']
    head = ['', *labels, *(['paired difference'] if difference else [])]
    return [
        '<h3>Action error, mean / 95th percentile per control period</h3>',
        _error_table(runs, difference, run_line),
        '<h3>Gripper</h3>', _gripper_table(runs, difference, run_line),
        '<h3>Motion that was sent</h3>', table(head, _motion_rows(runs, difference), run_line),
        '<h3>Latency, ms: p50 / p95 / p99</h3>',
        table(head, _latency_rows(times, faster), f'{run_line}. {load}'),
        '<h3>Cost, ages, agreement</h3>'
        '<p class="soft">The differences here and of motion are those of the means.</p>',
        table(head, _cost_rows(runs, difference), run_line),
        '<h3>Sent, held, dropped</h3>',
        table(head, _count_rows(runs, bool(difference)), run_line),
    ]


def _error_table(runs: Sequence[Mapping], difference: Mapping | None, run_line: str) -> str:
    columns = []
    for run in runs:
        if run['actions']:
            columns.append((f"{run['label']}, chunks to bag", run['actions']['error']))
            if run['actions']['sent_error']:
                columns.append((f"{run['label']}, sent to bag", run['actions']['sent_error']))
    if difference and difference['error']:
        columns.append(('between the two', difference['error']))
    if difference and difference.get('error_to_bag'):
        columns.append(('to bag, paired difference', difference['error_to_bag']))
    if not columns:
        return '<p class="soft">The bag holds no actions to compare with.</p>'
    rows = []
    for index, first in enumerate(columns[0][1]):
        unit = {'m': 'mm', 'rad': 'mrad'}[first['unit']]
        rows.append([f"{first['axis']}, {unit}", *(
            f"{number(rows_of[index]['mean'], 1e3)} / {number(rows_of[index]['p95'], 1e3)}"
            for _, rows_of in columns)])
    return table(['axis', *(name for name, _ in columns)], rows, run_line)


def _gripper_table(runs: Sequence[Mapping], difference: Mapping | None, run_line: str) -> str:
    columns = [(f"{run['label']} to bag", run['actions']['gripper']) for run in runs
               if run['actions'] and run['actions']['gripper']]
    if difference and difference['gripper']:
        columns.append(('between the two', difference['gripper']))
    if not columns:
        return '<p class="soft">Nothing to compare with.</p>'
    return table(
        ['', 'agreement, %', 'switches', 'found', 'missed', 'extra', 'off by, ms: p50 / max'],
        [[name, number(g['agreement'], 100, 1), g['switches'], g['matched'], g['missed'],
          g['extra'], f"{number(g['timing_s']['p50'], 1e3, 0)} / "
          f"{number(g['timing_s']['max'], 1e3, 0)}"] for name, g in columns], run_line)


def _motion_rows(runs: Sequence[Mapping], difference: Mapping | None) -> list[list[str]]:
    rows = []
    paired = (difference or {}).get('paired', {})
    for kind, unit in (('translation', 'mm'), ('rotation', 'mrad')):
        smooth = [run['smoothness'][kind] for run in runs]
        for name, key, scale, dimension in (
                ('jump at a seam between chunks, mean / p95', 'seam_jump', 1e3, unit),
                ('change within a chunk, mean / p95', 'change_within_chunk', 1e3, unit)):
            row = [f'{kind}: {name}, {dimension}', *(
                f"{number(s[key]['mean'], scale)} / {number(s[key]['p95'], scale)}"
                for s in smooth)]
            gap = paired.get(f'{kind}_{key}_mean')
            rows.append(row + ([number(gap, scale)] if difference else []))
        row = [f'{kind}: jerk, RMS, {smooth[0]["unit"]}/s³',
               *(number(s['jerk_rms']) for s in smooth)]
        rows.append(row + ([number(paired.get(f'{kind}_jerk_rms'))] if difference else []))
    return rows


def _latency_rows(times: Sequence[Mapping], faster: Mapping | None) -> list[list[str]]:
    def three(values: Mapping | None) -> str:
        values = values or {}
        return ' / '.join(number(values.get(p), digits=1) for p in ('p50', 'p95', 'p99'))

    stages = list(dict.fromkeys(s for t in times for s in t['stages']))
    rows = [['whole inference', *(three(t['total']) for t in times),
             *([three(faster['total'])] if faster else [])]]
    rows += [[stage, *(three(t['stages'].get(stage)) for t in times),
              *([three(faster['stages'].get(stage))] if faster else [])] for stage in stages]
    shares = [t['within_33_ms'] for t in times]
    rows.append(['within 33 ms (every frame at 30 Hz), %',
                 *(number(share, 100, 1) for share in shares),
                 *([number(shares[1] - shares[0], 100, 1)] if faster else [])])
    return rows


def _cost_rows(runs: Sequence[Mapping], difference: Mapping | None) -> list[list[str]]:
    paired = (difference or {}).get('paired', {})

    def row(name: str, key: str, scale: float, digits: int, which: str) -> list[str]:
        cells = [' / '.join(number(run[key][w], scale, digits) for w in which.split())
                 for run in runs]
        gap = paired.get(key)
        gap = gap['mean'] if isinstance(gap, Mapping) else gap
        return [name, *cells, *([number(gap, scale, digits)] if difference else [])]

    rows = [
        row('visual tokens kept, mean', 'tokens_kept', 1, 1, 'mean'),
        row('GFLOP, mean', 'gflops', 1, 3, 'mean'),
        row('observation age at inference, ms: p50 / p95', 'observation_age_s', 1e3, 0,
            'p50 p95'),
        row('observation age at actuation, ms: p50 / p95', 'age_at_actuation_s', 1e3, 0,
            'p50 p95'),
        row('camera spread, ms: p50 / p95 / max', 'camera_spread_s', 1e3, 1, 'p50 p95 max'),
        row('to the chunk before, action units: mean / p95', 'chunk_disagreement', 1, 4,
            'mean p95'),
        row('ensemble disagreement, action units: mean / p95', 'ensemble_disagreement', 1, 4,
            'mean p95'),
    ]
    for camera in dict.fromkeys(name for run in runs for name in run['tokens_kept_by_camera']):
        rows.append([f'tokens kept of {camera}, mean', *(
            number(run['tokens_kept_by_camera'].get(camera, {}).get('mean'), 1, 1)
            for run in runs), *([number(
                paired.get('tokens_kept_by_camera', {}).get(camera, {}).get('mean'), 1, 1)]
                if difference else [])])
    return rows


def _count_rows(runs: Sequence[Mapping], has_difference: bool) -> list[list[str]]:
    names = list(dict.fromkeys(name for run in runs for name in run['counts']))
    rows = [['actions sent', *(run['actions_sent'] for run in runs)],
            *([f'held: {name}', *(run['holds'].get(name, 0) for run in runs)]
              for name in dict.fromkeys(n for run in runs for n in run['holds'])),
            *([name, *(run['counts'].get(name, 0) for run in runs)] for name in names)]
    return [row + ([f'{row[2] - row[1]:+d}'] if has_difference else []) for row in rows]
