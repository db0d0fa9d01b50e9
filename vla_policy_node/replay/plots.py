"""Writes the plots of a report, and says what is seen in each and what it means.

Only the plot of latencies depends on the speed of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vla_policy_node.replay import charts
from vla_policy_node.replay.actions import Actions
from vla_policy_node.replay.compare import PairedInference
from vla_policy_node.replay.metrics import sent_actions
from vla_policy_node.replay.trace import Trace

_TIMED = 'latency.png'
_NESTED = ' Where only one line shows within another, the two agree.'


@dataclass(frozen=True)
class Plot:
    """A chart as pictures (PNG) for a wide and a narrow page.

    seen: what the chart shows, for those who cannot see it. meaning: how to read it. is_timed:
    whether it depends on the speed of the machine.
    """

    wide: bytes
    narrow: bytes
    seen: str
    meaning: str
    is_timed: bool


def write_plots(
    traces: Sequence[Trace], actions: Actions, pairs: Sequence[PairedInference], report: Mapping,
    folder: Path,
) -> list[Plot]:
    """Write the wide PNGs into the folder; return all plots in the order of the page."""
    start_ns = traces[0].inferences[0].stamp_ns
    chosen: dict[str, tuple[Callable[[charts.Page], Figure], str, str]] = {}
    if pairs:
        chosen['difference.png'] = (
            lambda page: charts.difference(pairs, start_ns, page),
            _see_difference(pairs, start_ns),
            'How far the two chunks of each observation are apart: the largest displacement over '
            'their elements. The line is broken between goals and where no inference was made.')
    if (report['difference'] or report['a']['actions'] or {}).get('error'):
        chosen['error.png'] = (
            lambda page: charts.error(report, page), _see_error(report),
            'Action error of one control period by axis: the bar is the mean, the line above it '
            'reaches to the 95th percentile.')
    chosen['commands.png'] = (
        lambda page: charts.commands(traces, actions, start_ns, page),
        _see_commands(traces, actions),
        'What was sent in each control period. Gaps are holds.' + _NESTED)
    if any(trace.grids for trace in traces):
        chosen['tokens.png'] = (
            lambda page: charts.tokens(traces, start_ns, page), _see_tokens(traces),
            'Visual tokens that entered the language model, by camera: fewer cost less.'
            + (_NESTED if len(traces) > 1 else ''))
    chosen[_TIMED] = (
        lambda page: charts.latency(traces, page), _see_latency(traces),
        'Wall time of an inference on this machine. Dashed: the 33 ms between two frames of a '
        '30 Hz camera.')
    chosen['timing.png'] = (
        lambda page: charts.timing(traces, start_ns, page), _see_timing(traces),
        'How old the picture was when its action was sent, how far apart in time the cameras '
        'were and, where chunks overlap, the RMS distance of each to the one before.')
    plots = []
    for name, (draw, seen, meaning) in chosen.items():
        plot = Plot(charts.png(draw(charts.WIDE)), charts.png(draw(charts.NARROW)), seen, meaning,
                    name == _TIMED)
        (folder / name).write_bytes(plot.wide)
        plots.append(plot)
    return plots


def _see_difference(pairs: Sequence[PairedInference], start_ns: int) -> str:
    time_s = charts.seconds_of([p.first for p in pairs], start_ns)
    parts = []
    for kind, unit, values in (('translation', 'mm', [p.translation_m for p in pairs]),
                               ('rotation', 'mrad', [p.rotation_rad for p in pairs])):
        far = np.array(values) * 1e3
        parts.append(f'{kind}: median {np.median(far):.1f} {unit}, highest {far.max():.1f} {unit} '
                     f'at {time_s[far.argmax()]:.1f} s')
    return f'Two line charts of {len(pairs)} observations over time. ' + '; '.join(parts) + '.'


def _see_error(report: Mapping) -> str:
    parts = []
    for label, _, rows in charts.error_groups(report):
        means = '; '.join(f'{row["axis"]} {1e3 * row["mean"]:.1f} to {1e3 * row["p95"]:.1f}'
                          for row in rows if row['count'])
        parts.append(f'{label}: {means}')
    return 'Bars by axis, translation in mm and rotation in mrad. ' + '. '.join(parts) + '.'


def _see_commands(traces: Sequence[Trace], actions: Actions) -> str:
    counts = [f'{trace.label} {len(sent_actions(trace)["time_ns"])}' for trace in traces]
    counts += [f'the bag {len(actions.target_ns)}'] if len(actions.target_ns) else []
    return ('Line charts over time: displacement in x, y and z in mm, and the gripper, open or '
            f'closed. Commands: {", ".join(counts)}.')


def _see_tokens(traces: Sequence[Trace]) -> str:
    parts = []
    for trace in traces:
        for camera in trace.grids:
            kept = charts.kept_of(trace, camera)
            parts.append(f'{trace.label} kept {kept.min()} to {kept.max()}, on average '
                         f'{kept.mean():.0f}, of {camera}')
    return 'A line chart over time for each camera: ' + '; '.join(parts) + '.'


def _see_latency(traces: Sequence[Trace]) -> str:
    parts = [f'{trace.label} {np.median(charts.totals_ms(trace)):.0f} ms' for trace in traces]
    return ('A histogram of whole inferences and bars with the median of each stage. Median of '
            f'the whole: {", ".join(parts)}.')


def _see_timing(traces: Sequence[Trace]) -> str:
    parts = []
    for trace in traces:
        sent = sent_actions(trace)
        age_ms = (sent['time_ns'] - sent['observation_ns']) / 1e6
        if len(age_ms):
            parts.append(f'{trace.label} {age_ms.min():.0f} to {age_ms.max():.0f} ms')
    panels = 'Three' if charts.has_overlaps(traces) else 'Two'
    return f'{panels} charts of dots over time. Ages: {", ".join(parts) or "none"}.'
