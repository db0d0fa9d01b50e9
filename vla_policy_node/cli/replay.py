"""Declares `vla replay` and `vla record`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vla_policy_node.cli.namespaces import namespace_of
from vla_policy_node.cli.refusal import refusal
from vla_policy_node.cli.topics import more_topics, with_topic_options
from vla_policy_node.cli.trust import agrees

_PASSED, _FAILED_GATE = 0, 1


@with_topic_options
def replay(
    context: typer.Context,
    bags: Annotated[list[Path], typer.Argument(
        help='Folders of rosbag2 (mcap or sqlite3, zstd too), or single .mcap or .db3 files.')],
    out: Annotated[Path, typer.Option(help='Folder for the report; an earlier one is replaced.')],
    config: Annotated[str, typer.Option(
        help="A parameter file, or methods as for `vla eval`: 'dense', 'lightvla', "
        "'fastv:count=60'. Empty: what the bag was recorded with.")] = '',
    against: Annotated[str, typer.Option(
        help='The same, for a second policy to compare with. Empty: none.')] = '',
    checkpoint: Annotated[str, typer.Option(
        help='Checkpoint of both; empty: that of the parameters.')] = '',
    contract: Annotated[str, typer.Option(
        help='The robot that was recorded: a contract (.yaml), or the name of one that comes with '
        'the package. Empty: what the parameter file says, or else the bag.')] = '',
    statistics_key: Annotated[str, typer.Option(
        help='Data set of the checkpoint to un-normalise with; empty: that of the parameters, or '
        'the only one.')] = '',
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'; empty: as the config says.")] = '',
    instruction: Annotated[str, typer.Option(
        help='Follow this from the first to the last message; empty: what the bag says.')] = '',
    max_error: Annotated[list[str] | None, typer.Option(
        help='Gate: largest action error, with unit: 2mm, 0.5deg; repeat for both kinds. The 95th '
        'percentile of the worst axis, between the two policies, or to the actions of the bag.',
    )] = None,
    max_p95_ms: Annotated[float | None, typer.Option(
        min=0.0, help='Gate: 95th percentile of the inference time of --config.')] = None,
    min_agreement: Annotated[float | None, typer.Option(
        min=0.0, max=1.0, help='Gate: share of periods in which the gripper agrees.')] = None,
    latency_periods: Annotated[int, typer.Option(
        min=-1, help="Control periods that an inference takes in the bag's time; -1: as long as "
        'when the bag was recorded.')] = -1,
    actions_topic: Annotated[str, typer.Option(
        help='Executed or expert actions to compare with: vla_msgs/EndEffectorCommand, '
        'geometry_msgs/TwistStamped or Twist, or commanded poses (PoseStamped), of which the '
        'differences count. Empty: /command.')] = '',
    stamps: Annotated[str, typer.Option(
        help="When samples were made: 'header', what their stamps say, or 'log', the times of "
        'recording, for bags whose stamps are zero.')] = 'header',
    bag_namespace: Annotated[str, typer.Option(
        help="The robot to replay, by its namespace in the bag, for example r1; '/' for the one "
        'in none. Empty: the only one.')] = '',
    threads: Annotated[int, typer.Option(min=1, help='Threads of torch per worker.')] = 1,
    workers: Annotated[int, typer.Option(min=1, help='Bags at a time on this machine.')] = 1,
    trust_bag: Annotated[bool, typer.Option(
        help='Use the checkpoint that a bag names, of whichever directory or hub.')] = False,
    ray: Annotated[str, typer.Option(
        help="Address of a Ray cluster to spread the bags over, 'auto' for the one of this "
        'machine. The bags and --out must be on storage that all machines see.')] = '',
    video: Annotated[bool, typer.Option(help='Write overlay.mp4.')] = True,
    rerun: Annotated[bool, typer.Option(help='Also write replay.rrd for `rerun`.')] = False,
    mcap: Annotated[bool, typer.Option(
        help='Also write foxglove/foxglove.mcap; layout: config/foxglove_layout.json.')] = False,
    **topics: str,
) -> None:
    """Run a policy over a recorded bag, and a second one to see what changes.

    The bag goes through the node's own pairing, execution and limits; time is counted, not
    measured, so two runs on one kind of processor with as many threads say the same. Leaves
    report.html, report.json (then the same bytes), latency.json (wall times), plots, overlay.mp4.
    --NAME-topic TOPIC names the topic of any stream of the robot's contract.
    Exit code 0: all gates kept; 1: one was not, or a bag failed; 2: could not begin.

    * `vla replay out/demo/bag --config dense --against lightvla --out out/replay`

    * `vla replay bags/* --config my.yaml --max-error 2mm --min-agreement 0.98 --out out/ci`

    * `vla replay bags/* --config dense --against lightvla --ray auto --out out/many`
    """
    from vla_policy_node.common.terminal import make_console
    from vla_policy_node.replay.gate import GateLimits, parse_error_limit
    from vla_policy_node.replay.many import replay_bags
    from vla_policy_node.replay.settings import ReplaySettings, untrusted
    from vla_policy_node.replay.stamps import STAMPS

    chosen = {name.removesuffix('_topic'): topic for name, topic in topics.items()}
    chosen |= more_topics(context)
    try:
        if stamps not in STAMPS:
            raise ValueError(f"--stamps is {stamps!r}; it can be {' or '.join(STAMPS)}.")
        errors = tuple(map(parse_error_limit, max_error or ()))
        limits = GateLimits(errors, max_p95_ms, min_agreement)
        settings = ReplaySettings(
            config, against, checkpoint, device, instruction, chosen, actions_topic,
            latency_periods, threads, video, rerun, mcap, limits, trust_bag, stamps,
            contract, statistics_key, bag_namespace)
        if not trust_bag and sys.stdin.isatty() and agrees(untrusted(bags, settings)):
            settings = replace(settings, trust_bag=True)
        passed = replay_bags(bags, settings, out, workers, ray, make_console())
    except ValueError as error:
        raise refusal(error) from None
    except KeyboardInterrupt:
        again = ' The same command goes on with the others.' if len(bags) > 1 else ''
        raise KeyboardInterrupt(
            f'Interrupted; only whole reports were written.{again}') from None
    raise typer.Exit(_PASSED if passed else _FAILED_GATE)


def record(
    out: Annotated[Path, typer.Argument(help='New folder for the bag.')],
    storage: Annotated[str, typer.Option(
        help='mcap, or sqlite3; only mcap survives a recorder that is killed.')] = 'mcap',
    compress: Annotated[bool, typer.Option(help='With zstd.')] = False,
    compressed_images: Annotated[bool, typer.Option(
        help="Record the cameras' .../compressed topics.")] = False,
    contract: Annotated[str, typer.Option(
        help='The robot whose inputs to record: a contract (.yaml), or the name of one that comes '
        'with the package. Empty: what the policy node says.')] = '',
    topic: Annotated[list[str] | None, typer.Option(
        help='Another topic to record; repeat.')] = None,
    sim_time: Annotated[bool, typer.Option(help='Live on /clock, for a simulated world.')] = False,
    namespace: Annotated[str, typer.Option(
        help='Namespace of the robot to record, as of `vla bringup`.')] = '',
    repair: Annotated[bool, typer.Option(
        help='Do not record: OUT is a bag that was cut off; write what is whole of it to '
        'OUT-repaired.')] = False,
) -> None:
    """Record what `vla replay` needs of a running system, until Ctrl-C.

    The inputs of the policy, its chunks, commands, selections, status and self-description, its
    parameters as policy.yaml and the contract of its robot as robot.yaml. `vla bringup --record
    DIR` and `record:=DIR` of the launch files do the same. Topics on which nothing came are named.
    Exit code 0: something was recorded, or repaired; 1: nothing came; 2: could not begin.

    * `vla record bags/monday-1 --compress`

    * `vla record bags/monday-1 --repair`
    """
    if repair:
        from vla_policy_node.replay.bag import BagError
        from vla_policy_node.replay.repair import repair_bag

        try:
            target, count = repair_bag(out)
        except BagError as error:
            raise refusal(error) from None
        typer.echo(f'{target}: {count} messages.')
        return
    from vla_policy_node.nodes.recorder_node import main

    values = {'output': str(out), 'storage': storage, 'compressed': compressed_images,
              'compression': 'zstd' if compress else 'none', 'use_sim_time': sim_time,
              'contract': contract, 'extra_topics': topic or ['']}
    from vla_policy_node.system.description import NodeSpec

    spec = NodeSpec('recorder', values, namespace=namespace_of(namespace))
    try:
        main(['vla', '--ros-args', *spec.full_arguments()])
    except SystemExit as end:
        if isinstance(end.code, str):  # a sentence: the node refused to begin
            raise refusal(end.code) from None
        raise
