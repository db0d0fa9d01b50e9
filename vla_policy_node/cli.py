"""The command `vla`. Everything heavy is imported by the command that needs it."""

import inspect
from pathlib import Path
from typing import Annotated

import typer

from vla_policy_node.system import ARGUMENTS, Argument, SystemDescriptionError

app = typer.Typer(
    name='vla',
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode='markdown',
    pretty_exceptions_enable=False,
    help='Serve accelerated vision-language-action policies to a robot.\n\n'
         'Try it: `vla bringup --world` in one terminal, and in another '
         '`vla instruct "pick up the alphabet soup and place it in the basket"`.',
)


def _option(argument: Argument) -> inspect.Parameter:
    """Return an option of `vla bringup`, as typer reads it from a signature."""
    choices = f' One of {", ".join(argument.choices)}.' if argument.choices else ''
    option = typer.Option(
        argument.default, help=argument.description + choices,
        show_default=argument.default != '',
    )
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(
        argument.name, kind, default=option, annotation=type(argument.default))


def bringup(**arguments: str | bool) -> None:
    """Start the nodes and run them until Ctrl-C.

    Without ROS 2's `ros2 launch`, but from the same description: see bringup.launch.py.

    * `vla bringup --world`: everything, on a simulated robot

    * `vla bringup --checkpoint DIR --third-person-topic /front/image_raw`: on a real one
    """
    from vla_policy_node.bringup import run
    from vla_policy_node.system import describe

    try:
        nodes = describe(arguments)
    except SystemDescriptionError as error:
        raise _refusal(error) from None
    raise typer.Exit(run(nodes))


bringup.__signature__ = inspect.Signature([_option(argument) for argument in ARGUMENTS])
bringup.__annotations__ = {argument.name: type(argument.default) for argument in ARGUMENTS}
app.command()(bringup)


@app.command()
def instruct(
    instruction: Annotated[
        str, typer.Argument(help='What the robot should do, in plain words.')],
    duration: Annotated[float, typer.Option(
        min=0.0, help="Seconds to follow it; 0: the node's default_duration_s.")] = 0.0,
    wait: Annotated[
        float, typer.Option(min=0.0, help='Seconds to wait for the policy node.')] = 10.0,
) -> None:
    """Tell a running policy node what to do, and watch it. Ctrl-C cancels.

    `vla instruct "open the middle drawer of the cabinet" --duration 20`
    """
    from vla_policy_node.commands.instruct import follow

    raise typer.Exit(follow(instruction, duration, wait))


@app.command()
def tasks(
    suite: Annotated[
        str, typer.Argument(help='libero_object, libero_spatial or libero_goal.')] = '',
) -> None:
    """List the tasks of the simulated world and their instructions.

    `vla tasks libero_goal`
    """
    from rich.console import Console
    from rich.table import Table

    from vla_policy_node.world.libero_setup import SUITES
    from vla_policy_node.world.libero_world import tasks as tasks_of

    table = Table('suite', 'task', 'instruction')
    try:
        for name in [suite] if suite else SUITES:
            for task in tasks_of(name):
                table.add_row(task.suite, str(task.task_id), task.instruction)
    except ValueError as error:
        raise _refusal(error) from None
    Console().print(table)


@app.command()
def new_checkpoint(
    directory: Annotated[
        Path, typer.Argument(help='Directory to create; must be new or empty.')],
    seed: Annotated[int, typer.Option(min=0, help='Same seed, same weights.')] = 0,
) -> None:
    """Create a small UNTRAINED policy in the public OpenVLA-OFT checkpoint layout.

    `vla new-checkpoint my-policy --seed 1`
    """
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise _refusal(f"'{directory}' exists and is not empty; choose another directory.")
    from vla_policy_node.models.small import create_small_checkpoint

    create_small_checkpoint(directory, seed)
    typer.echo(f'Created {directory}: random weights of seed {seed}, untrained.')


@app.command()
def doctor() -> None:
    """Say what is installed, what is missing, and how to get it.

    Exit code 1 if something that is needed is missing.
    """
    from vla_policy_node.commands.doctor import report

    raise typer.Exit(report())


@app.command()
def demo(
    episodes: Annotated[int, typer.Option(min=1, help='Episodes to run.')] = 3,
    out: Annotated[Path, typer.Option(help='Directory for figures and pictures.')] = Path(
        'out/demo'),
    suite: Annotated[str, typer.Option(help='Suite of tasks, see `vla tasks`.')] = 'libero_object',
    task: Annotated[
        list[int] | None,
        typer.Option(help='Task number; repeat for several. Default: 0, 1, 2, ...')] = None,
    steps: Annotated[int, typer.Option(min=1, help='Control steps per episode at most.')] = 200,
    pace: Annotated[str, typer.Option(
        help='real-time; lock-step: the world waits for every action; auto: real-time if this '
        'machine is fast enough.')] = 'auto',
    checkpoint: Annotated[
        str, typer.Option(help='Checkpoint directory; empty: the small untrained one.')] = '',
    config: Annotated[str, typer.Option(help='Parameter file; empty: config/bringup.yaml.')] = '',
) -> None:
    """Run world, policy and visualizer for a few episodes; leave figures and pictures.

    `vla demo --episodes 2 --suite libero_spatial --task 0 --task 4 --out out/spatial`
    """
    from rich.console import Console

    from vla_policy_node.demo.run import PACES, DemoError, run_demo

    if pace not in PACES:
        raise _refusal(f"pace is '{pace}'; choose one of {', '.join(PACES)}.")
    task_ids = task or range(min(episodes, 10))
    try:
        code = run_demo(out, episodes, suite, task_ids, steps, pace,
                        {'checkpoint': checkpoint, 'config': config}, Console())
    except (DemoError, SystemDescriptionError) as error:
        raise _refusal(error) from None
    raise typer.Exit(code)


bench = typer.Typer(no_args_is_help=True, help='Measurements that take longer than a test.')
app.add_typer(bench, name='bench')


@bench.command('node')
def bench_node(
    duration: Annotated[float, typer.Option(min=5.0, help='Seconds to measure.')] = 60.0,
    out: Annotated[Path, typer.Option(help='Directory for the figures.')] = Path('out/bench'),
    checkpoint: Annotated[
        str, typer.Option(help='Checkpoint directory; empty: the small untrained one.')] = '',
    config: Annotated[str, typer.Option(help='Parameter file; empty: config/bringup.yaml.')] = '',
) -> None:
    """Measure what the ROS side costs: two 640x480 cameras at 30 Hz, inference all the time.

    `vla bench node --duration 600` is the table of the README.
    """
    from rich.console import Console

    from vla_policy_node.bench.node import run
    from vla_policy_node.bringup import NodeDiedError

    try:
        run(duration, {'checkpoint': checkpoint, 'config': config}, out, Console())
    except (NodeDiedError, RuntimeError, SystemDescriptionError) as error:
        raise _refusal(error) from None


def _refusal(reason: object) -> typer.Exit:
    typer.secho(str(reason), fg='red', err=True)
    return typer.Exit(2)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == '__main__':
    main()
