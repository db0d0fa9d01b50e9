"""Declares the commands around a robot: bringup, instruct, demo, tasks, check, doctor."""

import inspect
from pathlib import Path
from typing import Annotated

import typer

from vla_policy_node.cli.namespaces import namespace_of
from vla_policy_node.cli.refusal import refusal
from vla_policy_node.cli.topics import more_topics
from vla_policy_node.cli.trust import agrees
from vla_policy_node.system.arguments import ARGUMENTS, Argument


def _option(argument: Argument) -> inspect.Parameter:
    """Return an option of `vla bringup`, as typer reads it from a signature."""
    choices = f' One of {", ".join(argument.choices)}.' if argument.choices else ''
    option = typer.Option(
        argument.default, help=argument.description + choices,
        show_default=argument.default != '',
        rich_help_panel='Topics' if argument.name.endswith('_topic') else None,
    )
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(
        argument.name, kind, default=option, annotation=type(argument.default))


def bringup(context: typer.Context, **arguments: str | bool) -> None:
    """Start the nodes and run them until Ctrl-C.

    Without ROS 2's `ros2 launch`, but from the same description: see bringup.launch.py.

    * `vla bringup --world`: everything, on a simulated robot

    * `vla bringup --checkpoint DIR --contract my_robot.yaml`: on a real one, whose streams can be
      sent to other topics with --NAME-topic
    """
    from vla_policy_node.system.description import describe
    from vla_policy_node.system.processes import run
    from vla_policy_node.system.recorded import UntrustedBagError

    arguments |= {f'{stream}_topic': topic for stream, topic in more_topics(context).items()}
    try:
        try:
            nodes = describe(arguments)
        except UntrustedBagError as wish:
            if not agrees([wish]):
                raise
            nodes = describe({**arguments, 'trust_bag': True})
        if arguments.get('play'):
            from vla_policy_node.replay.played import check_played

            check_played(nodes)
    except ValueError as error:
        raise refusal(error) from None
    raise typer.Exit(run(nodes))


_CONTEXT = inspect.signature(bringup).parameters['context']
bringup.__signature__ = inspect.Signature(
    [_CONTEXT, *(_option(argument) for argument in ARGUMENTS)])
bringup.__annotations__ = {
    'context': typer.Context, **{argument.name: type(argument.default) for argument in ARGUMENTS}}


def instruct(
    instruction: Annotated[
        str, typer.Argument(help='What the robot should do, in plain words.')],
    duration: Annotated[float, typer.Option(
        min=0.0, help="Seconds to follow it; 0: the node's default_duration_s.")] = 0.0,
    wait: Annotated[
        float, typer.Option(min=0.0, help='Seconds to wait for the policy node.')] = 10.0,
    namespace: Annotated[
        str, typer.Option(help='Namespace of the policy node, as of `vla bringup`.')] = '',
) -> None:
    """Tell a running policy node what to do, and watch it. Ctrl-C cancels.

    `vla instruct "open the middle drawer of the cabinet" --duration 20`
    """
    from vla_policy_node.nodes.instruct import follow

    raise typer.Exit(follow(instruction, duration, wait, namespace_of(namespace)))


def tasks(
    suite: Annotated[
        str, typer.Argument(help='libero_object, libero_spatial or libero_goal.')] = '',
) -> None:
    """List the tasks of the simulated world and their instructions.

    `vla tasks libero_goal`
    """
    from rich.table import Table

    from vla_policy_node.common.terminal import fitted, make_console
    from vla_policy_node.world.libero_setup import SUITES
    from vla_policy_node.world.libero_world import tasks as tasks_of

    table = Table('suite', 'task', 'instruction')
    try:
        for name in [suite] if suite else SUITES:
            for task in tasks_of(name):
                table.add_row(task.suite, str(task.task_id), task.instruction)
    except ValueError as error:
        raise refusal(error) from None
    make_console().print(fitted(table, 2))


def new_checkpoint(
    directory: Annotated[
        Path, typer.Argument(help='Directory to create; must be new or empty.')],
    seed: Annotated[int, typer.Option(min=0, help='Same seed, same weights.')] = 0,
    head: Annotated[str, typer.Option(help='l1 (OpenVLA-OFT) or cogact.')] = 'l1',
) -> None:
    """Create a small UNTRAINED policy in the public OpenVLA-OFT checkpoint layout.

    `vla new-checkpoint my-policy --seed 1`
    """
    from vla_policy_node.runtime.small import CONFIGS, create_small_checkpoint

    if head not in CONFIGS:
        raise refusal(f"head is '{head}'; choose {' or '.join(CONFIGS)}.")
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise refusal(f"'{directory}' exists and is not empty; choose another directory.")
    from vla_policy_node.outputs.folder import OutputError
    from vla_policy_node.outputs.whole import whole_folder

    try:
        with whole_folder(directory, 'vla new-checkpoint') as folder:
            create_small_checkpoint(folder, seed, CONFIGS[head])
    except OutputError as error:
        raise refusal(error) from None
    typer.echo(f'Created {directory}: random weights of seed {seed}, untrained.')


def check(
    checkpoint: Annotated[str, typer.Argument(
        help='Checkpoint directory, or an id of the Hugging Face hub (downloaded first).')],
    suite: Annotated[str, typer.Option(
        help='Suite the policy is for, e.g. libero_10: its statistics must be there.')] = '',
    statistics_key: Annotated[
        str, typer.Option(help='Exact key in dataset_statistics.json instead.')] = '',
    golden: Annotated[list[Path] | None, typer.Option(
        help='Folder of recordings of the public implementation, in the form of '
        'test/data/oft_tiny, lightvla_tiny, preprocess or pi05_tiny; repeat for several.'
    )] = None,
    bag: Annotated[list[Path] | None, typer.Option(
        help='Bag of your robot: are the states in it like those of training? Repeat for several.',
    )] = None,
    dataset: Annotated[list[Path] | None, typer.Option(
        help='The same with a LeRobot dataset, and its actions too.')] = None,
    contract: Annotated[str, typer.Option(
        help='Robot of the bags: a contract (.yaml) or the name of one that comes with the '
        'package. Empty: what the bag says.')] = '',
    device: Annotated[str, typer.Option(help="Torch device, 'cpu' or 'cuda'.")] = 'cpu',
    dtype: Annotated[str, typer.Option(
        help='Arithmetic of the checks that run the policy; recordings are always compared in '
        'float32.')] = 'float32',
) -> None:
    """Check that a checkpoint runs here as it was trained, with a verdict for each point.

    Most trouble with public checkpoints is silent: a wrong attention mask, wrong rows, wrong
    statistics or normalisation still give actions. Exit code 0: all passed, 1: something failed.

    * `vla check moojink/openvla-7b-oft-finetuned-libero-10 --suite libero_10 --dtype bfloat16`

    * `vla check test/data/oft_tiny/checkpoint --golden test/data/lightvla_tiny`

    * `vla check CHECKPOINT --bag bags/monday-1`
    """
    from vla_policy_node.commands.check import Recorded
    from vla_policy_node.commands.check import check as run_checks
    from vla_policy_node.common.terminal import make_console

    try:
        code = run_checks(
            checkpoint, suite, statistics_key, golden or [], device, dtype, make_console(),
            Recorded(tuple(bag or ()), tuple(dataset or ()), contract))
    except ValueError as error:
        raise refusal(error) from None
    raise typer.Exit(code)


def doctor(
    transport_s: Annotated[float, typer.Option(
        min=0.0, max=60.0, help='Seconds for which to send images of two cameras between two '
        'processes, and count what arrives; 0: do not.')] = 4.0,
) -> None:
    """Say what is installed, what is missing, and how to get it; measure the image transport.

    Exit code 1 if something that is needed is missing.

    `vla doctor`
    """
    from vla_policy_node.commands.doctor import report

    raise typer.Exit(report(transport_s))


def demo(
    episodes: Annotated[int, typer.Option(min=1, help='Episodes to run.')] = 3,
    out: Annotated[Path, typer.Option(help='Directory for figures and pictures.')] = Path(
        'out/demo'),
    suite: Annotated[str, typer.Option(help='Suite of tasks, see `vla tasks`.')] = 'libero_object',
    task: Annotated[
        list[int] | None,
        typer.Option(help='Task number; repeat for several. Default: 0, 1, 2, ...')] = None,
    instruction: Annotated[str, typer.Option(
        help='Ask for this in every episode instead; one of `vla tasks`.')] = '',
    layout: Annotated[str, typer.Option(
        help='standard: objects where LIBERO puts them; shuffled (not libero_goal): elsewhere, in '
        'layouts that no training has seen. Default: shuffled where possible.')] = '',
    steps: Annotated[int, typer.Option(min=1, help='Control steps per episode at most.')] = 200,
    pace: Annotated[str, typer.Option(
        help='real-time; lock-step: the world waits for every action; auto: real-time if this '
        'machine is fast enough.')] = 'auto',
    checkpoint: Annotated[
        str, typer.Option(help='Checkpoint directory; empty: the shipped one.')] = '',
    config: Annotated[str, typer.Option(help='Parameter file; empty: config/bringup.yaml.')] = '',
) -> None:
    """Run world, policy and visualizer for a few episodes; leave figures and pictures.

    * `vla demo --instruction "pick up the milk and place it in the basket"`

    * `vla demo --episodes 2 --suite libero_spatial --task 0 --task 4 --out out/spatial`
    """
    from vla_policy_node.common.terminal import make_console
    from vla_policy_node.demo.run import PACES, DemoError, run_demo
    from vla_policy_node.demo.scenes import choose_scenes
    from vla_policy_node.world.libero_world import SHUFFLED_SUITES

    if pace not in PACES:
        raise refusal(f"pace is '{pace}'; choose one of {', '.join(PACES)}.")
    layout = layout or ('shuffled' if suite in SHUFFLED_SUITES else 'standard')
    try:
        scenes = choose_scenes(suite, layout, episodes, task or (), instruction)
        code = run_demo(out, scenes, steps, pace,
                        {'checkpoint': checkpoint, 'config': config}, make_console())
    except (DemoError, ValueError) as error:
        raise refusal(error) from None
    raise typer.Exit(code)
