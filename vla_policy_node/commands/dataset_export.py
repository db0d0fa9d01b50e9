"""`vla dataset export`: a LeRobot dataset from demonstrations, with a progress bar."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from vla_policy_node.commands.dataset_progress import follow
from vla_policy_node.training.dataset_export import DatasetExport
from vla_policy_node.training.dataset_import import FRESH
from vla_policy_node.training.demonstrations import Demonstrations


def export_dataset(
    demos: Path, out: Path, lossless: bool, robot: str, console: Console
) -> None:
    """Export and report. ValueError with one sentence says what cannot be done."""
    work = DatasetExport(Demonstrations(demos), out, lossless, robot)
    new = follow(work.run(), sum(work.steps), console)
    console.print(f'{out}: {len(work.steps)} episodes of {sum(work.steps)} rows at '
                  f'{work.plan.fps} Hz, {new} of them new.', soft_wrap=True)
    if any(feature.key == FRESH for feature in work.plan.features):
        console.print(f'Pictures were not taken in every step: where {FRESH} is false, the last '
                      'one is held.', soft_wrap=True)
    if not lossless:
        console.print('Videos are lossy: what is imported again is not what was recorded. '
                      '--images loses nothing.', soft_wrap=True)
