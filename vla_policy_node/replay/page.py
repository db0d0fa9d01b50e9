"""The report as a self-contained HTML file: verdict, plots, tables."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from vla_policy_node.replay.evaluate import Evaluation

_STYLE = '''
:root{--ink:#1f2430;--soft:#5d6575;--line:#e3e6ec;--good:#0b7a75;--bad:#c0392b;--card:#fff}
*{box-sizing:border-box}
body{margin:0;background:#f6f7f9;color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:960px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:25px;margin:0 0 4px}h2{font-size:18px;margin:34px 0 8px}
p{margin:6px 0}.soft{color:var(--soft)}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px;
margin:14px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(260px,1fr));gap:12px;
margin:14px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.tile b{display:block;font-size:22px;font-weight:600}
.badge{display:inline-block;border-radius:6px;padding:1px 9px;color:#fff;font-weight:600}
.pass{background:var(--good)}.fail{background:var(--bad)}
figure{margin:14px 0;background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:10px}
figure img{width:100%;height:auto;display:block}
figcaption{color:var(--soft);font-size:13px;padding:6px 4px 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:4px 8px;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:500}
.scroll{overflow-x:auto}
'''
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_TYPES = {'.png': 'image/png', '.jpg': 'image/jpeg'}


def render(
    evaluation: Evaluation, plots: Mapping[str, str], stills: Mapping[str, str], folder: Path
) -> str:
    """Return the page. plots, stills: file name in `folder` -> caption."""
    report, latency = evaluation.report, evaluation.latency
    runs = [run for run in (report['a'], report['b']) if run]
    title = ' against '.join(run['label'] for run in runs)
    parts = [
        f'<h1>{escape(title)}</h1>', _subtitle(report), _verdict(report, latency),
        _gate(evaluation),
        _tiles(report, latency),
        *_notes(report['notes']),
        '<h2>Over time</h2>', *(_picture(folder / n, text) for n, text in plots.items()),
    ]
    if stills:
        parts += ['<h2>Where the two differ most</h2>',
                  '<p class="soft">Clear tokens entered the language model. Left: '
                  f'{escape(runs[0]["label"])}; right: {escape(runs[1]["label"])}.</p>',
                  *(_picture(folder / n, text) for n, text in stills.items())]
    parts += ['<h2>Figures</h2>', *_tables(report, latency, runs),
              _provenance(report, runs, latency)]
    return document(f'Replay: {title}', parts)


def document(title: str, parts: Sequence[str]) -> str:
    """Return a whole page; parts are HTML."""
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<title>{escape(title)}</title><link rel="icon" href="data:,">'
            f'<style>{_STYLE}</style></head>\n<body><main>\n' + '\n'.join(parts)
            + '\n</main></body></html>\n')


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are text."""
    def cells(tag: str, values: Sequence[str]) -> str:
        return ''.join(f'<{tag}>{escape(str(v))}</{tag}>' for v in values)

    body = ''.join(f'<tr>{cells("td", row)}</tr>' for row in rows)
    return (f'<div class="scroll"><table><thead><tr>{cells("th", head)}</tr></thead>'
            f'<tbody>{body}</tbody></table></div>')


def number(value: float | None, scale: float = 1.0, digits: int = 2) -> str:
    """Return a figure, or a dash where there is none."""
    if value is None:
        return '–'
    value *= scale
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.{digits}f}'


def _subtitle(report: Mapping) -> str:
    bag = report['bag']
    goals = list(dict.fromkeys(goal['instruction'] for goal in bag['goals']))
    asked = '; '.join(f'“{goal}”' for goal in goals[:3]) + (' …' if len(goals) > 3 else '')
    return (f'<p class="soft">Bag <b>{escape(bag["name"])}</b>, {bag["duration_s"]:.1f} s, '
            f'{report["a"]["inferences"]} inferences: {escape(asked)}</p>')


def _verdict(report: Mapping, latency: Mapping) -> str:
    """Return the verdict: in one sentence, what an engineer wants to know first."""
    a, b, difference = report['a'], report['b'], report['difference']
    if not b:
        return ''
    times = [latency[key]['total']['p50'] for key in 'ab']
    apart = difference['translation_m'], difference['rotation_rad']
    share = 100 * b['gflops']['mean'] / a['gflops']['mean']
    return ('<p class="card">' + escape(
        f'{b["label"]} needs {share:.0f} % of the arithmetic and {times[1]:.0f} instead of '
        f'{times[0]:.0f} ms of {a["label"]}. On half of the observations their chunks stay within '
        f'{apart[0]["p50"] * 1e3:.1f} mm and {apart[1]["p50"] * 1e3:.1f} mrad of each other, on '
        f'95 % within {apart[0]["p95"] * 1e3:.1f} mm and {apart[1]["p95"] * 1e3:.1f} mrad per '
        'control period.') + '</p>')


def _gate(evaluation: Evaluation) -> str:
    if not evaluation.verdicts:
        return ''
    rows = ''.join(
        f'<p><span class="badge {"pass" if v.passed else "fail"}">'
        f'{"passed" if v.passed else "failed"}</span> {escape(v.text)}</p>'
        for v in evaluation.verdicts)
    return f'<div class="card">{rows}</div>'


def _tiles(report: Mapping, latency: Mapping) -> str:
    a, b = report['a'], report['b']
    tiles = [(_pair(latency, lambda run: number(run['total']['p50'], digits=0)),
              'ms per inference, median, on this machine'),
             (_pair(report, lambda run: number(run['tokens_kept']['mean'], digits=0)),
              f'of {a["tokens_total"]} visual tokens kept'),
             (_pair(report, lambda run: number(run['gflops']['mean'], digits=2)),
              'GFLOP per inference')]
    compared = report['difference'] or a['actions']
    between = 'between the two' if b else "to the bag's actions"
    if compared and compared['error']:
        for kind, unit in (('translation', 'mm'), ('rotation', 'mrad')):
            worst = max((r['p95'] or 0.0) for r in compared['error'] if r['kind'] == kind)
            tiles.append((f'{number(worst, 1e3)} {unit}',
                          f'{kind} error {between}, 95th percentile of the worst axis'))
        agreement = compared['gripper'].get('agreement')
        if agreement is not None:
            tiles.append((f'{100 * agreement:.1f} %', f'gripper agreement {between}'))
    return '<div class="tiles">' + ''.join(
        f'<div class="tile"><b>{escape(value)}</b><span class="soft">{escape(what)}</span></div>'
        for value, what in tiles) + '</div>'


def _pair(document: Mapping, figure) -> str:
    return ' → '.join(figure(document[key]) for key in 'ab' if document[key])


def _notes(notes: Sequence[str]) -> list[str]:
    if not notes:
        return []
    return ['<div class="card">' + ''.join(f'<p>{escape(n)}</p>' for n in notes) + '</div>']


def _picture(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (f'<figure><img alt="{escape(caption)}" src="data:{_TYPES[path.suffix]};base64,{data}">'
            f'<figcaption>{escape(caption)}</figcaption></figure>')


def _tables(report: Mapping, latency: Mapping, runs: Sequence[Mapping]) -> list[str]:
    labels = [run['label'] for run in runs]
    times = [latency[key] for key in 'ab' if latency[key]]
    difference, faster = report['difference'], latency['difference']
    head = ['', *labels, *(['paired difference'] if difference else [])]
    return [
        '<h3>Action error, mean / 95th percentile per control period</h3>',
        _error_table(runs, difference),
        '<h3>Gripper</h3>', _gripper_table(runs, difference),
        '<h3>Motion that was sent</h3>', table(head, _motion_rows(runs, difference)),
        '<h3>Latency, ms: p50 / p95 / p99</h3>', table(head, _latency_rows(times, faster)),
        '<h3>Cost, ages, agreement</h3>'
        '<p class="soft">The differences here and of motion are those of the means.</p>',
        table(head, _cost_rows(runs, difference)),
        '<h3>Sent, held, dropped</h3>', table(head, _count_rows(runs, bool(difference))),
    ]


def _error_table(runs: Sequence[Mapping], difference: Mapping | None) -> str:
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
    return table(['axis', *(name for name, _ in columns)], rows)


def _gripper_table(runs: Sequence[Mapping], difference: Mapping | None) -> str:
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
          f"{number(g['timing_s']['max'], 1e3, 0)}"] for name, g in columns])


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


def _provenance(report: Mapping, runs: Sequence[Mapping], latency: Mapping) -> str:
    lines = [f'{run["label"]}: {run["architecture"]}, {run["parameters"] / 1e6:.1f} M parameters, '
             f'{run["dtype"]}, optimisation {run["optimisation"]}, preprocessing '
             f'{run["preprocessing"]}, {run["execution_mode"]}, sha256 {run["sha256"][:16]}'
             for run in runs]
    lines.append(f'An inference takes {report["latency_periods"]} control periods of '
                 f'{1e3 * report["control_period_s"]:.0f} ms in the time of the bag.')
    lines.append(f'Measured on {latency["processor"]}, {latency["device"]}, '
                 f'{latency["threads"]} thread(s).')
    return '<p class="soft">' + '<br>'.join(escape(line) for line in lines) + '</p>'
