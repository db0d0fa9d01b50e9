"""`vla dataset info`: what a LeRobot dataset holds, as tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from vla_policy_node.common.printable import printable
from vla_policy_node.common.terminal import fitted
from vla_policy_node.lerobot.info import AUTOMATIC, Feature
from vla_policy_node.lerobot.reader import LeRobotReader

_SHOWN = 20  # tasks


def dataset_info(folder: Path, console: Console) -> None:
    """Print the tables. Raises ValueError with one sentence for what cannot be read."""
    dataset = LeRobotReader(folder)
    info = dataset.info
    lengths = [episode.length for episode in dataset.episodes]
    robot = f', robot {info.robot}' if info.robot else ''
    console.print(printable(
        f'{folder}: {len(lengths)} episodes of {min(lengths)} to {max(lengths)} rows (median '
        f'{np.median(lengths):.0f}), {info.fps:g} rows per second, '
        f'{sum(lengths) / info.fps:.1f} s{robot}'), soft_wrap=True)
    table = Table('feature', 'holds', 'names')
    for key, feature in info.features.items():
        if key not in AUTOMATIC:
            table.add_row(printable(key), _holds(feature),
                          '' if feature.is_camera else printable(', '.join(feature.names)))
    console.print(fitted(table))
    tasks = Table('', 'task')
    for number, task in enumerate(dataset.tasks[:_SHOWN]):
        tasks.add_row(str(number), printable(task))
    console.print(fitted(tasks, names=1))
    if len(dataset.tasks) > _SHOWN:
        console.print(f'{len(dataset.tasks) - _SHOWN} more tasks.')
    if not info.cameras:
        console.print('It has no pictures, so no policy can learn from it.')


def _holds(feature: Feature) -> str:
    sides = ' x '.join(map(str, feature.shape))
    if feature.is_camera:
        return f'pictures {sides}, {"video" if feature.is_video else "lossless"}'
    return f'{sides} {feature.dtype}'
