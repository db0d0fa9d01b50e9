"""Camera pictures for `vla bench policy`, from the simulated world or from demonstrations."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import numpy as np

from vla_policy_node.policy.interface import Observation, PolicySpec

WIDTH, HEIGHT = 640, 480
PROPRIO = np.array([-0.1, 0.0, 1.0, 3.1, 0.0, 0.0, 0.02, -0.02])
_SUITE, _TASK = 'libero_object', 0


def observe_world(count: int) -> list[Observation]:
    """Observe `count` layouts of one LIBERO task, [480, 640, 3] per camera; always the same ones.

    ValueError with one sentence if the simulated world is not installed.
    """
    try:
        from vla_policy_node.world.libero_world import LiberoWorld, tasks
    except ImportError as error:
        raise ValueError(
            f'The bench takes its pictures from the simulated world, which needs {error.name}; '
            'run scripts/setup.sh, or give a folder of demonstrations with --demos.'
        ) from error
    world = LiberoWorld(tasks(_SUITE)[_TASK], (WIDTH, HEIGHT))
    observations = []
    for layout in range(count):
        world.reset(layout % world.initial_states)
        observations.append(Observation(world.render(), PROPRIO, world.instruction))
    return observations


def seen_by(observation: Observation, spec: PolicySpec) -> Observation:
    """The same pictures for the cameras of a policy, in turn; a state of another robot is zero."""
    pictures = cycle(observation.images.items())
    known = observation.images.keys() >= {*spec.cameras}
    images = observation.images if known else {
        camera: next(pictures)[1] for camera in spec.cameras}
    fits = len(spec.state) in (0, len(observation.proprio))
    proprio = observation.proprio if fits else np.zeros(len(spec.state))
    return Observation(images, proprio, observation.instruction)


def observe_demonstrations(directory: Path, count: int) -> list[Observation]:
    """The first frames of `count` demonstrations, for machines without the simulated world.

    ValueError with one sentence if the folder holds none.
    """
    from vla_policy_node.training.demonstrations import Demonstrations

    source = Demonstrations(directory)
    firsts = np.flatnonzero(source.frames[:, 1] == 0)
    frames = [source.load(int(firsts[i % len(firsts)])) for i in range(count)]
    return [
        Observation(frame.images, frame.proprio.astype(float), frame.instruction)
        for frame in frames
    ]
