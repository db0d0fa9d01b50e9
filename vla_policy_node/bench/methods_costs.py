"""Cost of a method and its effect on the actions, on the same frames in the same order for all.

The frames come from episodes of the plain model. Every method then answers each of them, open
loop: actions are compared with the plain model's on the same picture, and caches and gates see
frames in the order of a robot's run.

On one thread of a CPU, times are processor time, which other work on the machine makes little
longer; wall time is kept beside it. Elsewhere they are wall time: several threads use more
processor time than a robot waits, and a GPU uses none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from vla_policy_node.acceleration import Method
from vla_policy_node.acceleration.hooks import StepHooks
from vla_policy_node.control.latency import percentiles
from vla_policy_node.evaluation.contenders import Contender
from vla_policy_node.evaluation.episodes import run_episode
from vla_policy_node.evaluation.plan import Plan
from vla_policy_node.nn.denoising import DenoisingStep
from vla_policy_node.nn.hooks import PassHooks, hooks_of
from vla_policy_node.policy.answering import AnsweringPolicy
from vla_policy_node.policy.interface import ActionChunk, InferenceRequest, Observation, Policy
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.policy.recorded import RecordingPolicy
from vla_policy_node.policy.warm_up import warm_up
from vla_policy_node.policy.wrapper import innermost
from vla_policy_node.world.libero_world import LiberoWorld, tasks

# Calls of a method in which an inference may spend time, except those within a pass that a device
# replays as a whole (`runtime.static_forward`), whose parts cannot be timed.
TIMED = frozenset(hooks_of(StepHooks, PassHooks)) - {'select_static', 'record_selection'}


PROCESSOR, WALL = 'processor', 'wall'
_CLOCKS: Mapping[str, Callable[[], float]] = {
    PROCESSOR: time.thread_time, WALL: time.perf_counter}


def clock_of(plan: Plan) -> str:
    """Name the clock that inferences are measured with: PROCESSOR or WALL."""
    return PROCESSOR if plan.parameters.device == 'cpu' and plan.threads == 1 else WALL


class Stopwatch:
    """Counts the time spent inside of methods, ms; with a device it waits for at every call.

    read_s: the clock.

    Whatever a method requests beyond the network's own pass counts: attention maps, and answers of
    the head at early exits. Blocks of a CogACT head that run or are reused in `denoise` do not
    count: they exist without a method, too.
    """

    def __init__(
        self, methods: Sequence[Method], device: str,
        read_s: Callable[[], float] = time.perf_counter,
    ):
        self.ms = 0.0
        self._device = device
        self._read_s = read_s
        for method in methods:
            for stage in TIMED:
                if getattr(type(method), stage) is not getattr(Method, stage):
                    call = getattr(method, stage)
                    timed = self._denoising if stage == 'denoise' else self._counted
                    setattr(method, stage, timed(call))
            if method.answers is not None:
                vars(method.answers)['answer'] = self._counted(method.answers.answer)

    def _counted(self, call: Callable, sign: int = 1) -> Callable:
        def counted(*arguments):
            self._wait()
            started_s = self._read_s()
            result = call(*arguments)
            self._wait()
            self.ms += sign * (self._read_s() - started_s) * 1e3
            return result

        return counted

    def _denoising(self, denoise: Callable) -> Callable:
        counted = self._counted(denoise)

        def without_head(state: DenoisingStep):
            state = replace(state)  # a copy, because the policy may run the head itself
            vars(state).update(
                {name: self._counted(getattr(state, name), -1) for name in ('run', 'reuse')})
            return counted(state)

        return without_head

    def _wait(self) -> None:
        if self._device.startswith('cuda'):
            torch.cuda.synchronize()


def record_frames(
    plan: Plan, policy: Policy, world: LiberoWorld, task: int, episode: int
) -> list[Observation]:
    """Return the observations of one episode of a plan."""
    world.reset_layout(plan.layout, plan.layout_seed(task, episode))
    recording = RecordingPolicy(policy)
    run_episode(world, recording, plan.parameters, horizon=plan.horizon)
    return [request.observation for request in recording.requests]


class Costs:
    """Measures methods on one episode's frames at a time; loads each policy once."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._policies: dict[str, tuple[Policy, Stopwatch]] = {}
        self._world: LiberoWorld | None = None
        self._clock = clock_of(plan)
        self._dense = self._load(Contender('dense'))[0]

    def measure(self, task: int, episode: int, labels: Sequence[str]) -> list[dict]:
        """Return a row for each of `labels` that says how its policy answers the frames.

        All of them answer a frame before the next one comes, so that other load on the machine
        slows all of them down alike.
        """
        if self._world is None or self._world.task.task_id != task:
            self.close()
            self._world = LiberoWorld(tasks(self._plan.suite)[task], self._plan.image_size)
        frames = record_frames(self._plan, self._dense, self._world, task, episode)
        loaded = {c.label: self._load(c) for c in self._plan.contenders if c.label in labels}
        answers: dict[str, list[_Answer]] = {label: [] for label in loaded}
        for policy, _ in ((self._dense, None), *loaded.values()):
            policy.reset()
        for frame in frames:
            wanted = self._dense.infer(InferenceRequest(frame)).actions
            for label, (policy, stopwatch) in loaded.items():
                before = stopwatch.ms
                last = answers[label][-1].chunk if answers[label] else None
                started_s = time.perf_counter()
                chunk = policy.infer(InferenceRequest.after(frame, last))
                wall_ms = (time.perf_counter() - started_s) * 1e3
                answers[label].append(_Answer(chunk, wanted, stopwatch.ms - before, wall_ms))
        where = {'task_id': task, 'episode': episode, 'clock': self._clock,
                 'load': round(os.getloadavg()[0], 2)}
        return [{'method': label, **where, **_describe(given)} for label, given in answers.items()]

    def close(self) -> None:
        """Free the world."""
        if self._world is not None:
            self._world.close()
        self._world = None

    def _load(self, contender: Contender) -> tuple[Policy, Stopwatch]:
        if contender.label not in self._policies:
            policy = contender.load(self._plan.parameters, self._plan.threads)
            warm_up(policy)
            local = innermost(policy)
            assert isinstance(local, LocalPolicy)
            read_s = _CLOCKS[self._clock]
            local.read_s = read_s
            if isinstance(policy, AnsweringPolicy):
                policy.read_s = read_s
            stopwatch = Stopwatch(local.methods, self._plan.parameters.device, read_s)
            self._policies[contender.label] = policy, stopwatch
        return self._policies[contender.label]


@dataclass(frozen=True, eq=False)
class _Answer:
    """A method's answer to a frame, the plain model's actions [K, D], and the method's time.

    wall_ms: of the whole inference.
    """

    chunk: ActionChunk
    wanted: np.ndarray
    overhead_ms: float
    wall_ms: float

    @property
    def change(self) -> np.ndarray:
        return np.abs(self.chunk.actions - self.wanted)

    @property
    def flips(self) -> int:
        return int(((self.chunk.actions[:, 6] > 0.5) != (self.wanted[:, 6] > 0.5)).sum())


def _describe(answers: Sequence[_Answer]) -> dict:
    """Return the row of one episode, as JSON."""
    chunks = [answer.chunk for answer in answers]
    stages = dict.fromkeys(stage for chunk in chunks for stage in chunk.stage_ms)
    return {
        'tokens': [chunk.tokens_kept for chunk in chunks],
        'tokens_total': chunks[0].tokens_total,
        'layers': [chunk.layers_run for chunk in chunks],
        'layers_total': chunks[0].layers_total,
        'reused': [bool(chunk.reused_by) for chunk in chunks],
        'flops': [chunk.flops for chunk in chunks],
        'stage_ms': {
            stage: [round(chunk.stage_ms.get(stage, 0.0), 3) for chunk in chunks]
            for stage in stages
        },
        'overhead_ms': [round(answer.overhead_ms, 3) for answer in answers],
        'wall_ms': [round(answer.wall_ms, 3) for answer in answers],
        'change_mean': [float(answer.change.mean()) for answer in answers],
        'change_max': [float(answer.change.max()) for answer in answers],
        'gripper_flips': [answer.flips for answer in answers],
    }


def summarise_costs(rows: Sequence[Mapping]) -> dict:
    """Combine the rows of one method: means, and percentiles over all frames.

    latency_ms and the like are read from the clock that `clock` names.
    """
    def joined(name: str) -> list:
        return [value for row in rows for value in row[name]]

    totals = [sum(ms) for row in rows for ms in zip(*row['stage_ms'].values(), strict=True)]
    stages = dict.fromkeys(stage for row in rows for stage in row['stage_ms'])
    by_stage = {
        stage: [ms for row in rows for ms in row['stage_ms'].get(stage, [])] for stage in stages}
    return {
        'frames': len(totals),
        'tokens': float(np.mean(joined('tokens'))),
        'tokens_total': rows[0]['tokens_total'],
        'layers': float(np.mean(joined('layers'))),
        'layers_total': rows[0]['layers_total'],
        'reused': float(np.mean(joined('reused'))),
        'flops': float(np.mean(joined('flops'))),
        'clock': rows[0]['clock'],
        'latency_ms': _percentile(totals, 'p50'),
        'latency_p95_ms': _percentile(totals, 'p95'),
        'latency_by_stage_ms': {
            stage: {name: _percentile(ms, name) for name in ('p50', 'p95')}
            for stage, ms in by_stage.items()
        },
        'overhead_ms': _percentile(joined('overhead_ms'), 'p50'),
        'wall_ms': _percentile(joined('wall_ms'), 'p50'),
        'wall_p95_ms': _percentile(joined('wall_ms'), 'p95'),
        'action_change_mean': float(np.mean(joined('change_mean'))),
        'action_change_max': float(np.max(joined('change_max'))),
        'gripper_flips': int(np.sum(joined('gripper_flips'))),
    }


def load_of(rows: Sequence[Mapping]) -> dict:
    """Return how busy the machine was: load averages of a minute, ours among it, and its cores."""
    loads = [row['load'] for row in rows]
    return {'mean': round(float(np.mean(loads)), 2), 'highest': max(loads),
            'cores': os.cpu_count()}


def _percentile(values: Sequence[float], name: str) -> float:
    return round(percentiles(np.asarray(values))[name], 3)
