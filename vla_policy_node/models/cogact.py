"""CogACT, any size: one token of a causal language model conditions a diffusion transformer.

Li et al. 2024, arXiv 2411.19650; code microsoft/CogACT. The prompt ends with the stop token, whose
hidden state, the cognition feature, is all that the action head knows of images and words. The
language model runs once; only the head runs once per denoising step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from vla_policy_node.models.config import ACTION_DIMENSION
from vla_policy_node.models.ddim import Ddim, initial_noise
from vla_policy_node.models.dit import DiffusionTransformer
from vla_policy_node.models.openvla_oft import OpenVlaOft

if TYPE_CHECKING:
    from vla_policy_node.nn.hooks import PassHooks

GRIPPER = ACTION_DIMENSION - 1
CONDITION_DROPOUT = 0.1  # share of training samples without condition, for guidance


@dataclass(frozen=True)
class DenoisingStep:
    """What an acceleration method may do in one denoising step.

    index: 0, 1, ... in the order they run. actions: [B, K, 7], noisy. step: the diffusion step.
    conditions: [B, 1, width] embedded, with guidance [2 B, 1, width], the second half of it none.
    """

    head: DiffusionTransformer
    index: int
    actions: Tensor
    step: int
    conditions: Tensor
    guidance: float

    def run(self) -> tuple[Tensor, Tensor]:
        """Run all blocks: noise [B, K, 7], and what the blocks added to the embedded actions.

        The latter is [B or 2 B, K, width] and contains the positional embedding.
        """
        embedded = self._embedded()
        steps = torch.tensor([self.step], device=self.actions.device)
        rows = self.head.run_blocks(embedded, steps, self.conditions)
        return self._guide(self.head.finish(rows)), rows - embedded

    def reuse(self, added: Tensor) -> Tensor:
        """Noise [B, K, 7] as if the blocks added what they did in another step.

        One embedding, one sum, one norm and one product. The diffusion step is nowhere in it: it
        enters by a token that this head drops at the end.
        """
        return self._guide(self.head.finish(self._embedded() + added))

    def _embedded(self) -> Tensor:
        embedded = self.head.embed(self.actions.to(self.conditions.dtype))
        # Both halves of a guided pass share the noise.
        return embedded.repeat(len(self.conditions) // len(embedded), 1, 1)

    def _guide(self, noise: Tensor) -> Tensor:
        """Move away from the prediction without condition, in float32."""
        noise = noise.float()
        if self.guidance <= 1:
            return noise
        conditional, unconditional = noise.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)


class CogAct(OpenVlaOft):
    """Towers, projector and decoder of `OpenVlaOft`, causal, with a diffusion transformer."""

    def act(self, states: Tensor, methods: Sequence[PassHooks] = ()) -> Tensor:
        """Cognition feature [B, 1, width] -> normalised actions [B, K, 7] float32."""
        return self.finish(self.denoise(states, methods))

    @staticmethod
    def finish(actions: Tensor) -> Tensor:
        """Clip to [-1, 1], and open (1) or close (0) the gripper.

        What is not finite stays so, or nobody would notice.
        """
        finished = actions.clamp(-1, 1)
        finished[..., GRIPPER] = (actions[..., GRIPPER] >= 0.5).to(actions.dtype)
        return torch.where(actions.isfinite(), finished, actions)

    def denoise(self, cognition: Tensor, methods: Sequence[PassHooks] = ()) -> Tensor:
        """Sample actions for a cognition feature, [B, 1, width] -> [B, K, 7] float32.

        The noise is the same in every inference. Sums run in float32, whatever the head
        computes in.
        """
        config = self.config.dit
        guided = config.guidance > 1
        embedder = self.action_head.z_embedder
        conditions = cognition
        if guided:
            conditions = torch.cat([cognition, embedder.uncondition.expand_as(cognition)])
        conditions = embedder(conditions)
        shape = (len(cognition), self.config.chunk_length, ACTION_DIMENSION)
        actions = initial_noise(cognition.float(), shape)
        schedule = Ddim(config.training_steps, config.denoising_steps, clip=False)
        for index, step in enumerate(schedule.steps):
            state = DenoisingStep(
                self.action_head, index, actions, step, conditions, config.guidance)
            actions = schedule.step(_predict_noise(state, methods), step, actions)
        return actions

    def noise_loss(
        self,
        cognition: Tensor,
        actions: Tensor,
        repeats: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Mean square error of the predicted noise, a scalar.

        cognition: [B, 1, width]. actions: [B, K, 7], normalised. repeats: noises and steps drawn
        for each sample; the head is cheap beside the towers. generator: of the CPU, draws them.
        """
        device = actions.device
        actions = actions.repeat(repeats, 1, 1)
        cognition = cognition.repeat(repeats, 1, 1)
        noise = torch.randn(actions.shape, generator=generator).to(device)
        schedule = Ddim(self.config.dit.training_steps)
        steps = torch.randint(len(schedule.steps), (len(actions),), generator=generator)
        dropped = torch.rand(len(actions), 1, 1, generator=generator) < CONDITION_DROPOUT
        none = self.action_head.z_embedder.uncondition.to(cognition.dtype)
        conditions = torch.where(dropped.to(device), none, cognition)
        steps = steps.to(device)
        predicted = self.action_head(schedule.add_noise(actions, noise, steps), steps, conditions)
        return functional.mse_loss(predicted.float(), noise)

    def action_rows(self, convention: str) -> slice:
        """The cognition token, whatever the convention; it is the last row."""
        return slice(-1, None)


def _predict_noise(state: DenoisingStep, methods: Sequence[PassHooks]) -> Tensor:
    for method in methods:
        noise = method.denoise(state)
        if noise is not None:
            return noise
    return state.run()[0]
