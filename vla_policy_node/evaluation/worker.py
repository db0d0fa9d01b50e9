"""Runs episodes in one process; worlds and policies are kept between episodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vla_policy_node.contract.fit import check_fits
from vla_policy_node.evaluation.contenders import Contender
from vla_policy_node.evaluation.controls import gray_images, wrong_instruction
from vla_policy_node.evaluation.episodes import EpisodeResult, run_episode
from vla_policy_node.evaluation.grounding import count_kept
from vla_policy_node.evaluation.plan import Plan
from vla_policy_node.evaluation.trace import kept_of, write_trace
from vla_policy_node.policy.interface import Policy
from vla_policy_node.policy.warm_up import warm_up
from vla_policy_node.world.libero_world import LiberoWorld, tasks
from vla_policy_node.world.robot import world_robot

# Decimal places of times in rows, ms.
_DIGITS = 3


class Worker:
    """Runs one episode of a plan with several contenders, one after the other.

    Not thread-safe: the world's renderer belongs to the thread that renders first.
    """

    def __init__(self, plan: Plan):
        self._plan = plan
        self._policies: dict[str, Policy] = {}
        self._world: LiberoWorld | None = None

    def run(self, task_id: int, episode: int, labels: Sequence[str]) -> list[dict]:
        """Return one row per contender of `labels`, all from the same layout.

        Raises ValueError for a checkpoint that cannot be used.
        """
        world = self._world_of(task_id)
        chosen = [c for c in self._plan.contenders if c.label in labels]
        return [self._run_one(world, task_id, episode, contender) for contender in chosen]

    def close(self) -> None:
        """Free world and policies."""
        if self._world is not None:
            self._world.close()
        self._world = None
        self._policies.clear()

    def _run_one(
        self, world: LiberoWorld, task_id: int, episode: int, contender: Contender
    ) -> dict:
        plan = self._plan
        policy = self._policy_of(contender)
        seed = plan.layout_seed(task_id, episode)
        world.reset_layout(plan.layout, seed)
        layout = world.layout_digest()
        instruction = world.instruction
        if plan.control == 'wrong-instruction':
            instruction = wrong_instruction(world, seed)
        sees_gray = plan.control == 'gray' or contender.state_only is not None
        ground = plan.trace is not None and contender.state_only is None
        result = run_episode(
            world, policy, plan.parameters, instruction,
            images=(lambda _: gray_images(policy.description.spec.cameras, *plan.image_size))
            if sees_gray else None,
            execute=plan.execute, horizon=plan.horizon, ground=ground,
        )
        row = {
            'method': contender.label,
            'task_id': task_id,
            'episode': episode,
            'layout': layout,
            'instruction': world.task.instruction,
            **_describe(result),
        }
        if ground:
            write_trace(plan.trace, row, result)
        return row

    def _world_of(self, task_id: int) -> LiberoWorld:
        if self._world is None or self._world.task.task_id != task_id:
            if self._world is not None:
                self._world.close()
            self._world = LiberoWorld(tasks(self._plan.suite)[task_id], self._plan.image_size)
        return self._world

    def _policy_of(self, contender: Contender) -> Policy:
        if contender.label not in self._policies:
            policy = contender.load(self._plan.parameters, self._plan.threads)
            check_fits(policy.description.spec, world_robot())
            warm_up(policy)  # no episode should be charged for it
            self._policies[contender.label] = policy
        return self._policies[contender.label]


def _describe(result: EpisodeResult) -> dict:
    """Return the data of an episode for tables and plots, as JSON."""
    chunks = [inference.chunk for inference in result.inferences]
    stages = dict.fromkeys(stage for chunk in chunks for stage in chunk.stage_ms)
    row = {
        'success': result.success,
        'steps': result.steps,
        'failure': result.failure,
        'tokens_total': max((chunk.tokens_total for chunk in chunks), default=0),
        'tokens': [chunk.tokens_kept for chunk in chunks],
        'phases': [inference.phase for inference in result.inferences],
        'flops': [chunk.flops for chunk in chunks],
        'layers': [chunk.layers_run for chunk in chunks],
        'reused': [bool(chunk.reused_by) for chunk in chunks],
        'stage_ms': {
            stage: [round(chunk.stage_ms.get(stage, 0.0), _DIGITS) for chunk in chunks]
            for stage in stages
        },
    }
    grounded = [i for i in result.inferences if i.on_parts]
    if grounded:
        counts = [count_kept(kept_of(i.chunk), i.on_parts) for i in grounded]
        row['grounding'] = {
            part: np.sum([count[part] for count in counts], axis=0).tolist() for part in counts[0]
        }
    return row


_worker: Worker | None = None


def start_worker(plan: Plan) -> None:
    """Make this process a worker."""
    global _worker
    torch.set_num_threads(plan.threads)
    _worker = Worker(plan)


def run_unit(task_id: int, episode: int, labels: Sequence[str]) -> list[dict]:
    """Run one unit in a process that `start_worker` prepared."""
    return _worker.run(task_id, episode, labels)
