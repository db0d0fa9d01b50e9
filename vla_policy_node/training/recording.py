"""Records one demonstration: the expert solves an episode under disturbances.

The label of every step is the expert's action; the executed action has added noise. So the hand
visits places beside the expert's path, and the labels lead back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vla_policy_node.training.demonstrations import Demonstration
from vla_policy_node.world.expert import STAND_STILL, Expert
from vla_policy_node.world.libero_world import LiberoWorld
from vla_policy_node.world.proprio import proprio_of
from vla_policy_node.world.words import GOALS

LABELS_STRIDE = 2  # of the label images against the camera images
REST_STEPS = 4  # after success, so that a policy learns to stop
LONGEST_STEPS = 180  # about 100 are usual; an episode that takes longer was stuck

_PUSHED_SHARE, _MOVED_SHARE = 1 / 3, 3 / 8


@dataclass(frozen=True)
class RecordingRecipe:
    """The options of `vla demos`.

    noise: largest standard deviation on the six motion dimensions, in LIBERO's units; each
    episode has none, half or all of it. frame_every: control steps from one frame to the next.
    retarget: ask for a random object of the scene, where every object can go to the same place.
    """

    suite: str
    layout: str
    tasks: tuple[int, ...]
    noise: float
    frame_every: int
    retarget: bool
    image_px: int = 224

    def task_of(self, seed: int) -> int:
        """Return which task a seed belongs to: all get their turn."""
        return self.tasks[seed % len(self.tasks)]


def record(world: LiberoWorld, recipe: RecordingRecipe, seed: int) -> Demonstration | None:
    """Return the demonstration of a layout seed, or None where the expert failed."""
    world.reset_layout(recipe.layout, seed)
    # A stream of its own: the layout takes the seed itself.
    rng = np.random.default_rng([seed, 1])
    if recipe.retarget:
        candidates = [name for name in world.objects if name != GOALS[recipe.suite]]
        world.retarget(candidates[rng.integers(len(candidates))])
    noise = recipe.noise * rng.choice([0.0, 0.5, 1.0])
    disturbance = _Disturbance(noise, rng)
    if rng.random() < _MOVED_SHARE:
        _wander(world, rng)
    first = world.steps
    tape = Tape(world, recipe.frame_every, int(rng.integers(recipe.frame_every)))
    expert = Expert(world, rng)
    while world.steps - first < LONGEST_STEPS:
        wanted = expert.act()
        if wanted is None:
            break
        tape.step(wanted, disturbance.apply(wanted, expert.in_transit))
    if not world.success:
        return None
    for _ in range(REST_STEPS):
        tape.step(STAND_STILL, STAND_STILL)
    # What was dropped into place may have bounced out.
    return tape.finish(recipe, seed, noise) if world.success else None


def _wander(world: LiberoWorld, rng: np.random.Generator) -> None:
    """Start elsewhere: move a few steps in a random direction, not far down."""
    direction = np.array([
        *rng.uniform((-0.8, -0.8, -0.4), 0.8), *rng.uniform(-0.25, 0.25, 2),
        rng.uniform(-0.6, 0.6), STAND_STILL[6],
    ])
    for _ in range(rng.integers(3, 13)):
        world.step(direction)


class _Disturbance:
    """Noise on every action and, in some episodes, one push while the hand travels."""

    def __init__(self, noise: float, rng: np.random.Generator):
        self._noise, self._rng = noise, rng
        pushed = rng.random() < _PUSHED_SHARE
        self._push_from = int(rng.integers(3, 70)) if pushed else None
        self._push_left = int(rng.integers(3, 8))
        self._push = rng.uniform(-1, 1, 6) * (1, 1, 1, 0.3, 0.3, 0.3)
        self._step = 0

    def apply(self, wanted: np.ndarray, in_transit: bool) -> np.ndarray:
        action = wanted.copy()
        action[:6] += self._noise * self._rng.standard_normal(6)
        late_enough = self._push_from is not None and self._step >= self._push_from
        if late_enough and in_transit and self._push_left:
            action[:6] += self._push
            self._push_left -= 1
        self._step += 1
        return np.clip(action, -1, 1)


@dataclass
class Tape:
    """What has been recorded so far. Frames are taken before steps phase, phase + every, ..."""

    world: LiberoWorld
    every: int
    phase: int
    proprio: list = field(default_factory=list)
    action: list = field(default_factory=list)
    executed: list = field(default_factory=list)
    frame_step: list = field(default_factory=list)
    object_position: list = field(default_factory=list)
    images: list = field(default_factory=list)
    labels: list = field(default_factory=list)

    def step(self, wanted: np.ndarray, executed: np.ndarray) -> None:
        """Record one control step with the label `wanted`, and do `executed`; [7] of the world."""
        step = len(self.action)
        # In the first frame a policy has nothing but the image to go by.
        if step == 0 or step % self.every == self.phase:
            self._take_frame(step)
        self.proprio.append(proprio_of(self.world.state()))
        self.action.append(to_policy(wanted))
        self.executed.append(to_policy(executed))
        self.world.step(executed)

    def still(self) -> None:
        """Take a frame that belongs to no motion."""
        self._take_frame(len(self.action))
        self.proprio.append(proprio_of(self.world.state()))
        self.action.append(np.zeros(7))
        self.executed.append(np.zeros(7))

    def _take_frame(self, step: int) -> None:
        world = self.world
        self.frame_step.append(step)
        self.object_position.append([world.object_position(name) for name in world.objects])
        self.images.append({name: image.copy() for name, image in world.render().items()})
        self.labels.append({
            name: (mask[::LABELS_STRIDE, ::LABELS_STRIDE] + 1).astype(np.uint8)
            for name, mask in world.segment().items()
        })

    def finish(self, recipe: RecordingRecipe, seed: int, noise: float) -> Demonstration:
        """Return all of it, with the world's present success."""
        world = self.world
        return Demonstration(
            proprio=np.array(self.proprio),
            action=np.array(self.action),
            executed=np.array(self.executed),
            frame_step=self.frame_step,
            object_position=np.array(self.object_position),
            images=_by_camera(self.images),
            labels=_by_camera(self.labels),
            suite=recipe.suite,
            task_id=world.task.task_id,
            layout=recipe.layout,
            seed=seed,
            noise=noise,
            success=world.success,
            instruction=world.instruction,
            target=world.target,
            objects=world.objects,
            segments=world.segments,
        )


def to_policy(action: np.ndarray) -> np.ndarray:
    """[7] of the world (gripper -1 open, 1 closed) -> the policy's (1 open, 0 closed)."""
    return np.array([*action[:6], (1 - action[6]) / 2])


def _by_camera(frames: Sequence[dict]) -> dict[str, list]:
    return {camera: [frame[camera] for frame in frames] for camera in frames[0]}
