"""The line that shows how far a training run is."""

from __future__ import annotations

from rich import progress
from rich.console import Console
from rich.table import Column

from vla_policy_node.training.config import TrainingConfig

SHOWN = ('loss', 'action', 'action_xyz', 'action_gripper', 'point_mm', 'readout_mm', 'tokens')
SMOOTHING = 0.98


class Progress:
    """Steps, time left and losses, smoothed; nothing at all where `shown` is false."""

    def __init__(self, config: TrainingConfig, shown: bool, console: Console | None = None):
        self._total = config.steps
        self._smooth: dict[str, float] = {}
        self._task = None
        # Where the terminal is narrow, the last losses are cut, and no number before them.
        self._bar = progress.Progress(
            progress.TextColumn(f'[bold]{config.stage}', table_column=Column(no_wrap=True)),
            progress.MofNCompleteColumn(table_column=Column(no_wrap=True)),
            progress.TimeRemainingColumn(
                compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)),
            progress.TextColumn('{task.fields[losses]}', table_column=Column(
                no_wrap=True, overflow='ellipsis', ratio=1)),
            console=console, disable=not shown, expand=True,
        )

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, step: int, losses: dict[str, float]) -> None:
        """Show a step that is done."""
        for name in SHOWN:
            if name in losses and losses[name] == losses[name]:
                old = self._smooth.setdefault(name, losses[name])
                self._smooth[name] = SMOOTHING * old + (1 - SMOOTHING) * losses[name]
        text = '  '.join(f'{name} {value:.3g}' for name, value in self._smooth.items())
        if self._task is None:
            self._task = self._bar.add_task('', total=self._total, losses='')
        self._bar.update(self._task, completed=step, losses=text)
