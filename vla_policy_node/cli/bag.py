"""Declares `vla bag info`."""

from pathlib import Path
from typing import Annotated

import typer

from vla_policy_node.cli.refusal import refusal


def info(
    bag: Annotated[Path, typer.Argument(
        help='A folder of rosbag2, its metadata.yaml, or one .mcap or .db3 file, zstd too.')],
    contract: Annotated[str, typer.Option(
        help='The robot whose inputs to look for: a .yaml file, or the name of a contract that '
        'comes with the package. Empty: what the bag says.')] = '',
    bag_namespace: Annotated[str, typer.Option(
        help="The robot to look for, by its namespace in the bag; '/' for the one in none. Empty: "
        'the only one.')] = '',
    checkpoint: Annotated[str, typer.Option(
        help='A policy, to say whether it can be replayed on the bag: a directory, or an id of '
        'the Hugging Face hub.')] = '',
) -> None:
    """Say what a recording holds, and which topic feeds which input of a policy.

    Rates, gaps, how far the inputs are apart in time, and for each input that cannot be used why
    not, and which topics could be named instead. Then which kinds of policy can be replayed on it,
    or whether the one of --checkpoint can. Nothing is changed. Exit code 0: `vla replay` finds all
    inputs, or those of the checkpoint; 1: it does not without more options; 2: the bag cannot be
    read.

    * `vla bag info bags/monday-1`

    * `vla bag info robot.mcap --contract my_robot.yaml --checkpoint ~/openvla-7b`
    """
    from vla_policy_node.commands.bag_info import bag_info
    from vla_policy_node.common.terminal import make_console

    try:
        ready = bag_info(bag, contract, bag_namespace, checkpoint, make_console())
    except ValueError as error:
        raise refusal(error) from None
    raise typer.Exit(0 if ready else 1)
