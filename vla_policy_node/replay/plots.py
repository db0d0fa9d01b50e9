"""Plots of a report; only the latency plot depends on the speed of the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vla_policy_node.replay.actions import Actions
from vla_policy_node.replay.compare import PairedInference
from vla_policy_node.replay.metrics import (
    AXES,
    FRAME_INTERVAL_MS,
    chunk_disagreement,
    sent_actions,
)
from vla_policy_node.replay.trace import Trace

DPI = 110
_COLOURS = ('#0b7a75', '#d1495b')
_BAG = '#8a8f98'
# More points than pixels only make a plot slow.
_MOST_POINTS = 4000


def write_plots(
    traces: Sequence[Trace], actions: Actions, pairs: Sequence[PairedInference], report: Mapping,
    folder: Path,
) -> dict[str, str]:
    """Write the PNGs; return file name -> caption, in the order of the page."""
    start_ns = traces[0].inferences[0].stamp_ns
    plots = {}
    if pairs:
        plots['difference.png'] = (
            _difference(pairs, start_ns),
            'How far the two chunks of each observation are apart: the largest displacement over '
            'their elements.')
    if (report['difference'] or report['a']['actions'] or {}).get('error'):
        plots['error.png'] = (_error(report), 'Action error per axis: mean, and the line to the '
                              '95th percentile. Per control period.')
    plots['commands.png'] = (
        _commands(traces, actions, start_ns), 'What was sent in each control period. Gaps are '
        'holds.')
    plots['tokens.png'] = (_tokens(traces, start_ns), 'Visual tokens that entered the language '
                           'model, by camera.')
    plots['latency.png'] = (_latency(traces), 'Wall time of an inference on this machine. Dashed: '
                            'the 33 ms between two frames of a 30 Hz camera.')
    plots['timing.png'] = (
        _timing(traces, start_ns), 'Age of the observation at actuation, distance between the two '
        "cameras' stamps, and, where chunks overlap, RMS distance of each to the one before.")
    for name, (figure, _) in plots.items():
        FigureCanvasAgg(figure).print_png(folder / name)
    return {name: text for name, (_, text) in plots.items()}


def _figure(rows: int, height: float, columns: int = 1, **options):
    figure = Figure(figsize=(8.6, height), layout='constrained', dpi=DPI)
    axes = np.atleast_1d(figure.subplots(rows, columns, **options)).ravel()
    for axis in axes:
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def _legend_above(figure: Figure, axes, columns: int) -> None:
    # The layout leaves no room for the legend of a figure: `loc='outside ...'` needs a matplotlib
    # (3.7) that Ubuntu 24.04 does not have.
    legend = figure.legend(*axes.get_legend_handles_labels(), loc='upper center', ncols=columns,
                           frameon=False)
    extent = legend.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - extent.height / figure.bbox.height))


def _seconds(stamps_ns, start_ns: int) -> np.ndarray:
    return (np.asarray(stamps_ns, np.int64) - start_ns) / 1e9


def _thin(*columns: np.ndarray) -> list[np.ndarray]:
    step = -(-len(columns[0]) // _MOST_POINTS) or 1
    return [column[::step] for column in columns]


def _difference(pairs: Sequence[PairedInference], start_ns: int) -> Figure:
    figure, (top, bottom) = _figure(2, 3.6, sharex=True)
    time_s = _seconds([p.first.stamp_ns for p in pairs], start_ns)
    for axis, values, unit in (
            (top, [p.translation_m * 1e3 for p in pairs], 'translation, mm'),
            (bottom, [p.rotation_rad * 1e3 for p in pairs], 'rotation, mrad')):
        x, y = _thin(time_s, np.array(values))
        axis.plot(x, y, '.-', color='#3d405b', linewidth=0.9, markersize=3)
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
    bottom.set_xlabel('time of the observation, s')
    return figure


def _error(report: Mapping) -> Figure:
    figure, (left, right) = _figure(1, 2.8, columns=2)
    groups = []
    for key, colour in zip('ab', _COLOURS, strict=True):
        run = report[key]
        if run and run['actions']:
            groups.append((f"{run['label']} - bag", colour, run['actions']['error']))
    if report['difference']:
        groups.append((f"{report['b']['label']} - {report['a']['label']}", '#3d405b',
                       report['difference']['error']))
    width = 0.8 / len(groups)
    for index, (label, colour, rows) in enumerate(groups):
        for axis, kind in ((left, 'translation'), (right, 'rotation')):
            rows_of = [row for row in rows if row['kind'] == kind and row['count']]
            x = np.arange(len(rows_of)) + (index - (len(groups) - 1) / 2) * width
            mean = np.array([row['mean'] * 1e3 for row in rows_of])
            p95 = np.array([row['p95'] * 1e3 for row in rows_of])
            axis.bar(x, mean, width * 0.9, color=colour, label=label)
            axis.errorbar(x, mean, yerr=[np.zeros_like(mean), np.maximum(p95 - mean, 0)],
                          fmt='none', ecolor=colour, capsize=3)
            axis.set_xticks(range(len(rows_of)), [row['axis'] for row in rows_of])
    left.set_ylabel('translation, mm')
    right.set_ylabel('rotation, mrad')
    _legend_above(figure, left, columns=3)
    return figure


def _commands(traces: Sequence[Trace], actions: Actions, start_ns: int) -> Figure:
    figure, axes = _figure(4, 6.4, sharex=True)
    series = []
    if len(actions.target_ns):
        series.append(('bag', _BAG, actions.target_ns, actions.delta, actions.gripper))
    for trace, colour in zip(traces, _COLOURS, strict=False):
        sent = sent_actions(trace)
        series.append(
            (trace.label, colour, sent['target_ns'], sent['delta'], sent['gripper']))
    for label, colour, target_ns, delta, gripper in series:
        if not len(target_ns):
            continue
        time_s, delta, gripper = _thin(_seconds(target_ns, start_ns), delta, gripper)
        gaps = np.flatnonzero(np.diff(time_s) > 1.5 * traces[0].period_ns / 1e9
                              * max(1, len(target_ns) / _MOST_POINTS)) + 1
        time_s = np.insert(time_s, gaps, np.nan)
        style = {'color': colour, 'label': label, 'alpha': 0.9,
                 'linewidth': 2.2 if label == 'bag' else 1.0}
        for column in range(3):
            axes[column].plot(time_s, np.insert(delta[:, column] * 1e3, gaps, np.nan), **style)
        axes[3].plot(time_s, np.insert(gripper, gaps, np.nan), drawstyle='steps-post', **style)
    for axis, (name, _, _) in zip(axes[:3], AXES[:3], strict=True):
        axis.set_ylabel(f'{name}, mm')
    axes[3].set(ylabel='gripper', ylim=(-0.1, 1.1), xlabel='end of the control period, s')
    axes[3].set_yticks([0, 1], ['closed', 'open'])
    _legend_above(figure, axes[0], columns=3)
    return figure


def _tokens(traces: Sequence[Trace], start_ns: int) -> Figure:
    figure, (axis,) = _figure(1, 2.6)
    for trace, colour in zip(traces, _COLOURS, strict=False):
        time_s = _seconds([i.stamp_ns for i in trace.inferences], start_ns)
        for camera, style in zip(trace.grids, ('-', ':'), strict=False):
            kept = np.array([int(np.unpackbits(i.kept[camera]).sum()) for i in trace.inferences])
            axis.plot(*_thin(time_s, kept), style, color=colour, linewidth=1.2,
                      label=f'{trace.label}, {camera}')
    axis.set(xlabel='time of the observation, s', ylabel='tokens kept')
    axis.set_ylim(bottom=0)
    _legend_above(figure, axis, columns=2)
    return figure


def _latency(traces: Sequence[Trace]) -> Figure:
    figure, (left, right) = _figure(1, 2.9, columns=2)
    totals = [np.array([sum(i.stage_ms.values()) for i in t.inferences]) for t in traces]
    top = max(np.percentile(total, 99) for total in totals)
    bins = np.linspace(0, max(top * 1.1, 1.0), 40)
    stages = list(dict.fromkeys(s for t in traces for s in t.inferences[0].stage_ms))
    for index, (trace, total, colour) in enumerate(zip(traces, totals, _COLOURS, strict=False)):
        left.hist(np.minimum(total, bins[-1]), bins, color=colour, alpha=0.6, label=trace.label)
        medians = [np.median([i.stage_ms.get(s, 0.0) for i in trace.inferences]) for s in stages]
        right.barh(np.arange(len(stages)) + (index - (len(traces) - 1) / 2) * 0.38, medians, 0.36,
                   color=colour)
    if bins[-1] > FRAME_INTERVAL_MS:
        left.axvline(FRAME_INTERVAL_MS, color='black', linewidth=0.9, linestyle='--')
    left.set(xlabel='inference, ms', ylabel='inferences')
    right.set_yticks(range(len(stages)), stages)
    right.invert_yaxis()
    right.set_xlabel('median of the stage, ms')
    _legend_above(figure, left, columns=2)
    return figure


def _timing(traces: Sequence[Trace], start_ns: int) -> Figure:
    overlapping = any(np.isfinite(chunk_disagreement(trace)).any() for trace in traces)
    figure, axes = _figure(2 + overlapping, 3.4 + 1.5 * overlapping, sharex=True)
    age, spread = axes[:2]
    for trace, colour in zip(traces, _COLOURS, strict=False):
        sent = sent_actions(trace)
        dots = {'color': colour, 'markersize': 3, 'label': trace.label}
        age.plot(*_thin(_seconds(sent['time_ns'], start_ns),
                        (sent['time_ns'] - sent['observation_ns']) / 1e6), '.', **dots)
        time_s = _seconds([i.stamp_ns for i in trace.inferences], start_ns)
        spread.plot(*_thin(time_s, np.array([i.spread_ns / 1e6 for i in trace.inferences])), '.',
                    **dots)
        if overlapping:
            axes[2].plot(*_thin(time_s, chunk_disagreement(trace)), '.', **dots)
    age.set_ylabel('age, ms')
    spread.set_ylabel('camera spread, ms')
    if overlapping:
        axes[2].set_ylabel('to the last chunk,\naction units')
    axes[-1].set_xlabel('time, s')
    for axis in axes:
        axis.set_ylim(bottom=0)
    _legend_above(figure, age, columns=2)
    return figure
