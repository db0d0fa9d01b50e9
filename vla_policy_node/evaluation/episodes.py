"""One closed-loop episode in the world, with the node's own control classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vla_policy_node.contract.fit import state_places
from vla_policy_node.evaluation.grounding import tokens_on_parts
from vla_policy_node.evaluation.lock_step import LockStepControl
from vla_policy_node.evaluation.progress import EpisodeProgress
from vla_policy_node.policy.interface import ActionChunk, Observation, Policy
from vla_policy_node.world.proprio import pose_of, proprio_of
from vla_policy_node.world.robot import world_robot

if TYPE_CHECKING:
    from vla_policy_node.loop.parameters import PolicyParameters
    from vla_policy_node.world.libero_world import LiberoWorld


@dataclass(frozen=True, eq=False)
class Inference:
    """One inference of an episode.

    step: control steps before it. phase: what the robot was doing (`progress.PHASES`).
    on_parts: part -> [cameras, grid_h, grid_w] bool, which tokens lie on it; empty if not
    requested.
    """

    step: int
    phase: str
    chunk: ActionChunk
    on_parts: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class EpisodeResult:
    """Outcome of an episode; `failure` is one of `progress.FAILURES`, '' after a success."""

    success: bool
    steps: int
    failure: str
    inferences: tuple[Inference, ...]


def run_episode(
    world: LiberoWorld,
    policy: Policy,
    parameters: PolicyParameters,
    instruction: str = '',
    images: Callable[[LiberoWorld], dict[str, np.ndarray]] | None = None,
    execute: int = 0,
    horizon: int = 0,
    ground: bool = False,
) -> EpisodeResult:
    """Run the policy from the current state of the world to success or the time limit.

    parameters: the node's; its execution mode decides when to infer.
    instruction: what the policy is told, '' for the world's own.
    images: what the policy is shown, None for the camera images.
    execute: actions of each chunk to use, 0 for all. horizon: control steps, 0 for the suite's.
    ground: also determine which tokens lie on the object, the gripper and the goal; this costs
        two more pictures per inference.
    """
    instruction = instruction or world.instruction
    control = LockStepControl(policy, parameters, instruction)
    told = list(state_places(policy.description.spec, world_robot()))
    progress = EpisodeProgress(world)
    inferences = []
    for step in range(horizon or world.horizon):
        state = world.state()
        if control.needs_inference():
            pictures = images(world) if images else world.render()
            chunk = control.infer(
                Observation(pictures, proprio_of(state)[told], instruction), execute)
            on_parts = tokens_on_parts(world, chunk.selections) if ground else {}
            inferences.append(Inference(step, progress.phase, chunk, on_parts))
        action = control.next_action(*pose_of(state))
        world.step(action)
        progress.update(action)
        if world.success:
            return EpisodeResult(True, world.steps, '', tuple(inferences))
    return EpisodeResult(False, world.steps, progress.failure, tuple(inferences))
