"""Real-time chunking: the flow is guided towards what the robot does meanwhile.

Black et al. 2025, arXiv 2506.07339, in the form of LeRobot 0.6. What the last chunk says of the
same instants is the target of the first actions of this one: fully for those that will have passed
before an answer can be there, and less and less for those behind them. LeRobot takes the Jacobian
of the clean estimate for the identity, so nothing is differentiated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vla_policy_node.nn.denoising import DenoisingStep
from vla_policy_node.nn.flow import FlowStep
from vla_policy_node.nn.hooks import PassHooks

SCHEDULES = ('LINEAR', 'EXP', 'ONES', 'ZEROS')


@dataclass(frozen=True)
class Guided:
    """One step: the velocity with guidance, and how it came about.

    plain: velocity without. clean: estimate of the actions. correction: what pulls them to the
    target. weight: by which it counts.
    """

    velocity: Tensor
    plain: Tensor
    clean: Tensor
    correction: Tensor
    weight: Tensor


class Guidance(PassHooks):
    """Guides every step of a flow.

    target: [B, R, A], normalised: what the last chunk says from the first action on; zeros follow.
    delay: actions that cannot be changed any more. horizon: actions from there on are free.
    times: of the steps, from 1 down. limit: most weight of the correction. held: [K], by how much
    each action of the last step was held to the target.
    """

    def __init__(
        self, target: Tensor, delay: int, horizon: int, times: list[float],
        schedule: str = 'LINEAR', limit: float = 10.0,
    ):
        if schedule not in SCHEDULES:
            raise ValueError(
                f'The schedule of guidance must be one of {", ".join(SCHEDULES)}, not '
                f'{schedule!r}.')
        self._target, self._times, self._limit = target, times, limit
        self._fall = delay, min(horizon, target.shape[1]), schedule
        self.steps: list[Guided] = []

    def denoise(self, state: DenoisingStep) -> Tensor:
        """Run the step and guide it."""
        assert isinstance(state, FlowStep)  # of policies that follow a flow
        plain, actions = state.run()[0], state.actions
        time = torch.tensor(self._times[state.index], device=actions.device)
        clean = actions - time * plain
        correction = self.missing(clean)
        weight = guidance_weight(time, self._limit)
        self.steps.append(Guided(plain - weight * correction, plain, clean, correction, weight))
        return self.steps[-1].velocity

    def missing(self, clean: Tensor) -> Tensor:
        """What an estimate of the actions [B, K, D] lacks of the target where it is held to it."""
        rows, numbers = clean.shape[1:]
        target = functional.pad(self._target, (
            0, numbers - self._target.shape[2], 0, rows - self._target.shape[1]))
        self.held = weights(rows, *self._fall).to(clean)
        return (target - clean) * self.held[:, None]


def weights(rows: int, delay: int, horizon: int, schedule: str) -> Tensor:
    """How much each of the actions is held to the target, [rows] float32."""
    start = min(delay, horizon)
    places = torch.arange(rows, dtype=torch.float32)
    if schedule in ('ONES', 'ZEROS'):
        return (places < (horizon if schedule == 'ONES' else start)).float()
    falling = ((horizon - places) / (horizon - start + 1)).clamp(0, 1)
    if schedule == 'EXP':
        falling = falling * torch.expm1(falling) / (math.e - 1)
    return torch.where(places < start, 1.0, falling) * (places < horizon)


def guidance_weight(time: Tensor, limit: float) -> Tensor:
    """Weight of the correction at a time of the flow, in float32, at most `limit`."""
    passed = 1 - time
    ratio = (passed**2 + time**2) / time**2
    weight = torch.nan_to_num(time / passed, posinf=limit) * ratio
    return torch.nan_to_num(weight, posinf=limit).clamp(max=limit)
