"""Plots of an evaluation: success with intervals, tokens by task and phase."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vla_policy_node.drawing.palette import BLUE
from vla_policy_node.evaluation.progress import PHASES

DPI = 150
_LONGEST = 26  # characters of a task's name


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
    axes.errorbar(rates, range(len(totals)), xerr=[rates - low, high - rates], fmt='o',
                  color=BLUE, ecolor=BLUE, elinewidth=1.2)
    axes.grid(axis='x', color='#dddddd', linewidth=0.6)
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_yticks(range(len(totals)), [total['method'] for total in totals])
    axes.set(xlim=(0, 100), xlabel='success, % (95 % interval)')
    axes.set_title(_run_of(document), fontsize=9)
    return figure


def tokens_figure(document: Mapping) -> Figure:
    """Draw the visual tokens kept, by task and by phase: a line per method that drops any.

    Every cell has its number, so nothing is read off a colour alone; an empty one has none.
    """
    totals = [total for total in document['totals']
              if total['tokens'] != total['tokens_total']] or document['totals']
    labels = [total['method'] for total in totals]
    names = {row['task_id']: _object_of(row['instruction']) for row in document['rows']}
    tokens = {(row['method'], row['task_id']): row['tokens'] for row in document['rows']}
    values = np.array([
        [*(tokens.get((total['method'], task)) for task in names),
         *(total['tokens_by_phase'][phase] for phase in PHASES)] for total in totals], float)
    height = 1.9 + 0.28 * len(labels)
    figure = Figure(figsize=(9.2, height), layout='constrained', dpi=DPI)
    axes = figure.subplots()
    axes.imshow(values, cmap='Blues', vmin=0, vmax=1.6 * np.nanmax(values), aspect='auto')
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(column, row, f'{value:.0f}', ha='center', va='center', fontsize=8.5)
    axes.axvline(len(names) - 0.5, color='white', linewidth=5)
    axes.set_yticks(range(len(labels)), labels, fontsize=8.5)
    axes.set_xticks(range(values.shape[1]), [*names.values(), *PHASES], rotation=40, ha='left',
                    rotation_mode='anchor', fontsize=8.5)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f'visual tokens kept of {totals[0]["tokens_total"]}, mean: by task, then by '
                    f'phase of the episode\n{_run_of(document)}', fontsize=9)
    return figure


def _run_of(document: Mapping) -> str:
    """Return what was run, when, and with which code, in two lines."""
    control = '' if document['control'] == 'none' else f', control: {document["control"]}'
    machine = document['machine']
    return (f'{document["suite"]}, {document["layout"]} layouts{control}, '
            f'{document["checkpoint"]["name"]}\n{machine["date"]}, {machine["code"]}')


def _object_of(instruction: str) -> str:
    """Return the thing that a task is about, in as few words as tell it from the others."""
    words = instruction.removeprefix('pick up the ').partition(' and place ')[0]
    return words if len(words) <= _LONGEST else f'{words[:_LONGEST - 1].rstrip()}…'
