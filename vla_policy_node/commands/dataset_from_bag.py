"""`vla dataset from-bag`: a LeRobot dataset from recorded bags, with a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vla_policy_node.commands.dataset_progress import follow
from vla_policy_node.common.printable import printable
from vla_policy_node.replay.dataset import BagDataset
from vla_policy_node.replay.dataset_rows import BagRequest
from vla_policy_node.replay.stamps import STAMPS


def dataset_from_bags(
    bags: Sequence[Path], request: BagRequest, out: Path, lossless: bool, console: Console
) -> None:
    """Write and report. ValueError with one sentence says what cannot be done."""
    if request.stamps not in STAMPS:
        raise ValueError(f"--stamps is {request.stamps!r}; it can be {' or '.join(STAMPS)}.")
    work = BagDataset(bags, request, out, lossless)
    new = follow(work.run(), sum(work.lengths), console)
    for note in work.notes:
        console.print(printable(note), soft_wrap=True)
    if work.broken:
        console.print(f'{work.broken} pictures could not be decoded; the ones before are held.')
    console.print(f'{out}: {len(work.lengths)} episodes of {sum(work.lengths)} rows at '
                  f'{work.plan.fps} Hz, {new} of them new; vla dataset import {out} ...',
                  soft_wrap=True)
