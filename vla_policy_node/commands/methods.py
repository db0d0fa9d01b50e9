"""`vla bench methods`, as the command line takes it."""

from pathlib import Path
from typing import Annotated

import typer


def methods(
    method: Annotated[list[str] | None, typer.Option(
        help="What to compare with dense, as in `vla eval`: 'a', 'a:setting=value', 'a+b'. "
        'Repeat. Default: every method there is, and pairs.')] = None,
    also: Annotated[list[str] | None, typer.Option(
        help="Beside those, e.g. 'deer@runs/deer/checkpoint' for what has to be learnt. "
        'Repeat.')] = None,
    success: Annotated[bool, typer.Option(
        help='Also run closed loop; without, cost columns alone.')] = True,
    checkpoint: Annotated[
        str, typer.Option(help='Checkpoint directory; empty: the shipped default.')] = '',
    suite: Annotated[str, typer.Option(help='Suite of tasks, see `vla tasks`.')] = 'libero_object',
    tasks: Annotated[str, typer.Option(help='Task numbers, e.g. 0-3,7; empty: all.')] = '',
    episodes: Annotated[int, typer.Option(min=0, help='Episodes per task; 0: 20.')] = 0,
    frames_episodes: Annotated[int, typer.Option(
        min=1, help='Episodes per task on whose frames costs are measured.')] = 1,
    horizon: Annotated[int, typer.Option(
        min=0, help="Control steps per episode at most; 0: the suite's.")] = 0,
    workers: Annotated[int, typer.Option(
        min=1, help='Processes for the episodes; costs are always measured by one alone.')] = 1,
    threads: Annotated[int, typer.Option(min=1, help='Threads of torch in each.')] = 1,
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'; empty: as the config says.")] = '',
    config: Annotated[str, typer.Option(help='Parameter file; empty: config/bringup.yaml.')] = '',
    out: Annotated[Path, typer.Option(
        help='Directory for methods.md, methods.json and methods.png, and for what is needed to '
        'go on after an interruption.')] = Path('docs'),
) -> None:
    """Compare all acceleration methods: success, tokens, FLOPs, latency, change of the actions.

    Interrupted, the same command goes on where it was.

    * `vla bench methods`: the table of the documentation

    * `vla bench methods --also deer@runs/deer/checkpoint --also mole@runs/mole/checkpoint`

    * `vla bench methods --no-success --tasks 0 --out out/methods`: costs alone, minutes

    * `vla bench methods --method fastv:count=64 --method fastv:count=128 --out out/fastv`
    """
    from rich.console import Console

    from vla_policy_node.bench.methods import bench_methods
    from vla_policy_node.commands.numbers import parse_numbers

    try:
        bench_methods(
            out, Console(), method or (), also or (), success, frames_episodes, workers,
            suite=suite, task_ids=parse_numbers(tasks) if tasks else (), episodes=episodes,
            arguments={'checkpoint': checkpoint, 'config': config, 'device': device},
            changes={'execution_mode': 'sync'}, horizon=horizon, threads=threads,
        )
    except ValueError as error:
        typer.secho(str(error), fg='red', err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo('Interrupted; the same command goes on from here.')
        raise typer.Exit(130) from None
