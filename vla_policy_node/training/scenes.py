"""Still scenes: pictures of shuffled layouts with labels, under a moving arm.

Grounding needs many layouts and no motion. The arm travels between random poses, and for every
picture the objects are put somewhere else, which costs a tenth of a demonstrated frame. Files
are those of `demonstrations`, with `action` all zeros.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vla_policy_node.training.demonstrations import Demonstration
from vla_policy_node.training.recording import RecordingRecipe, Tape
from vla_policy_node.world.libero_world import LiberoWorld

FRAMES = 32  # of one file: one walk of the arm
STEPS_BETWEEN = 2

_GAIN_PER_M = 12.0
_REACHED_M = 0.03
_PATIENCE_STEPS = 25
_TURN_RAD = 0.8  # at most, about the vertical
# Where the hand wanders (m, world frame): over all places of the objects, low more often.
LOW, HIGH = np.array([-0.28, -0.32, 0.02]), np.array([0.22, 0.34, 0.32])


def record_scenes(world: LiberoWorld, recipe: RecordingRecipe, seed: int) -> Demonstration:
    """Return FRAMES pictures along one walk of the arm."""
    rng = np.random.default_rng(seed)
    world.reset_layout('shuffled', seed)
    way = _wander(world, rng)
    tape = Tape(world, every=1, phase=0)
    for frame in range(FRAMES):
        for _ in range(STEPS_BETWEEN):
            world.step(next(way))
        world.scatter(seed * FRAMES + frame)
        tape.still()
    return tape.finish(recipe, seed, noise=0.0)


def _wander(world: LiberoWorld, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield actions towards one random pose after the other."""
    while True:
        place = LOW + (HIGH - LOW) * rng.uniform(size=3) ** np.array([1, 1, 1.5])
        turn, gripper = rng.uniform(-_TURN_RAD, _TURN_RAD), rng.choice([-1.0, 1.0])
        for _ in range(_PATIENCE_STEPS):
            error = place - world.state().position
            if np.linalg.norm(error) < _REACHED_M:
                break
            translation = np.clip(_GAIN_PER_M * error, -1, 1)
            # A fifth of the turn each step, and back again with the next pose.
            rotation = 0.2 * (turn - _yaw(world)) / 0.5
            yield np.array([*translation, 0, 0, np.clip(rotation, -1, 1), gripper])


def _yaw(world: LiberoWorld) -> float:
    """How far the hand is turned about the vertical from where episodes start (rad)."""
    x, y, z, w = world.state().quaternion_xyzw
    # The x axis of the hand, which points down, in the world: along x at the start.
    axis = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + z * w)])
    return float(np.arctan2(axis[1], axis[0]))
