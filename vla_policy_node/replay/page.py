"""The report as a self-contained HTML file: verdict, plots, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from vla_policy_node.replay.compare import MOST_DIFFERENT
from vla_policy_node.replay.evaluate import Evaluation
from vla_policy_node.replay.html import document, number, plot, views
from vla_policy_node.replay.pictures import ShownMoment
from vla_policy_node.replay.plots import Plot
from vla_policy_node.replay.tables import tables

_RANKING = (
    f'The {MOST_DIFFERENT} observations whose two chunks are furthest apart, the furthest first: '
    'by the RMS of the difference over all elements and dimensions of the chunk, the gripper too, '
    'in action units. So a gripper that opens instead of closing can count more than a larger '
    'displacement. Clear, outlined squares are tokens that entered the language model; what is '
    'dimmed did not, and the darkest rim was cut away before. A click enlarges a picture.')
_BUSY = 0.25  # of a core that others used: from here on times are called longer


def render(
    evaluation: Evaluation, plots: Sequence[Plot], moments: Sequence[ShownMoment]
) -> str:
    """Return the page."""
    report, latency = evaluation.report, evaluation.latency
    runs = [run for run in (report['a'], report['b']) if run]
    title = ' against '.join(run['label'] for run in runs)
    line = f'{title} on {report["bag"]["name"]}, {latency["date"]}, {latency["code"]}'
    load = describe_load(latency)
    parts = [
        f'<h1>{escape(title)}</h1>', _subtitle(report, latency), _verdict(report, latency),
        _gate(evaluation),
        _tiles(report, latency),
        *_notes(report['notes']),
        '<h2>Charts</h2>', *(
            plot(f'chart{place}', p.wide, p.narrow, p.seen,
                 p.meaning + (f' {load}' if p.is_timed else ''), line)
            for place, p in enumerate(plots, 1)),
    ]
    if moments:
        parts += ['<h2>Where the two differ most</h2>',
                  f'<p class="soft">{escape(_RANKING)}</p>',
                  *(views(f'moment{m.rank}', m.pictures, m.caption, line) for m in moments)]
    parts += ['<h2>Numbers</h2>', *tables(report, latency, runs, line, load),
              _provenance(report, runs, latency, load)]
    return document(f'Replay: {title}', parts)


def describe_load(latency: Mapping) -> str:
    """Return the sentence about what else ran while times were measured."""
    load = latency['load']
    before = (f'{load["cores"]} cores, load average {load["load_average_before"]:.1f} in the '
              'minute before')
    others = load['busy_with_others_cores']
    if others is None:
        return f'What else ran is not known; {before}.'
    longer = ', so times are longer than on an idle machine' if others >= _BUSY else ''
    return f'Meanwhile other programs kept {others:.1f} cores busy{longer}; {before}.'


def _subtitle(report: Mapping, latency: Mapping) -> str:
    bag = report['bag']
    goals = list(dict.fromkeys(goal['instruction'] for goal in bag['goals']))
    asked = '; '.join(f'“{goal}”' for goal in goals[:3]) + (' …' if len(goals) > 3 else '')
    return (f'<p class="soft">Bag <b>{escape(bag["name"])}</b>, {bag["duration_s"]:.1f} s, '
            f'{report["a"]["inferences"]} inferences: {escape(asked)}<br>'
            f'Replayed on {escape(latency["date"])} with {escape(latency["code"])}</p>')


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
              'ms per inference, median, on this machine' + _others(latency)),
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


def _others(latency: Mapping) -> str:
    others = latency['load']['busy_with_others_cores'] or 0.0
    return f'; others kept {others:.1f} cores busy' if others >= _BUSY else ''


def _pair(document: Mapping, figure) -> str:
    return ' → '.join(figure(document[key]) for key in 'ab' if document[key])


def _notes(notes: Sequence[str]) -> list[str]:
    if not notes:
        return []
    return ['<div class="card">' + ''.join(f'<p>{escape(n)}</p>' for n in notes) + '</div>']


def _provenance(report: Mapping, runs: Sequence[Mapping], latency: Mapping, load: str) -> str:
    lines = [f'{run["label"]}: {run["architecture"]}, {run["parameters"] / 1e6:.1f} M parameters, '
             f'{run["dtype"]}, optimisation {run["optimisation"]}, preprocessing '
             f'{run["preprocessing"]}, {run["execution_mode"]}, sha256 {run["sha256"][:16]}'
             for run in runs]
    lines.append(f'An inference takes {report["latency_periods"]} control periods of '
                 f'{1e3 * report["control_period_s"]:.0f} ms in the time of the bag.')
    lines.append(f'Measured on {latency["processor"]}, {latency["device"]}, '
                 f'{latency["threads"]} thread(s). {load}')
    return '<p class="soft">' + '<br>'.join(escape(line) for line in lines) + '</p>'
