"""Chooses the episodes that a demo shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vla_policy_node.world.layouts import HELD_OUT_SEED
from vla_policy_node.world.libero_world import tasks


@dataclass(frozen=True)
class Scene:
    """Where an episode takes place; the fields of ResetWorld's request."""

    suite: str
    task_id: int
    layout: str
    initial_state: int


def choose_scenes(
    suite: str, layout: str, episodes: int, task_ids: Sequence[int], instruction: str
) -> list[Scene]:
    """Return one scene per episode: the tasks in turn, each time another layout.

    Shuffled layouts are held-out ones, which no training has seen. instruction: '' or what is
    asked for in all episodes. ValueError for an instruction that the suite does not know.
    """
    if instruction:
        known = {task.instruction: task.task_id for task in tasks(suite)}
        words = ' '.join(instruction.lower().rstrip('. ').split())
        if words not in known:
            raise ValueError(
                f"{suite} cannot tell whether '{instruction}' succeeds; it knows: "
                f'{"; ".join(known)}.')
        task_ids = [known[words]]
    elif not task_ids:
        task_ids = range(min(episodes, len(tasks(suite))))
    first = HELD_OUT_SEED if layout == 'shuffled' else 0
    return [
        Scene(suite, task_ids[number % len(task_ids)], layout, first + number // len(task_ids))
        for number in range(episodes)
    ]
