"""Checkpoints that a benchmark trains if they are not there yet, each with a known recipe."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from vla_policy_node.checkpoints.fingerprint import fingerprint
from vla_policy_node.checkpoints.reading import read_json
from vla_policy_node.commands.train import run_stage
from vla_policy_node.training.config import TrainingConfig
from vla_policy_node.training.run_record import RECORD, is_finished, recipe_of
from vla_policy_node.training.stage_run import CHECKPOINT, Run


def trained(run: Run, console: Console) -> Path:
    """Return the checkpoint of a run, trained or gone on with now if it is not finished.

    Raises ValueError with one sentence for one that was trained otherwise, or from another start.
    """
    checkpoint = run.out / CHECKPOINT
    if not ((checkpoint / 'config.json').is_file() and is_finished(run.out)):
        run_stage(run, console)
        return checkpoint
    check_recipe(run.out, run.config, 'take another --out')
    if read_json(run.out / RECORD)['base'] != fingerprint(run.start):
        raise ValueError(f'{run.out} was trained from another checkpoint than {run.start} is '
                         'now; remove it, or take another --out.')
    return checkpoint


def check_recipe(out: Path, config: TrainingConfig, advice: str) -> None:
    """Raise ValueError if a run had other settings or another number of steps.

    advice: what else to do, in words.
    """
    wanted, found = config.document(), recipe_of(out)
    for name, value in wanted.items():
        if name != 'save_every_s' and found.get(name) != value:
            raise ValueError(
                f'{out} was trained with {name}={found.get(name)}, not {value}; '
                f'{advice}, or what it was trained with.')
