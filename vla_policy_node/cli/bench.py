"""`vla bench`: measurements that take longer than a test."""

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from vla_policy_node.cli.refusal import refusal
from vla_policy_node.system.files import SystemDescriptionError


def node(
    duration: Annotated[float, typer.Option(min=5.0, help='Seconds to measure.')] = 60.0,
    out: Annotated[Path, typer.Option(help='Directory for the figures.')] = Path('out/bench'),
    checkpoint: Annotated[
        str, typer.Option(help='Checkpoint directory; empty: the shipped one.')] = '',
    config: Annotated[str, typer.Option(help='Parameter file; empty: config/bringup.yaml.')] = '',
) -> None:
    """Measure the cost of the ROS side: two 640x480 cameras at 30 Hz, continuous inference.

    `vla bench node --duration 60` is the table of docs/measured.md.
    """
    from vla_policy_node.bench.live.node import run
    from vla_policy_node.common.terminal import make_console
    from vla_policy_node.system.processes import NodeDiedError

    try:
        run(duration, {'checkpoint': checkpoint, 'config': config}, out, make_console())
    except (NodeDiedError, RuntimeError, SystemDescriptionError) as error:
        raise refusal(error) from None


def selection(
    dense: Annotated[Path, typer.Option(
        help='Dense checkpoint that the others were fine-tuned from.')] = Path(
            'checkpoints/libero_object_dense'),
    runs: Annotated[Path, typer.Option(
        help='Folder of the runs of training; what is missing is trained there.')] = Path(
            'runs/selection'),
    demos: Annotated[Path | None, typer.Option(
        help='Demonstrations to train on, a folder of `vla demos`.')] = None,
    change: Annotated[list[str] | None, typer.Option(
        '--set', help='Change an entry of training for all rows, e.g. --set steps=450. '
        'Repeat.')] = None,
    out: Annotated[Path, typer.Option(help='Directory for table and plots.')] = Path(
        'out/selection'),
    tasks: Annotated[str, typer.Option(help='Task numbers, e.g. 0-3,7; empty: all.')] = '',
    episodes: Annotated[int, typer.Option(
        min=1, help='Episodes per task and row.')] = 5,
    workers: Annotated[int, typer.Option(min=1, help='Processes, for both parts.')] = 2,
) -> None:
    """Ask which selection of visual tokens a policy needs; every row on the same episodes.

    Dense, LightVLA, LightVLA*, random tokens, FastV, a few more and a few fewer tokens, and
    LightVLA trained with other noise. After an interruption the same command resumes.

    All that is fine-tuned has the same budget, and the table says which recipe.

    `vla bench selection --demos data/object --set steps=450 --set batch=64`
    """
    from vla_policy_node.bench.selection import Question, answer
    from vla_policy_node.commands.numbers import parse_numbers
    from vla_policy_node.common.terminal import make_console

    try:
        answer(Question(
            dense, runs, demos, out, episodes, parse_numbers(tasks) if tasks else (), workers,
            change or ()), make_console())
    except ValueError as error:
        raise refusal(error) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt('Interrupted; the same command goes on from here.') from None


def headline(
    row: Annotated[list[str] | None, typer.Option(
        help="'LABEL=METHOD@CHECKPOINT'; the first one is what the others are compared with, and "
        'a label again is another training seed of its row. Repeat. Default: the shipped dense '
        'policy and LightVLA.')] = None,
    suite: Annotated[str, typer.Option(help='Suite of tasks, see `vla tasks`.')] = 'libero_object',
    episodes: Annotated[int, typer.Option(min=1, max=100, help='Episodes per task.')] = 20,
    workers: Annotated[int, typer.Option(min=1, help='Processes.')] = 2,
    out: Annotated[Path, typer.Option(
        help='Directory for headline.json and headline.md.')] = Path('out/headline'),
) -> None:
    """Measure the success rates of a release, on test layouts that nothing was chosen on.

    `vla eval` and the other benchmarks never run these layouts. One release is reported once:
    with other checkpoints the same file is refused.

    * `vla bench headline`: the table of docs/results.md

    * `vla bench headline --row dense=dense@runs/dense/checkpoint --row
      LightVLA=lightvla@runs/0/checkpoint --row LightVLA=lightvla@runs/1/checkpoint`
    """
    from vla_policy_node.bench.headline import SHIPPED, parse_rows, report
    from vla_policy_node.common.terminal import make_console

    try:
        report(parse_rows(row or SHIPPED), suite, episodes, workers, out, make_console())
    except ValueError as error:
        raise refusal(error) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt('Interrupted; the same command goes on from here.') from None


def methods(
    method: Annotated[list[str] | None, typer.Option(
        help="What to compare with dense, as in `vla eval`: 'a', 'a:setting=value', 'a+b'. "
        'Repeat. Default: every method there is, and variants.')] = None,
    also: Annotated[list[str] | None, typer.Option(
        help="Beside those, e.g. 'deer@runs/deer/checkpoint' for what has to be learnt; it is "
        'compared with the first --checkpoint that has the same kind of action head. '
        'Repeat.')] = None,
    sweep: Annotated[bool, typer.Option(
        '--sweep', help='Compare each method with itself: one by one, other values of the '
        'constants that its paper leaves open, on development layouts.')] = False,
    split: Annotated[str, typer.Option(
        help='development: layouts to choose a method or its constants on; test: others, for a '
        'table to publish, with at least 50 episodes a row.')] = 'development',
    success: Annotated[bool, typer.Option(
        help='Also run closed loop; without, cost columns alone.')] = True,
    checkpoint: Annotated[list[str] | None, typer.Option(
        help='Checkpoint directory. Repeat for a section of each in one report. Default: the '
        'shipped default.')] = None,
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
        'go on after an interruption.')] = Path('out/methods'),
) -> None:
    """Compare all acceleration methods: success, tokens, FLOPs, latency, change of the actions.

    After an interruption the same command resumes.

    * `vla bench methods --episodes 2`: every method, on all tasks

    * `vla bench methods --also deer@runs/deer/checkpoint --also mole@runs/mole/checkpoint`

    * `vla bench methods --checkpoint checkpoints/libero_object_dense --checkpoint
      checkpoints/libero_object_cogact --split test --episodes 5 --workers 2 --out docs`: the table
      of the docs

    * `vla bench methods --no-success --tasks 0`: costs alone, minutes

    * `vla bench methods --method fastv:count=64 --method fastv:count=128 --out out/fastv`

    * `vla bench methods --sweep --method sp_vla --out out/sp_vla`: which constants?
    """
    from vla_policy_node.bench.methods import bench_methods
    from vla_policy_node.commands.numbers import parse_numbers
    from vla_policy_node.common.terminal import make_console

    try:
        bench_methods(
            out, make_console(), checkpoints=checkpoint or (), methods=method or (),
            also=also or (), sweep=sweep, split=split, success=success,
            frames_episodes=frames_episodes, workers=workers,
            command=_command(), arguments={'config': config, 'device': device}, suite=suite,
            task_ids=parse_numbers(tasks) if tasks else (), episodes=episodes,
            changes={'execution_mode': 'sync'}, horizon=horizon, threads=threads,
        )
    except ValueError as error:
        raise refusal(error) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt('Interrupted; the same command goes on from here.') from None


def redundancy(
    out: Annotated[Path, typer.Option(
        help='Folder for demonstrations, runs of training and the table.')] = Path(
            'runs/redundancy'),
    size: Annotated[list[str] | None, typer.Option(
        help='Size of the policy, an entry of the first stage like layers=24. Repeat. Default: '
        'layers=12, width=320, vision_blocks=6, vision_width=128, which is 19 M parameters.',
    )] = None,
    demos: Annotated[Path | None, typer.Option(
        help='Folder of `vla demos` with actions; none: 1500 are recorded.')] = None,
    scenes: Annotated[Path | None, typer.Option(
        help='Folder of `vla demos --layout scattered`; none: 440 are recorded.')] = None,
    also: Annotated[list[str] | None, typer.Option(
        help='Further rows of the table, as in `vla bench methods`. Repeat.')] = None,
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'.")] = 'cpu',
    workers: Annotated[int, typer.Option(
        min=1, help='Processes for demonstrations and episodes.')] = 2,
    smoke: Annotated[bool, typer.Option(
        '--smoke', help='Two steps of each stage and two short episodes: does it all run?',
    )] = False,
) -> None:
    """Train a policy with layers and parameters to spare, and compare all methods on it.

    Demonstrations, four stages of a dense policy, LightVLA, and the dense policy fine-tuned for as
    long; then the table of methods on test layouts. The same command goes on after an
    interruption. docs/acceleration.md has the single commands, and how long they take.

    * `vla bench redundancy --device cuda --workers 16`

    * `vla bench redundancy --smoke --out out/smoke`: does all of it run? Two minutes
    """
    from vla_policy_node.bench.redundancy import SIZES, Request, run
    from vla_policy_node.common.terminal import make_console

    try:
        run(Request(out, size or SIZES, demos, scenes, also or (), device, workers, smoke),
            make_console())
    except ValueError as error:
        raise refusal(error) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt('Interrupted; the same command goes on from here.') from None


def _command() -> str:
    """Return the command as the user gave it; paths in the working directory as relative ones."""
    here = re.compile(rf'(?<![\w.]){re.escape(str(Path.cwd()))}(?=/|$)')
    return shlex.join(['vla', *(here.sub('.', argument) for argument in sys.argv[1:])])


def policy(
    checkpoint: Annotated[
        str, typer.Option(help='Checkpoint directory; empty: the shipped default.')] = '',
    family: Annotated[str, typer.Option(
        help="With --size: 'pi0' or 'pi05'. Empty: OpenVLA-OFT.")] = '',
    size: Annotated[str, typer.Option(
        help="'public', or '7b' of OpenVLA-OFT: random weights, made on the device. Empty: the "
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
    demos: Annotated[Path | None, typer.Option(
        help='Folder of `vla demos`: look at its pictures, where the simulated world is not '
        'installed.')] = None,
    json: Annotated[Path | None, typer.Option(help='File for all figures.')] = None,
    markdown: Annotated[Path | None, typer.Option(help='File for the tables.')] = None,
) -> None:
    """Measure where the time of one inference goes, and how much of it is unavoidable.

    The floor of a stage is its FLOPs over the rate of matrix products, or the bytes of its weights
    over that of memory, whichever is more; both rates are measured first. Variants run in turn,
    so that a machine that slows down slows down all of them. Batch 1, two cameras.

    * `vla bench policy --json out/policy.json --markdown out/policy.md`: the tables of
      docs/measured.md

    * `vla bench policy --size 7b --device cuda --compiled --repetitions 100`: public size on a GPU

    * `vla bench policy --family pi0 --size public --device cuda`: pi0 with two views

    * `vla bench policy --only lightvla --only "dense, plain"`
    """
    from vla_policy_node.bench.policy_run import Options, run
    from vla_policy_node.common.terminal import make_console

    options = Options(checkpoint, family, size, device, repetitions, warm_up, pictures, threads,
                      count, compiled, clock, only or (), demos)
    try:
        run(options, json, markdown, make_console())
    except ValueError as error:
        raise refusal(error) from None


def faults(
    core: Annotated[int, typer.Option(min=0, help='Cases on the core of the node.')] = 9500,
    dds: Annotated[int, typer.Option(min=0, help='Cases on a running node over DDS.')] = 450,
    processes: Annotated[int, typer.Option(
        min=0, help='Cases with signals, clocks, floods and rivals.')] = 50,
    seed: Annotated[str, typer.Option(help="A number, or 'random'; it is printed.")] = '14',
    layer: Annotated[str, typer.Option(help='With --case: core, dds or processes.')] = 'core',
    case: Annotated[int, typer.Option(
        min=-1, help='Only this case of the layer, as a failure names it; -1: all.')] = -1,
    workers: Annotated[int, typer.Option(
        min=0, help='Processes for the core layer; 0: one for each CPU.')] = 0,
    out: Annotated[Path, typer.Option(
        help='Directory for faults.json and faults.md.')] = Path('out/faults'),
) -> None:
    """Break everything the node depends on, ten thousand times, and judge what it sends.

    Fails if one action was unsafe, something crashed or hung, or a stop came late.

    * `vla bench faults --seed random`: what runs every night

    * `vla bench faults --layer dds --case 17 --seed 14`: one case again
    """
    import secrets

    from vla_policy_node.bench.fault_campaign import LAYERS, Campaign, default_workers, run
    from vla_policy_node.common.terminal import make_console

    if layer not in LAYERS:
        raise refusal(ValueError(f'There is no layer {layer}; use {", ".join(LAYERS)}.'))
    if seed != 'random' and not seed.isdecimal():
        raise refusal(ValueError(f"The seed is {seed!r}; give a whole number or 'random'."))
    number = secrets.randbelow(10**9) if seed == 'random' else int(seed)
    counts = {'core': core, 'dds': dds, 'processes': processes}
    campaign = Campaign(counts if case < 0 else {layer: 1}, number, workers or default_workers(),
                        max(case, 0))
    try:
        kept = run(campaign, out, make_console())
    except (ValueError, RuntimeError) as error:
        raise refusal(error) from None
    if not kept:
        raise typer.Exit(1)


def soak(
    minutes: Annotated[float, typer.Option(min=0.2, help='How long.')] = 60.0,
    out: Annotated[Path, typer.Option(help='Directory for soak.json and soak.png.')] = Path(
        'out/soak'),
) -> None:
    """Work and be disturbed for an hour: memory, threads and descriptors must not grow.

    docs/reliability.md has figures.

    `vla bench soak --minutes 60 --out out/soak`
    """
    from vla_policy_node.bench.soak import run
    from vla_policy_node.common.terminal import make_console

    try:
        steady = run(minutes, out, make_console())
    except (ValueError, RuntimeError) as error:
        raise refusal(error) from None
    if not steady:
        raise typer.Exit(1)
