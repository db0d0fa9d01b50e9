"""Plots of an evaluation: success with intervals, tokens by task and phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vla_policy_node.evaluation.progress import PHASES

DPI = 150


def plot_names(prefix: str = '') -> list[str]:
    """Return the names of the files that `write_plots` writes."""
    return [f'{prefix}success.png', f'{prefix}tokens.png']


def write_plots(document: Mapping, directory: Path, prefix: str = '') -> list[Path]:
    """Write success.png and tokens.png, or with `prefix`; document: what `summarise` returns.

    The names must have been claimed.
    """
    names = plot_names(prefix)
    for name, figure in zip(names, (success_figure, tokens_figure), strict=True):
        FigureCanvasAgg(figure(document)).print_png(directory / name)
    return [directory / name for name in names]


def success_figure(document: Mapping) -> Figure:
    """Draw the success rate of each method with its 95 % interval."""
    totals = document['totals'][::-1]  # bars are drawn from bottom to top
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(totals)), layout='constrained', dpi=DPI)
    axes = figure.subplots()
    rates = np.array([100 * (total['success_rate'] or 0) for total in totals])
    low = np.array([100 * total['wilson_low'] for total in totals])
    high = np.array([100 * total['wilson_high'] for total in totals])
    axes.barh(range(len(totals)), rates, 0.6)
    axes.errorbar(rates, range(len(totals)), xerr=[rates - low, high - rates], fmt='none',
                  ecolor='black', capsize=3)
    axes.set_yticks(range(len(totals)), [total['method'] for total in totals])
    control = '' if document['control'] == 'none' else f', control: {document["control"]}'
    axes.set(xlim=(0, 100), xlabel='success, % (95 % interval)',
             title=f'{document["suite"]}, {document["layout"]} layouts{control}')
    return figure


def tokens_figure(document: Mapping) -> Figure:
    """Draw the visual tokens kept, by task and by phase, a bar per method that drops any."""
    figure = Figure(figsize=(11, 6), layout='constrained', dpi=DPI)
    by_task, by_phase = figure.subplots(2, 1)
    totals = [total for total in document['totals']
              if total['tokens'] != total['tokens_total']] or document['totals']
    labels = [total['method'] for total in totals]
    tasks = list(dict.fromkeys(row['task_id'] for row in document['rows']))
    tokens = {(row['method'], row['task_id']): row['tokens'] for row in document['rows']}
    _grouped(by_task, labels, [f'task {task}' for task in tasks],
             [[tokens.get((label, task)) for task in tasks] for label in labels])
    _grouped(by_phase, labels, PHASES,
             [[total['tokens_by_phase'][phase] for phase in PHASES] for total in totals])
    by_task.set(title=f'Visual tokens kept of {totals[0]["tokens_total"]}, by task')
    by_phase.set(title='by phase of the episode')
    by_task.legend(loc='upper left', bbox_to_anchor=(1, 1), fontsize=8)
    return figure


def _grouped(axes, labels: Sequence[str], groups: Sequence[str], values) -> None:
    width = 0.8 / len(labels)
    for index, (label, heights) in enumerate(zip(labels, values, strict=True)):
        places = np.arange(len(groups)) + (index - (len(labels) - 1) / 2) * width
        axes.bar(places, [height or 0 for height in heights], width, label=label)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel('tokens')
