"""Draws the table of methods: a line for each, by what it saves, with its time and its success."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vla_policy_node import acceleration
from vla_policy_node.acceleration.declarations import DROPS, Effect
from vla_policy_node.drawing.palette import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
)

DPI = 150
_SIGNIFICANT = 0.05
_OTHER = 'other weights'
# In this order; what a method does first in it is what it is grouped by. Each group has a heading,
# so colours only help; text is black and dots have a dark rim, as some are pale on white.
_GROUPS: tuple[tuple[str, frozenset[Effect], str], ...] = (
    ('denoising steps', frozenset({Effect.REUSES_DENOISING}), PURPLE),
    ('keys and values', frozenset({Effect.REUSES_KEYS_VALUES}), ORANGE),
    ('features of the last frame', frozenset({Effect.REUSES_FEATURES}), VERMILION),
    ('visual tokens', frozenset(DROPS), BLUE),
    ('whole inferences', frozenset({Effect.ANSWERS_STEPS}), SKY),
    ('layers', frozenset(
        {Effect.CHANGES_WEIGHTS, Effect.SKIPS_LAYERS, Effect.EXITS_EARLY}), GREEN),
)
_COLOURS = {'dense': BLACK, **{name: colour for name, _, colour in _GROUPS},
            _OTHER: BLACK, 'several at once': GREY}
_RIM = '#333333'
_LINE_IN, _HEAD_IN = 0.2, 1.3  # heights in the picture
_TITLE_CHARACTERS = 90  # of a line


def draw_methods(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a panel for each model; rows: those of methods.json that were measured.

    A filled dot of success differs from dense: McNemar, corrected by Holm for all rows, 5 %.
    """
    models = list(dict.fromkeys(row['model'] for row in rows))
    panels = [_ordered([row for row in rows if row['model'] == model]) for model in models]
    heights = [_HEAD_IN + _LINE_IN * len(lines) for lines in panels]
    figure = Figure(figsize=(9.2, sum(heights)), layout='constrained', dpi=DPI)
    parts = figure.subfigures(len(models), squeeze=False, height_ratios=heights)
    for part, model, lines in zip(parts.flat, models, panels, strict=True):
        axes = part.subplots(1, 2, sharey=True)
        _draw_time(axes[0], lines)
        (_draw_success if _is_judged(lines) else _draw_change)(axes[1], lines)
        _name_lines(axes[0], lines)
        part.suptitle(_title(model, lines), fontsize=10)
    FigureCanvasAgg(figure).print_png(path)


def group_of(label: str) -> str:
    """Return what a method saves, in words, as configured by default.

    label: as `parse_contender` reads it.
    """
    methods, _, checkpoint = label.partition('@')
    names = [part.partition(':')[0].strip() for part in methods.split('+')]
    if names == ['dense']:
        return _OTHER if checkpoint else 'dense'
    if len(names) > 1:
        return 'several at once'
    does = acceleration.create(names[0]).does
    return next((name for name, effects, _ in _GROUPS if effects & does), _OTHER)


def _is_judged(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all rows have episodes."""
    return all(row['episodes'] for row in lines if 'method' in row)


def _ordered(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return lines from top to bottom: headings and rows, the fastest of a heading first.

    A heading has a `heading` and no method. With success, it is what methods save; without, as for
    a sweep of constants, the method whose settings follow.
    """
    differs = {row['method']: row['against_dense']['p_holm'] < _SIGNIFICANT
               for row in rows if row.get('against_dense')}
    by_group = _is_judged(rows)
    lines: list[dict[str, Any]] = []
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        group = group_of(row['method'])
        heading = group if by_group else row['method'].partition(':')[0]
        found.setdefault(([*_COLOURS].index(group), heading), []).append(
            {**row, 'group': group, 'differs': differs.get(row['method'], False)})
    for (_, heading), members in sorted(found.items()):
        if len(members) > 1 or (by_group and heading != 'dense'):
            lines.append({'heading': heading, 'group': members[0]['group']})
        lines += sorted(members, key=lambda row: row['latency_ms'])
    return lines


def _title(model: str, lines: Sequence[Mapping[str, Any]]) -> str:
    first = next(row for row in lines if 'method' in row)
    context = first.get('context') or next(
        (row['context'] for row in lines if 'context' in row), None)
    if context is None:
        return model
    untrained = '' if context['checkpoint']['trained'] else ', UNTRAINED'
    load = context['load']
    what = (f'{model}{untrained}: {context["suite"]}, {context["split"]} layouts, '
            f'{context["checkpoint"]["architecture"]}')
    return (f'{fill(what, _TITLE_CHARACTERS)}\n'
            f'load of the machine {load["mean"]:.1f} on {load["cores"]} cores')


def _measured(lines: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any], str]]:
    """Return place, row and colour of the lines that are rows."""
    return [(place, row, _COLOURS[row['group']]) for place, row in enumerate(lines)
            if 'method' in row]


def _draw_time(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    for place, row, colour in _measured(lines):
        _draw_range(axes, row['latency_ms'], row['latency_p95_ms'], place)
        _draw_dot(axes, row['latency_ms'], place, colour)
    axes.set_xlim(left=0)
    clock = next(row['clock'] for row in lines if 'method' in row)
    axes.set_xlabel(f'one inference, ms of {clock} time,\nmedian to 95th percentile', fontsize=9)
    _guide(axes, next(row['latency_ms'] for row in lines if row.get('group') == 'dense'))


def _draw_success(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    for place, row, colour in _measured(lines):
        _draw_range(axes, 100 * row['wilson_low'], 100 * row['wilson_high'], place)
        _draw_dot(axes, 100 * row['success_rate'], place,
                  colour if row.get('differs') else 'white')
    axes.set_xlim(-3, 103)
    axes.set_xlabel('success, %, and its 95 % interval', fontsize=9)
    _guide(axes, 100 * next(
        row['success_rate'] for row in lines if row.get('group') == 'dense'))


def _draw_change(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    """Without episodes: how far actions are from the plain model's, on a logarithmic axis."""
    for place, row, colour in _measured(lines):
        if row['action_change_mean'] > 0:
            _draw_dot(axes, row['action_change_mean'], place, colour)
    axes.set_xscale('log')
    axes.set_xlabel('mean change of the actions, of their range', fontsize=9)


def _draw_range(axes: Axes, low: float, high: float, place: int) -> None:
    axes.plot([low, high], [place, place], '-', color=_RIM, linewidth=0.9)


def _draw_dot(axes: Axes, value: float, place: int, colour: str) -> None:
    axes.plot(value, place, 'o', color=_RIM, markersize=6, markeredgewidth=0.8,
              markerfacecolor=colour)


def _guide(axes: Axes, value: float) -> None:
    """Draw where the plain model is."""
    axes.axvline(value, color=BLACK, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)


def _name_lines(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the method of each row at the left, and headings in bold."""
    axes.set_yticks(
        np.arange(len(lines)),
        [_short(row['method']) if 'method' in row else row['heading'] for row in lines],
        fontsize=8.5)
    for label, row in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight('normal' if 'method' in row else 'bold')
    axes.set_ylim(len(lines) - 0.4, -0.6)
    for each in axes.get_figure().axes:
        each.tick_params(axis='y', length=0)
        each.tick_params(axis='x', labelsize=8.5)
        each.grid(axis='x', color='#dddddd', linewidth=0.6)
        each.set_axisbelow(True)
        each.spines[['top', 'right', 'left']].set_visible(False)


def _short(label: str) -> str:
    """Return a label without the folder that `vla train` puts a checkpoint into."""
    return label.removesuffix('/checkpoint').replace('@checkpoints/', ' @ ').replace(
        '@runs/', ' @ ')
