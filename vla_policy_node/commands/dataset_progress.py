"""The bar under which all work on datasets runs, and what an interruption says."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vla_policy_node.training.dataset_import import Imported


def follow(run: Generator[Imported, None, None], rows: int, console: Console) -> int:
    """Run to the end under a bar of `rows`; returns how many episodes were written.

    A KeyboardInterrupt says that the same command goes on from there.
    """
    new = 0
    bars = Progress(
        TextColumn('{task.description}'), BarColumn(20), MofNCompleteColumn(),
        TextColumn('left:'), TimeRemainingColumn(), console=console)
    try:
        with bars, closing(run) as episodes:
            bar = bars.add_task('rows', total=rows)
            for episode in episodes:
                new += episode.new
                bars.advance(bar, episode.rows)
    except KeyboardInterrupt:
        raise KeyboardInterrupt('Interrupted; the same command goes on from here.') from None
    return new
