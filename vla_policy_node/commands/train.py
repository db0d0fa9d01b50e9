"""`vla train`: one stage of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vla_policy_node.common.plain_yaml import parse_plain_yaml
from vla_policy_node.system.files import share_directory, untrained_checkpoint
from vla_policy_node.training import stages
from vla_policy_node.training.config import TrainingConfig, read_training_config
from vla_policy_node.training.stage_run import Run, train
from vla_policy_node.training.stages.grounding import sizes_of


def stage_config(stage: str, path: Path | None, changes: Sequence[str]) -> TrainingConfig:
    """Read the stage's YAML, or `path`, with changes like 'steps=100' on top."""
    stage = stages.current_name(stage)
    shipped = share_directory() / 'config' / 'training' / f'{stage}.yaml'
    if path is None and not shipped.is_file():
        known = ', '.join(sorted(file.stem for file in shipped.parent.glob('*.yaml')))
        raise ValueError(f'There is no stage {stage!r}; choose {known}, or give --config.')
    parsed = {}
    for change in changes:
        name, equals, value = change.partition('=')
        if not equals:
            raise ValueError(f"--set takes entry=value, e.g. steps=100, not '{change}'.")
        parsed[name] = parse_plain_yaml(value, f'The value of {name}')
    return read_training_config(path or shipped, parsed)


def start_of(config: TrainingConfig, start: Path | None) -> Path:
    """Return the checkpoint that a stage starts from: none is a new one, of the stage's sizes."""
    return start or untrained_checkpoint(sizes_of(config))


def run_stage(run: Run, console: Console) -> None:
    """Train and say where the results are."""
    console.print(
        f'{run.config.stage}: {run.config.steps} steps of {run.config.batch} samples, '
        f'{run.processes} process(es) on {run.device}, from {run.start} to {run.out}',
        markup=False)
    try:
        checkpoint = train(run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt('Interrupted; the same command goes on from here.') from None
    console.print(f'Checkpoint: {checkpoint}\nCurves: {run.out / "curves.png"}, and '
                  f'tensorboard --logdir {run.out / "tensorboard"}', markup=False, soft_wrap=True)
