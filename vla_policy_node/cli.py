"""The command `vla`. Everything heavy is imported by the command that needs it."""

import inspect
from pathlib import Path
from typing import Annotated

import typer

from vla_policy_node.commands import replay as replay_commands
from vla_policy_node.commands.bench_policy import bench_policy
from vla_policy_node.commands.compress import compress
from vla_policy_node.commands.methods import methods
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
    head: Annotated[str, typer.Option(help='l1 (OpenVLA-OFT) or cogact.')] = 'l1',
) -> None:
    """Create a small UNTRAINED policy in the public OpenVLA-OFT checkpoint layout.

    `vla new-checkpoint my-policy --seed 1`
    """
    if head not in ('l1', 'cogact'):
        raise _refusal(f"head is '{head}'; choose l1 or cogact.")
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise _refusal(f"'{directory}' exists and is not empty; choose another directory.")
    from vla_policy_node.models.small import COGACT_CONFIG, CONFIG, create_small_checkpoint

    create_small_checkpoint(directory, seed, COGACT_CONFIG if head == 'cogact' else CONFIG)
    typer.echo(f'Created {directory}: random weights of seed {seed}, untrained.')


@app.command()
def check(
    checkpoint: Annotated[str, typer.Argument(
        help='Checkpoint directory, or an id of the Hugging Face hub (downloaded first).')],
    suite: Annotated[str, typer.Option(
        help='Suite the policy is for, e.g. libero_10: its statistics must be there.')] = '',
    statistics_key: Annotated[
        str, typer.Option(help='Exact key in dataset_statistics.json instead.')] = '',
    golden: Annotated[list[Path] | None, typer.Option(
        help='Folder of recordings of the public implementation, in the form of '
        'test/data/oft_tiny, lightvla_tiny or preprocess; repeat for several.')] = None,
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
    """
    from rich.console import Console

    from vla_policy_node.commands.check import check as run_checks

    try:
        code = run_checks(
            checkpoint, suite, statistics_key, golden or [], device, dtype, Console())
    except ValueError as error:
        raise _refusal(error) from None
    raise typer.Exit(code)


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
    from rich.console import Console

    from vla_policy_node.demo.run import PACES, DemoError, run_demo
    from vla_policy_node.demo.scenes import choose_scenes
    from vla_policy_node.world.libero_world import SHUFFLED_SUITES

    if pace not in PACES:
        raise _refusal(f"pace is '{pace}'; choose one of {', '.join(PACES)}.")
    layout = layout or ('shuffled' if suite in SHUFFLED_SUITES else 'standard')
    try:
        scenes = choose_scenes(suite, layout, episodes, task or (), instruction)
        code = run_demo(out, scenes, steps, pace,
                        {'checkpoint': checkpoint, 'config': config}, Console())
    except (DemoError, ValueError) as error:
        raise _refusal(error) from None
    raise typer.Exit(code)


@app.command()
def demos(
    out: Annotated[Path, typer.Option(help='Folder of the set; an unfinished one goes on.')],
    count: Annotated[int, typer.Option(min=1, help='Demonstrations to have in the end.')] = 100,
    suite: Annotated[str, typer.Option(help='Suite of tasks, see `vla tasks`.')] = 'libero_object',
    layout: Annotated[str, typer.Option(
        help='standard: as LIBERO lays the objects out; shuffled: anywhere, so that a policy has '
        'to look; scattered: still pictures of shuffled scenes, for grounding.')] = 'shuffled',
    tasks: Annotated[str, typer.Option(help='Task numbers (scenes), e.g. 0-3,7.')] = '0-9',
    noise: Annotated[float, typer.Option(
        help='Largest noise on what is executed, in action units; the labels stay clean.')] = 0.1,
    every: Annotated[int, typer.Option(
        min=1, help='Control steps from one pair of images to the next.')] = 4,
    retarget: Annotated[bool, typer.Option(
        help='Ask for a random object of the scene (libero_object).')] = True,
    seed: Annotated[int, typer.Option(
        help='0 to 9: another seed, other layouts. None of them is used by `vla eval`.')] = 0,
    workers: Annotated[int, typer.Option(min=1, help='Processes, each on one core.')] = 2,
) -> None:
    """Let a scripted expert record demonstrations for `vla train`.

    It looks at the simulator's state, not at images, and about one layout in fifty defeats it:
    only successes are kept. Same options and seed, same demonstrations.

    * `vla demos --count 1500 --out data/object`: any object, anywhere

    * `vla demos --suite libero_spatial --no-retarget --out data/spatial`
    """
    from rich.console import Console

    from vla_policy_node.commands.demos import make_demonstrations
    from vla_policy_node.commands.numbers import parse_numbers
    from vla_policy_node.training.recording import Recipe

    try:
        recipe = Recipe(suite, layout, parse_numbers(tasks), noise, every, retarget)
        code = make_demonstrations(out, recipe, count, seed, workers, Console())
    except ValueError as error:
        raise _refusal(error) from None
    raise typer.Exit(code)


@app.command()
def train(
    stage: Annotated[str, typer.Argument(
        help='ground, locate, clone, lightvla, cogact, deer, mole or foreground.')],
    out: Annotated[Path, typer.Option(
        help='Folder of the run; an unfinished one goes on where it was.')],
    start: Annotated[Path | None, typer.Option(
        '--from', help='Checkpoint to start from; none: a new small one with random weights.',
    )] = None,
    demos: Annotated[Path | None, typer.Option(help='Folder made by `vla demos`.')] = None,
    scenes: Annotated[Path | None, typer.Option(
        help='Folder made by `vla demos --layout scattered`.')] = None,
    config: Annotated[Path | None, typer.Option(
        help='YAML file; none: config/training/STAGE.yaml, which explains every entry.')] = None,
    change: Annotated[list[str] | None, typer.Option(
        '--set', help='Change one entry, e.g. --set steps=100. Repeat.')] = None,
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'.")] = 'cpu',
    processes: Annotated[int, typer.Option(
        min=1, help='Data-parallel processes: one per GPU, or sharing the cores.')] = 1,
) -> None:
    """Train one stage of a policy. Ctrl-C saves; the same command goes on, bit for bit.

    * `vla train ground --scenes data/scenes --out runs/ground`: learn to see

    * `vla train locate --from runs/ground/checkpoint --scenes data/scenes --out runs/locate`:
    learn to find what is asked for

    * `vla train clone --from runs/locate/checkpoint --demos data/object --scenes data/scenes
    --out runs/clone`: learn to act

    * `vla train lightvla --from runs/clone/checkpoint --demos data/object --out runs/lightvla`:
    learn what not to look at

    * `vla train cogact --from runs/clone/checkpoint --demos data/object --scenes data/scenes
    --out runs/cogact`: the same policy with a diffusion head
    * `vla train foreground`, `deer`, `mole`: what FastDriveVLA, DeeR and MoLE need, see their YAML

    Several machines or GPUs: `torchrun --nproc-per-node 8 -m vla_policy_node train ...`
    """
    from rich.console import Console

    from vla_policy_node.commands.train import run_stage, stage_config
    from vla_policy_node.system import untrained_checkpoint
    from vla_policy_node.training.run import Run

    try:
        run = Run(
            stage_config(stage, config, change or ()), start or untrained_checkpoint(),
            demos, scenes, out, device, processes)
        code = run_stage(run, Console())
    except ValueError as error:
        raise _refusal(error) from None
    raise typer.Exit(code)


@app.command('eval')
def evaluate(
    method: Annotated[list[str] | None, typer.Option(
        help="What to compare: 'dense', a method, 'a+b' for both, 'a:setting=value'. Repeat; the "
        'first one is what the others are compared with. Default: dense.')] = None,
    checkpoint: Annotated[
        str, typer.Option(help='Checkpoint directory; empty: the shipped default.')] = '',
    suite: Annotated[str, typer.Option(help='Suite of tasks, see `vla tasks`.')] = 'libero_object',
    layout: Annotated[str, typer.Option(
        help='shuffled: objects lie anywhere; standard: where LIBERO puts them, within '
        'millimetres, which a policy can learn by heart.')] = 'shuffled',
    tasks: Annotated[str, typer.Option(help='Task numbers, e.g. 0-3,7; empty: all.')] = '',
    episodes: Annotated[int, typer.Option(
        min=0, help='Episodes per task; 0: 20, or the 10 that a standard layout has.')] = 0,
    seed: Annotated[int, typer.Option(
        min=0, help='Another seed, other layouts. No demonstration has any of them.')] = 0,
    control: Annotated[str, typer.Option(
        help='none; gray: the cameras show gray; wrong-instruction: the words ask for something '
        'else. A policy that still succeeds does not use what was taken away.')] = 'none',
    blind: Annotated[Path | None, typer.Option(
        help='Also run a baseline without eyes, a file of training.blind.')] = None,
    execute: Annotated[int, typer.Option(
        min=0, help='Actions of each chunk to use before the next inference; 0: all.')] = 0,
    execution_mode: Annotated[str, typer.Option(
        help='sync, async or temporal_ensemble; the last two infer in every step.')] = 'sync',
    horizon: Annotated[int, typer.Option(
        min=0, help="Control steps per episode at most; 0: the suite's.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help='Processes.')] = 2,
    threads: Annotated[int, typer.Option(min=1, help='Threads of torch in each.')] = 1,
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'; empty: as the config says.")] = '',
    dtype: Annotated[str, typer.Option(
        help='float32 or bfloat16; empty: as the config says.')] = '',
    config: Annotated[str, typer.Option(
        help='Parameter file; empty: config/bringup.yaml and libero_world.yaml.')] = '',
    json: Annotated[Path | None, typer.Option(
        help='File for the figures. Interrupted, the same command goes on where it was.')] = None,
    trace: Annotated[Path | None, typer.Option(
        help='Directory for the kept tokens of every inference; also says how many of them lie '
        'on the object, the gripper and the goal.')] = None,
    plots: Annotated[Path | None, typer.Option(help='Directory for PNGs.')] = None,
) -> None:
    """Run a policy in closed loop in the simulated world, without ROS, and count successes.

    Every method sees the same layouts, none of which training has seen, so methods are compared
    episode by episode. Rates come with 95 % intervals, comparisons with McNemar's exact p.

    * `vla eval --method dense --method lightvla --json out/eval.json`

    * `vla eval --control gray --episodes 5`: does it need its eyes?

    * `vla eval --method lightvla:multiplicity_bias=true --tasks 0-3 --trace out/trace`
    """
    from rich.console import Console

    from vla_policy_node.commands.evaluate import run
    from vla_policy_node.commands.numbers import parse_numbers

    changes = {'execution_mode': execution_mode, **({'dtype': dtype} if dtype else {})}
    try:
        code = run(
            Console(), workers, json, plots,
            methods=method or (), blind=blind, suite=suite, layout=layout,
            task_ids=parse_numbers(tasks) if tasks else (),
            arguments={'checkpoint': checkpoint, 'config': config, 'device': device},
            episodes=episodes, changes=changes, seed=seed, control=control, execute=execute,
            horizon=horizon, trace=trace, threads=threads,
        )
    except ValueError as error:
        raise _refusal(error) from None
    raise typer.Exit(code)


app.command()(compress)
replay_commands.register(app)

bench = typer.Typer(no_args_is_help=True, help='Measurements that take longer than a test.')
app.add_typer(bench, name='bench')
bench.command('methods')(methods)
bench.command('policy')(bench_policy)


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


@bench.command('selection')
def bench_selection(
    dense: Annotated[Path, typer.Option(
        help='Dense checkpoint that the others were fine-tuned from.')] = Path(
            'checkpoints/libero_object_dense'),
    lightvla: Annotated[Path, typer.Option(
        help='Checkpoint fine-tuned with LightVLA.')] = Path('checkpoints/libero_object'),
    runs: Annotated[Path, typer.Option(
        help='Folder of the variants; those that are missing are trained there.')] = Path(
            'runs/selection'),
    demos: Annotated[Path | None, typer.Option(
        help='Demonstrations to train missing variants on, a folder of `vla demos`.')] = None,
    out: Annotated[Path, typer.Option(help='Directory for table and plots.')] = Path('docs'),
    tasks: Annotated[str, typer.Option(help='Task numbers, e.g. 0-3,7; empty: all.')] = '',
    episodes: Annotated[int, typer.Option(
        min=1, help='Episodes per task and row.')] = 5,
    workers: Annotated[int, typer.Option(min=1, help='Processes, for both parts.')] = 2,
) -> None:
    """Ask which selection of visual tokens a policy needs; every row on the same episodes.

    Dense, LightVLA, LightVLA*, random tokens, FastV, a few more and a few less tokens, and
    LightVLA trained with other noise. Interrupted, the same command goes on where it was.

    `vla bench selection --demos data/object` is the table of the README.
    """
    from rich.console import Console

    from vla_policy_node.bench.selection import Question, answer
    from vla_policy_node.commands.numbers import parse_numbers

    try:
        answer(Question(
            dense, lightvla, runs, demos, out, episodes,
            parse_numbers(tasks) if tasks else (), workers), Console())
    except ValueError as error:
        raise _refusal(error) from None
    except KeyboardInterrupt:
        typer.echo('Interrupted; the same command goes on from here.')
        raise typer.Exit(130) from None


def _refusal(reason: object) -> typer.Exit:
    typer.secho(str(reason), fg='red', err=True)
    return typer.Exit(2)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == '__main__':
    main()
