"""`vla bench policy`: options, and what is printed and written."""

from pathlib import Path
from typing import Annotated

import typer


def bench_policy(
    checkpoint: Annotated[
        str, typer.Option(help='Checkpoint directory; empty: the shipped default.')] = '',
    size: Annotated[str, typer.Option(
        help="'7b': the public size with random weights, made on the device. Empty: the "
        'checkpoint.')] = '',
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'.")] = 'cpu',
    repetitions: Annotated[
        int, typer.Option(min=1, help='Timed inferences of each contender.')] = 20,
    warm_up: Annotated[int, typer.Option(
        min=1, help='Untimed inferences on each of the pictures before.')] = 2,
    pictures: Annotated[int, typer.Option(min=1, help='Layouts to look at.')] = 4,
    threads: Annotated[int, typer.Option(min=1, help='CPU threads of torch.')] = 1,
    count: Annotated[int, typer.Option(
        min=0, help='Visual tokens that LightVLA keeps; 0: as it chooses, but 78 with --size.',
    )] = 0,
    compiled: Annotated[bool, typer.Option(
        help='Also through torch.compile; takes minutes.')] = False,
    clock: Annotated[str, typer.Option(
        help='wall; processor: only the time that this process computed, for a CPU that others '
        'use as well.')] = 'wall',
    only: Annotated[list[str] | None, typer.Option(
        help="Only contenders whose 'method, way, dtype' contains this; repeat for several."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help='File for all figures.')] = None,
    markdown: Annotated[Path | None, typer.Option(help='File for the tables.')] = None,
) -> None:
    """Measure where the time of one inference goes, and how much of it must.

    The floor of a stage is its FLOPs over the rate of matrix products, or the bytes of its weights
    over that of memory, whichever is more; both rates are measured first. Contenders act in turn,
    so that a machine that slows down slows down all of them. Batch 1, two cameras.

    * `vla bench policy --json out/policy.json --markdown out/policy.md`: the table of the README

    * `vla bench policy --size 7b --device cuda --compiled --repetitions 100`: public size on a GPU

    * `vla bench policy --only lightvla --only "dense, plain"`
    """
    from rich.console import Console

    from vla_policy_node.bench.policy_run import Options, run

    options = Options(checkpoint, size, device, repetitions, warm_up, pictures, threads, count,
                      compiled, clock, only or ())
    try:
        run(options, json, markdown, Console())
    except ValueError as error:
        typer.secho(str(error), fg='red', err=True)
        raise typer.Exit(2) from None
