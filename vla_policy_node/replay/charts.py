"""Draws the charts of a report, for wide pages and for narrow ones.

Where several lines may cover each other, each is thinner than the one before, so none is hidden.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vla_policy_node.drawing.palette import APART, BLACK, POLICIES, RECORDED
from vla_policy_node.replay.actions import Actions
from vla_policy_node.replay.compare import PairedInference
from vla_policy_node.replay.metrics import (
    AXES,
    FRAME_INTERVAL_MS,
    chunk_disagreement,
    sent_actions,
)
from vla_policy_node.replay.trace import Trace

# More points than pixels only make a plot slow.
_MOST_POINTS = 4000
_PAUSE = 3.0  # of the median interval; over more than this no line is drawn
_WIDTHS = (2.8, 1.1)  # of the lines of the two policies
_RECORDED_WIDTH = 4.8
_DOTS = (6.5, 3.0)
_LONGEST_LABEL = 36  # characters; what is longer has several lines


@dataclass(frozen=True)
class Page:
    """The width that a chart is drawn for, and the pixels for each of its inches."""

    width_in: float
    dpi: int

    @property
    def is_narrow(self) -> bool:
        """Whether panels are above each other that would else be side by side."""
        return self.width_in < 6.0


WIDE = Page(8.6, 160)
NARROW = Page(3.7, 200)


def png(figure: Figure) -> bytes:
    """Return a chart as a picture; the same bytes for the same chart."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def difference(pairs: Sequence[PairedInference], start_ns: int, page: Page) -> Figure:
    """How far the two chunks of each observation are apart."""
    figure, (top, bottom) = _figure(page, 2, 3.6, sharex=True)
    firsts = [p.first for p in pairs]
    for axis, values, unit in (
            (top, [p.translation_m * 1e3 for p in pairs], 'translation, mm'),
            (bottom, [p.rotation_rad * 1e3 for p in pairs], 'rotation, mrad')):
        axis.plot(*with_pauses(seconds_of(firsts, start_ns), epochs_of(firsts), values), '.-',
                  color=APART, linewidth=0.9, markersize=3)
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
    bottom.set_xlabel('time of the observation, s')
    return figure


def error(report: Mapping, page: Page) -> Figure:
    """Error by axis, to the actions of the bag and between the two policies."""
    figure, (left, right) = _figure(page, 1, 2.8, columns=2)
    groups = error_groups(report)
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


def error_groups(report: Mapping) -> list[tuple[str, str, list]]:
    """Return label, colour and rows of everything that `error` shows."""
    groups = []
    for key, colour in zip('ab', POLICIES, strict=True):
        run = report[key]
        if run and run['actions']:
            groups.append((f"{run['label']} - bag", colour, run['actions']['error']))
    if report['difference']:
        groups.append((f"{report['b']['label']} - {report['a']['label']}", APART,
                       report['difference']['error']))
    return groups


def commands(traces: Sequence[Trace], actions: Actions, start_ns: int, page: Page) -> Figure:
    """What was sent in each control period, beside what was recorded."""
    figure, axes = _figure(page, 4, 6.4, sharex=True)
    series = []
    if len(actions.target_ns):
        of_one = np.zeros(len(actions.target_ns))  # nobody says to which goal they belong
        series.append(('bag', RECORDED, _RECORDED_WIDTH, actions.target_ns, of_one,
                       actions.delta, actions.gripper))
    for trace, colour, width in zip(traces, POLICIES, _WIDTHS, strict=False):
        sent = sent_actions(trace)
        series.append((trace.label, colour, width, sent['target_ns'], sent['epoch'],
                       sent['delta'], sent['gripper']))
    for label, colour, width, target_ns, epoch, delta, gripper in series:
        if not len(target_ns):
            continue
        time_s = seconds(target_ns, start_ns)
        style = {'color': colour, 'label': label, 'linewidth': width}
        most = 1.5 * traces[0].period_ns / 1e9
        for column in range(3):
            axes[column].plot(*with_pauses(time_s, epoch, delta[:, column] * 1e3, most), **style)
        axes[3].plot(*with_pauses(time_s, epoch, gripper, most), drawstyle='steps-post', **style)
    for axis, (name, _, _) in zip(axes[:3], AXES[:3], strict=True):
        axis.set_ylabel(f'{name}, mm')
    axes[3].set(ylabel='gripper', ylim=(-0.1, 1.1), xlabel='end of the control period, s')
    axes[3].set_yticks([0, 1], ['closed', 'open'])
    _legend_above(figure, axes[0], columns=3)
    return figure


def tokens(traces: Sequence[Trace], start_ns: int, page: Page) -> Figure:
    """Visual tokens of each camera that entered the language model."""
    cameras = list(dict.fromkeys(camera for trace in traces for camera in trace.grids))
    figure, axes = _figure(page, len(cameras), 0.8 + 1.5 * len(cameras), sharex=True)
    for axis, camera in zip(axes, cameras, strict=True):
        for trace, colour, width in zip(traces, POLICIES, _WIDTHS, strict=False):
            if camera in trace.grids:
                axis.plot(*with_pauses(seconds_of(trace.inferences, start_ns),
                                       epochs_of(trace.inferences), kept_of(trace, camera)),
                          color=colour, linewidth=width, label=trace.label)
        axis.set_ylabel(f'{camera.replace("_", " ")},\ntokens kept')
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel('time of the observation, s')
    _legend_above(figure, axes[0], columns=2)
    return figure


def latency(traces: Sequence[Trace], page: Page) -> Figure:
    """Wall times: all of them, and the median of each stage."""
    figure, (left, right) = _figure(page, 1, 2.9, columns=2)
    totals = [totals_ms(trace) for trace in traces]
    top = max(np.percentile(total, 99) for total in totals)
    bins = np.linspace(0, max(top * 1.1, 1.0), 40)
    stages = list(dict.fromkeys(s for t in traces for s in t.inferences[0].stage_ms))
    for index, (trace, total, colour) in enumerate(zip(traces, totals, POLICIES, strict=False)):
        clipped = np.minimum(total, bins[-1])
        left.hist(clipped, bins, color=colour, alpha=0.25)
        left.hist(clipped, bins, color=colour, histtype='step', linewidth=_WIDTHS[index])
        medians = [np.median([i.stage_ms.get(s, 0.0) for i in trace.inferences]) for s in stages]
        right.barh(np.arange(len(stages)) + (index - (len(traces) - 1) / 2) * 0.38, medians, 0.36,
                   color=colour, label=trace.label)
    if bins[-1] > FRAME_INTERVAL_MS:
        left.axvline(FRAME_INTERVAL_MS, color=BLACK, linewidth=0.9, linestyle='--')
    left.set(xlabel='inference, ms', ylabel='inferences')
    right.set_yticks(range(len(stages)), [stage.replace('_', ' ') for stage in stages])
    right.invert_yaxis()
    right.set_xlabel('median of the stage, ms')
    _legend_above(figure, right, columns=2)
    return figure


def timing(traces: Sequence[Trace], start_ns: int, page: Page) -> Figure:
    """Age of what was acted on, distance of the cameras, and of each chunk to the last."""
    overlapping = has_overlaps(traces)
    figure, axes = _figure(page, 2 + overlapping, 3.4 + 1.5 * overlapping, sharex=True)
    age, spread = axes[:2]
    for trace, colour, size in zip(traces, POLICIES, _DOTS, strict=False):
        sent = sent_actions(trace)
        dots = {'color': colour, 'markersize': size, 'label': trace.label,
                'markeredgewidth': 0.0}
        age.plot(*_thin(seconds(sent['time_ns'], start_ns),
                        (sent['time_ns'] - sent['observation_ns']) / 1e6), 'o', **dots)
        time_s = seconds_of(trace.inferences, start_ns)
        spread.plot(*_thin(time_s, np.array([i.spread_ns / 1e6 for i in trace.inferences])), 'o',
                    **dots)
        if overlapping:
            axes[2].plot(*_thin(time_s, chunk_disagreement(trace)), 'o', **dots)
    age.set_ylabel('age, ms')
    spread.set_ylabel('cameras\napart, ms')
    if overlapping:
        axes[2].set_ylabel('to the last chunk,\naction units')
    axes[-1].set_xlabel('time, s')
    for axis in axes:
        axis.set_ylim(bottom=0)
    _legend_above(figure, age, columns=2)
    return figure


def seconds(stamps_ns, start_ns: int) -> np.ndarray:
    """Return stamps as seconds after the start."""
    return (np.asarray(stamps_ns, np.int64) - start_ns) / 1e9


def seconds_of(inferences: Sequence, start_ns: int) -> np.ndarray:
    """Return when the observations of inferences were made, seconds after the start."""
    return seconds([i.stamp_ns for i in inferences], start_ns)


def epochs_of(inferences: Sequence) -> np.ndarray:
    """Return to which goal each inference belongs."""
    return np.array([i.epoch for i in inferences])


def kept_of(trace: Trace, camera: str) -> np.ndarray:
    """Return how many tokens of a camera each inference kept."""
    return np.array([int(np.unpackbits(i.kept[camera]).sum()) for i in trace.inferences])


def totals_ms(trace: Trace) -> np.ndarray:
    """Return the wall time of each inference."""
    return np.array([sum(i.stage_ms.values()) for i in trace.inferences])


def has_overlaps(traces: Sequence[Trace]) -> bool:
    """Whether any chunk predicts a period that the one before predicted too."""
    return any(np.isfinite(chunk_disagreement(trace)).any() for trace in traces)


def with_pauses(
    time_s: np.ndarray, epoch: np.ndarray, values, most_s: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return a line with a gap (NaN) between two goals, and where nothing came for long.

    most_s: the longest interval that a line is drawn over; None for three times the median one.
    """
    step = _step(time_s)
    time_s, epoch, values = (
        np.asarray(column, float)[::step] for column in (time_s, epoch, values))
    interval_s = np.diff(time_s)
    longest_s = most_s * step if most_s else (
        _PAUSE * np.median(interval_s) if len(interval_s) else 0.0)
    gaps = np.flatnonzero((interval_s > longest_s) | (np.diff(epoch) != 0)) + 1
    return np.insert(time_s, gaps, np.nan), np.insert(values, gaps, np.nan)


def _thin(*columns: np.ndarray) -> list[np.ndarray]:
    return [column[::_step(columns[0])] for column in columns]


def _step(column: np.ndarray) -> int:
    return -(-len(column) // _MOST_POINTS) or 1


def _figure(page: Page, rows: int, height: float, columns: int = 1, **options):
    if page.is_narrow and columns > 1:
        rows, columns, height = rows * columns, 1, 1.7 * height
    figure = Figure(figsize=(page.width_in, height), layout='constrained', dpi=page.dpi)
    axes = np.atleast_1d(figure.subplots(rows, columns, **options)).ravel()
    for axis in axes:
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def _legend_above(figure: Figure, axes, columns: int) -> None:
    # The layout leaves no room for the legend of a figure: `loc='outside ...'` needs a matplotlib
    # (3.7) that Ubuntu 24.04 does not have.
    renderer = FigureCanvasAgg(figure).get_renderer()
    handles, labels = axes.get_legend_handles_labels()
    labels = [fill(label, _LONGEST_LABEL) for label in labels]
    for count in range(columns, 0, -1):  # as many beside each other as there is room for
        legend = figure.legend(handles, labels, loc='upper center', ncols=count, frameon=False)
        extent = legend.get_window_extent(renderer)
        if count == 1 or extent.width <= figure.bbox.width:
            break
        legend.remove()
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - extent.height / figure.bbox.height))
