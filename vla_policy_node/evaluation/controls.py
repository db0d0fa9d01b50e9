"""Controls: inputs are taken away from a policy to see whether it needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vla_policy_node.world.libero_world import tasks

if TYPE_CHECKING:
    from vla_policy_node.world.libero_world import LiberoWorld

# 'none': no change. 'gray': all images are gray. 'wrong-instruction': the instruction asks for
#     something else, but success is still that of the original task.
CONTROLS = ('none', 'gray', 'wrong-instruction')
GRAY = 128


def gray_images(
    cameras: Sequence[str], width_px: int, height_px: int
) -> dict[str, np.ndarray]:
    """Return gray for each of the cameras, [height, width, 3] uint8."""
    return dict.fromkeys(cameras, np.full((height_px, width_px, 3), GRAY, np.uint8))


def wrong_instruction(world: LiberoWorld, seed: int) -> str:
    """Return an instruction for something other than the task; same seed, same words.

    In libero_object it asks for another object of the scene; elsewhere it is that of another
    task of the suite.
    """
    rng = np.random.default_rng(seed)
    if world.task.suite != 'libero_object':
        others = [task.instruction for task in tasks(world.task.suite) if task != world.task]
        return others[rng.integers(len(others))]
    target, basket = world.target, world.goals[0][2]
    others = [name for name in world.objects if name != target and not basket.startswith(name)]
    world.retarget(others[rng.integers(len(others))])
    words = world.instruction
    world.retarget(target)
    return words
