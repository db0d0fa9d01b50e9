"""`vla dataset import`: demonstrations from a LeRobot dataset, with a progress bar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vla_policy_node.commands.dataset_progress import follow
from vla_policy_node.common.printable import printable
from vla_policy_node.lerobot.reader import LeRobotReader
from vla_policy_node.policy.interface import PolicySpec
from vla_policy_node.training.dataset_choice import choose
from vla_policy_node.training.dataset_import import DatasetImport


def import_dataset(
    folder: Path, out: Path, checkpoint: str, contract: str, cameras: Sequence[str],
    features: tuple[str, str], by_place: bool, name: str, console: Console, episodes: str = '',
) -> None:
    """Import and report. ValueError with one sentence says what cannot be done.

    cameras: 'NAME=KEY' each. features: keys of state and actions. episodes: 'FIRST:END'.
    """
    chosen = {}
    for pair in cameras:
        camera, equals, key = pair.partition('=')
        if not (camera and equals and key):
            raise ValueError(f"--camera takes NAME=KEY, e.g. wrist=observation.images.hand, not "
                             f"'{pair}'.")
        chosen[camera] = key
    spec = wanted_spec(checkpoint, contract)
    dataset = LeRobotReader(folder)
    choice = choose(dataset.info, spec, chosen, *features, by_place=by_place)
    work = DatasetImport(dataset, choice, out, name or out.resolve().name,
                         chosen_episodes(episodes, len(dataset.episodes)))
    rows = sum(episode.length for episode in work.episodes)
    new = follow(work.run(), rows, console)
    for remark in dataset.remarks:
        console.print(printable(remark), soft_wrap=True)
    console.print(
        f'{out}: {len(work.episodes)} demonstrations of {rows} steps at '
        f'{dataset.info.fps:g} Hz, {new} of them new; vla train ... --demos {out}',
        soft_wrap=True)


def chosen_episodes(chosen: str, count: int) -> range:
    """Read 'FIRST:END', of which either may be left out, of a dataset of `count` episodes."""
    found = re.fullmatch(r'(\d{0,9}):(\d{0,9})', chosen or ':', re.ASCII)
    numbers = range(int(found[1] or 0), int(found[2] or count)) if found else range(0)
    if not numbers or numbers[-1] >= count:
        raise ValueError(f"--episodes takes FIRST:END within the {count} episodes of the dataset, "
                         f"e.g. 0:{count}, not '{chosen}'.")
    return numbers


def wanted_spec(checkpoint: str, contract: str) -> PolicySpec | None:
    """Return what goes into a policy, or into any policy for a robot; None if nobody says.

    Raises ValueError if both are given and do not fit each other.
    """
    from vla_policy_node.contract import find_contract
    from vla_policy_node.contract.fit import check_fits, spec_of

    robot = find_contract(contract) if contract else None
    if checkpoint:
        from vla_policy_node.policy import read_spec  # torch

        spec = read_spec(checkpoint)
        if robot:
            check_fits(spec, robot)
        return spec
    return spec_of(robot) if robot else None
