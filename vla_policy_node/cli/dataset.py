"""Declares `vla dataset`: datasets of LeRobot, both ways."""

from pathlib import Path
from typing import Annotated

import typer

from vla_policy_node.cli.refusal import refusal


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
