"""Declares `vla dataset`: datasets of LeRobot, both ways."""

from pathlib import Path
from typing import Annotated

import typer

from vla_policy_node.cli.refusal import refusal
from vla_policy_node.cli.topics import more_topics, with_topic_options


def info(
    dataset: Annotated[Path, typer.Argument(
        help='Folder of a LeRobot dataset v3, which holds meta/, data/ and videos/.')],
) -> None:
    """Say what a LeRobot dataset v3 holds: episodes, features with their names, tasks.

    What meta/ says of itself is checked; rows and pictures are by `vla dataset import`.

    * `vla dataset info ~/datasets/pick_cube`
    """
    from vla_policy_node.commands.dataset_info import dataset_info
    from vla_policy_node.common.terminal import make_console

    try:
        dataset_info(dataset, make_console())
    except ValueError as error:
        raise refusal(error) from None


def import_(
    dataset: Annotated[Path, typer.Argument(help='Folder of a LeRobot dataset v3.')],
    out: Annotated[Path, typer.Option(
        help='New folder for the demonstrations; an interrupted import goes on.')],
    checkpoint: Annotated[str, typer.Option(
        help='The policy to train: its cameras, state and actions are looked for by name.')] = '',
    contract: Annotated[str, typer.Option(
        help='The robot: a contract (.yaml), or the name of one that comes with the package; the '
        'same, without a policy.')] = '',
    camera: Annotated[list[str] | None, typer.Option(
        help='Which camera of the dataset is one of the policy: NAME=KEY. Repeat.')] = None,
    state: Annotated[str, typer.Option(help='Feature with the state.')] = 'observation.state',
    action: Annotated[str, typer.Option(help='Feature with the actions.')] = 'action',
    episodes: Annotated[str, typer.Option(
        help='Which ones: FIRST:END, without END, as in splits of LeRobot; empty: all.')] = '',
    by_place: Annotated[bool, typer.Option(
        '--by-place', help='Numbers are those of the policy in its order, under other names.',
    )] = False,
    name: Annotated[str, typer.Option(
        help='Of the data set in dataset_statistics.json; empty: that of the folder.')] = '',
) -> None:
    """Make demonstrations for `vla train` from a LeRobot dataset v3.

    All is checked: rows, times, pictures. Numbers are matched by name ('.pos' at its end aside)
    and put in the policy's order; what does not fit is refused with what to set. Pictures from
    images stay lossless; those from videos become JPEG of quality 95. Where nobody labelled
    objects, train on actions alone: `--set 'losses={action: 1}' --set tokens_kept=0`.
    Ctrl-C leaves no half set; the same command goes on.

    * `vla dataset import ~/datasets/pick --out data/pick --checkpoint my/checkpoint --camera
    third_person=top --camera wrist=hand`

    * `vla dataset import ~/datasets/pick --out data/pick --contract my_robot.yaml --episodes 0:50`
    """
    from vla_policy_node.commands.dataset_import import import_dataset
    from vla_policy_node.common.terminal import make_console

    try:
        import_dataset(dataset, out, checkpoint, contract, camera or (), (state, action),
                       by_place, name, make_console(), episodes)
    except ValueError as error:
        raise refusal(error) from None


def export(
    demos: Annotated[Path, typer.Argument(
        help='Folder of demonstrations, by `vla demos` or `vla dataset import`.')],
    out: Annotated[Path, typer.Option(
        help='Folder for the dataset; an interrupted export goes on, an earlier one is replaced.',
    )],
    images: Annotated[bool, typer.Option(
        '--images', help='Pictures without loss in the tables, instead of videos.')] = False,
    robot: Annotated[str, typer.Option(
        help="robot_type of the dataset; empty: what the demonstrations say, or 'panda'.")] = '',
) -> None:
    """Write demonstrations as a LeRobot dataset v3, which LeRobot loads from its folder.

    A row is a control step; with pictures every few steps only, the last one is held and
    fresh_pictures is false. Videos are AV1 as LeRobot encodes it. What LeRobot has no place for,
    such as labels of objects, lies beside in vla_policy_node/: with --images, training on what is
    imported again is bit for bit training on the originals.

    * `vla dataset export data/object --out ~/datasets/object --images`
    """
    from vla_policy_node.commands.dataset_export import export_dataset
    from vla_policy_node.common.terminal import make_console

    try:
        export_dataset(demos, out, images, robot, make_console())
    except ValueError as error:
        raise refusal(error) from None


@with_topic_options
def from_bag(
    context: typer.Context,
    bags: Annotated[list[Path], typer.Argument(
        help='Folders of rosbag2 (mcap or sqlite3, zstd too), or single .mcap or .db3 files.')],
    out: Annotated[Path, typer.Option(
        help='Folder for the dataset; an interrupted run goes on, an earlier one is replaced.')],
    contract: Annotated[str, typer.Option(
        help='The robot that was recorded: a contract (.yaml), or the name of one that comes with '
        'the package. Empty: what the bag says, or else the default one.')] = '',
    instruction: Annotated[str, typer.Option(
        help='What the robot was asked to do from the first to the last message; empty: what the '
        'bag says.')] = '',
    fps: Annotated[int, typer.Option(
        min=0, max=1000, help='Rows per second; 0: the control rate of the recording, or 20.',
    )] = 0,
    actions_topic: Annotated[str, typer.Option(
        help='What the robot was told. Of an end effector: vla_msgs/EndEffectorCommand, '
        'geometry_msgs/TwistStamped or Twist, or commanded poses (PoseStamped); empty: /command. '
        'Of joints: vla_msgs/JointCommand, or the sensor_msgs/JointState of a leader arm.')] = '',
    measured: Annotated[bool, typer.Option(
        '--measured', help='Actions of joints are the positions measured one row later.')] = False,
    images: Annotated[bool, typer.Option(
        '--images', help='Pictures without loss in the tables, instead of videos.')] = False,
    stamps: Annotated[str, typer.Option(
        help="When samples were made: 'header', what their stamps say, or 'log', the times of "
        'recording, for bags whose stamps are zero.')] = 'header',
    bag_namespace: Annotated[str, typer.Option(
        help="The robot, by its namespace in the bag, for example r1; '/' for the one in none. "
        'Empty: the only one.')] = '',
    **topics: str,
) -> None:
    """Write recorded bags as one LeRobot dataset v3, read through the robot's contract.

    Cameras, state and actions are those of the contract, under its names and in its units. Each
    goal is an episode; it ends where an input is missing for half a second. A row takes the newest
    sample of every stream, and the command that was sent then; where none was, the robot stands
    still. --NAME-topic TOPIC names the topic of any stream, as for `vla replay`.

    * `vla dataset from-bag bags/* --out ~/datasets/pick`

    * `vla dataset from-bag teleop.mcap --contract my_arm.yaml --actions-topic
    leader/joint_states --instruction "pick the cup" --fps 30 --out ~/datasets/cup`
    """
    from vla_policy_node.commands.dataset_from_bag import dataset_from_bags
    from vla_policy_node.common.terminal import make_console
    from vla_policy_node.replay.dataset_rows import BagRequest

    chosen = {name.removesuffix('_topic'): topic for name, topic in topics.items() if topic}
    chosen |= more_topics(context)
    try:
        dataset_from_bags(
            bags, BagRequest(contract, instruction, fps, chosen, actions_topic, measured, stamps,
                             bag_namespace), out, images, make_console())
    except ValueError as error:
        raise refusal(error) from None
