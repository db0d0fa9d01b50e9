"""`vla demos`: scripted demonstrations, with a progress bar."""

from contextlib import closing
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vla_policy_node.training.dataset_statistics import write_statistics
from vla_policy_node.training.demonstration_set import make
from vla_policy_node.training.demonstrations import Demonstrations
from vla_policy_node.training.recording import RecordingRecipe


def make_demonstrations(
    directory: Path, recipe: RecordingRecipe, count: int, seed: int, workers: int,
    console: Console,
) -> None:
    """Fill the folder and report. ValueError says what cannot be done."""
    kept, new, discarded, steps = 0, 0, 0, []
    columns = (
        TextColumn('demonstrations'), BarColumn(20), MofNCompleteColumn(),
        TextColumn('{task.fields[discarded]} discarded'), TextColumn('left:'),
        TimeRemainingColumn(),
    )
    interrupted = False
    try:
        attempts = make(directory, recipe, count, seed, workers)
        with Progress(*columns, console=console) as progress, closing(attempts):
            bar = progress.add_task('', total=count, discarded=0)
            for attempt in attempts:
                kept += attempt.kept
                discarded += not attempt.kept
                if attempt.kept and attempt.new:
                    new += 1
                    steps.append(attempt.steps)
                progress.update(bar, completed=kept, discarded=discarded)
    except KeyboardInterrupt:
        interrupted = True
    if kept:
        write_statistics(Demonstrations(directory))
    lengths = f'; {np.mean(steps):.0f} control steps on average' if steps else ''
    console.print(
        f'{directory}: {kept} demonstrations, {new} of them new{lengths}; the expert failed on '
        f'{discarded} of {kept + discarded} layouts.', markup=False, soft_wrap=True)
    if interrupted:
        raise KeyboardInterrupt('Interrupted; the same command goes on from here.')
