"""Declares the commands that make and evaluate policies: demos, train, eval."""

from pathlib import Path
from typing import Annotated

import typer

from vla_policy_node.cli.refusal import refusal


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
    from vla_policy_node.commands.demos import make_demonstrations
    from vla_policy_node.commands.numbers import parse_numbers
    from vla_policy_node.common.terminal import make_console
    from vla_policy_node.training.recording import RecordingRecipe

    try:
        recipe = RecordingRecipe(suite, layout, parse_numbers(tasks), noise, every, retarget)
        make_demonstrations(out, recipe, count, seed, workers, make_console())
    except ValueError as error:
        raise refusal(error) from None


def train(
    stage: Annotated[str, typer.Argument(
        help='grounding, localization, behavior_cloning, lora, lightvla, cogact, cogact_head, '
        'deer, mole or foreground.')],
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
    despite: Annotated[list[str] | None, typer.Option(
        help='Go on with an unfinished run although this has changed: code, machine or versions. '
        'Repeat.')] = None,
) -> None:
    """Train one stage of a policy. Ctrl-C or SIGTERM saves; the same command resumes.

    Resuming is bit-exact. OUT/run.json says what the run is made from (checkpoint, data,
    settings, code, versions, machine); with anything else it is refused. More steps than at
    first, by --set steps=N, go on from where the run ended.

    * `vla train grounding --scenes data/scenes --out runs/ground`: learn to see

    * `vla train localization --from runs/ground/checkpoint --scenes data/scenes
    --out runs/locate`: learn to find what is asked for

    * `vla train behavior_cloning --from runs/locate/checkpoint --demos data/object
    --scenes data/scenes --out runs/clone`: learn to act

    * `vla train lightvla --from runs/clone/checkpoint --demos data/object --out runs/lightvla`:
    learn what not to look at

    * `vla train lora --from CHECKPOINT --demos data/mine --out runs/mine`: fine-tune a policy of
    others, of any family, on data of one's own

    * `vla train cogact --from runs/clone/checkpoint --demos data/object --scenes data/scenes
    --out runs/cogact`: the same policy with a diffusion head

    * `vla train cogact_head --from runs/cogact/checkpoint --demos data/object
    --out runs/cogact_head`: that head alone, on features computed once

    * `vla train foreground`, `deer`, `mole`: what FastDriveVLA, DeeR and MoLE need, see their YAML

    Several machines or GPUs: `torchrun --nproc-per-node 8 -m vla_policy_node train ...`
    """
    from vla_policy_node.commands.train import run_stage, stage_config, start_of
    from vla_policy_node.common.terminal import make_console
    from vla_policy_node.training.stage_run import Run

    try:
        chosen = stage_config(stage, config, change or ())
        run = Run(
            chosen, start_of(chosen, start), demos, scenes, out, device, processes,
            tuple(despite or ()))
        run_stage(run, make_console())
    except ValueError as error:
        raise refusal(error) from None


def train_blind(
    demos: Annotated[Path, typer.Option(help='Folder made by `vla demos`.')],
    out: Annotated[Path, typer.Option(help='File to write, for `vla eval --blind`.')],
    seconds: Annotated[float, typer.Option(min=1.0, help='How long to train.')] = 100.0,
    seed: Annotated[int, typer.Option(min=0, help='Of weights and batches.')] = 0,
) -> None:
    """Train a state-only baseline: robot state and instruction in, actions out.

    What it can do, a policy can do without looking: the control of every success rate.

    `vla train-blind --demos data/object --out runs/blind.safetensors`
    """
    from rich.progress import Progress

    from vla_policy_node.common.terminal import make_console
    from vla_policy_node.outputs.folder import claimed, seal
    from vla_policy_node.training.demonstrations import Demonstrations
    from vla_policy_node.training.state_only import train_state_only as train

    try:
        with (claimed(out.parent, [out.name], 'vla train-blind'),
              Progress(console=make_console(), transient=True) as progress):
            bar = progress.add_task('state only', total=None)
            policy = train(
                Demonstrations(demos), seconds=seconds, seed=seed,
                report=lambda step, loss: progress.update(
                    bar, completed=step, description=f'step {step}, loss {loss:.3f}'))
            policy.save(out)
        seal(out.parent, 'vla train-blind', [out.name])
    except ValueError as error:
        raise refusal(error) from None
    typer.echo(f'Wrote {out}; vla eval --blind {out} runs it.')


def evaluate(
    method: Annotated[list[str] | None, typer.Option(
        help="What to compare: 'dense', a method, 'a+b' for both, 'a:setting=value'. Repeat; the "
        'first one is what the others are compared with. Default: dense.')] = None,
    checkpoint: Annotated[
        str, typer.Option(help='Checkpoint directory; empty: the shipped default.')] = '',
    suite: Annotated[str, typer.Option(help='Suite of tasks, see `vla tasks`.')] = 'libero_object',
    statistics_key: Annotated[str, typer.Option(
        help='Data set of the checkpoint to un-normalise with; empty: as the config says, or else '
        "the suite's.")] = '',
    layout: Annotated[str, typer.Option(
        help='shuffled: objects lie anywhere; standard: where LIBERO puts them, within '
        'millimetres, which a policy can learn by heart.')] = 'shuffled',
    tasks: Annotated[str, typer.Option(help='Task numbers, e.g. 0-3,7; empty: all.')] = '',
    episodes: Annotated[int, typer.Option(
        min=0, help='Episodes per task; 0: 20, or the 10 that a standard layout has.')] = 0,
    seed: Annotated[int, typer.Option(
        min=0, max=99, help='Another seed, other layouts. No demonstration has any of them.')] = 0,
    control: Annotated[str, typer.Option(
        help='none; gray: the cameras show gray; wrong-instruction: the words ask for something '
        'else. A policy that still succeeds does not use what was taken away.')] = 'none',
    blind: Annotated[Path | None, typer.Option(
        help='Also run a state-only baseline, a file of `vla train-blind`.')] = None,
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
    from vla_policy_node.commands.evaluate import run
    from vla_policy_node.commands.numbers import parse_numbers
    from vla_policy_node.common.terminal import make_console

    changes = {'execution_mode': execution_mode}
    changes |= {name: value for name, value in (
        ('dtype', dtype), ('statistics_key', statistics_key)) if value}
    try:
        run(
            make_console(), workers, json, plots,
            methods=method or (), state_only=blind, suite=suite, layout=layout,
            task_ids=parse_numbers(tasks) if tasks else (),
            arguments={'checkpoint': checkpoint, 'config': config, 'device': device},
            episodes=episodes, changes=changes, seed=seed, control=control, execute=execute,
            horizon=horizon, trace=trace, threads=threads,
        )
    except ValueError as error:
        raise refusal(error) from None
