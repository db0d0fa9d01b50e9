"""CogACT, any size: one token of a causal language model conditions a diffusion transformer.

Li et al. 2024, arXiv 2411.19650; code microsoft/CogACT. The prompt ends with the stop token, whose
hidden state, the cognition feature, is all that the action head knows of images and words. The
language model runs once; only the head runs once per denoising step.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from vla_policy_node.families.prismatic import PrismaticFamily, PrismaticVla
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.nn.capabilities import HOOKED, Capability
from vla_policy_node.nn.config import (
    STEP_WAVES,
    DitConfig,
    FamilyTraits,
)
from vla_policy_node.nn.ddim import Ddim, initial_noise
from vla_policy_node.nn.denoising import DiffusionStep
from vla_policy_node.nn.dit import DiffusionTransformer
from vla_policy_node.nn.flops import block_flops, chain_flops
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.policy.interface import PolicySpec

GRIPPER = -1  # the last number of an action
CONDITION_DROPOUT = 0.1  # share of training samples without condition, for guidance


class CogAct(PrismaticVla):
    """The trunk of `PrismaticVla`, causal, with a diffusion transformer as its head."""

    action_head: DiffusionTransformer

    def decode(self, context: Tensor, forward_pass: ForwardPass) -> Tensor:
        """Cognition feature [B, 1, width] -> normalised actions [B, K, A] float32."""
        return self.finish(self.denoise(context, forward_pass))

    @staticmethod
    def finish(actions: Tensor) -> Tensor:
        """Clip to [-1, 1], and open (1) or close (0) the gripper.

        What is not finite stays so, or nobody would notice.
        """
        finished = actions.clamp(-1, 1)
        finished[..., GRIPPER] = (actions[..., GRIPPER] >= 0.5).to(actions.dtype)
        return torch.where(actions.isfinite(), finished, actions)

    def denoise(self, cognition: Tensor, forward_pass: ForwardPass) -> Tensor:
        """Sample actions for a cognition feature, [B, 1, width] -> [B, K, A] float32.

        The noise is the same in every inference. Sums run in float32, whatever the head
        computes in.
        """
        config = _dit(self.config)
        guided = config.guidance > 1
        embedder = self.action_head.z_embedder
        conditions = cognition
        if guided:
            conditions = torch.cat([cognition, embedder.uncondition.expand_as(cognition)])
        conditions = embedder(conditions)
        shape = (len(cognition), self.config.chunk_length, self.config.action_size)
        actions = initial_noise(cognition.float(), shape)
        schedule = Ddim(config.training_steps, config.denoising_steps, clip=False)
        for index, step in enumerate(schedule.steps):
            state = DiffusionStep(
                self.action_head, index, actions, step, conditions, config.guidance)
            actions = schedule.step(forward_pass.denoise(state), step, actions)
        return actions

    def noise_loss(
        self,
        cognition: Tensor,
        actions: Tensor,
        repeats: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Mean square error of the predicted noise, a scalar.

        cognition: [B, 1, width]. actions: [B, K, A], normalised. repeats: noises and steps drawn
        for each sample; the head is cheap beside the vision encoders. generator: of the CPU, draws
        them.
        """
        device = actions.device
        actions = actions.repeat(repeats, 1, 1)
        cognition = cognition.repeat(repeats, 1, 1)
        noise = torch.randn(actions.shape, generator=generator).to(device)
        schedule = Ddim(_dit(self.config).training_steps)
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


def _dit(config: PrismaticConfig) -> DitConfig:
    assert config.dit is not None  # `CogActFamily.configure` sets it
    return config.dit


class CogActFamily(PrismaticFamily):
    """Only config.json tells it, or the layout of its releases (`checkpoints.cogact_release`)."""

    traits = FamilyTraits(
        'cogact', 'CogACT', 'diffusion transformer',
        HOOKED | {Capability.FUSED, Capability.FIXED_SHAPES, Capability.DENOISING},
        action_slots=False, causal=True)
    head_root = 'net.'
    head_end = 'final_layer.linear.bias'
    network = CogAct
    settled: ClassVar = {'action rows': 'the cognition token', 'chunk': 'weights of the head'}

    def configure(self, config: PrismaticConfig, dit: DitConfig | None = None) -> PrismaticConfig:
        """Sizes of another Prismatic family -> of this one, with the same trunk and a new head."""
        return replace(config, family=self.traits, dit=dit or config.dit or DitConfig())

    def entries(self, config: PrismaticConfig) -> dict[str, object]:
        """Name the family and its sizes, and what may differ from the file's defaults."""
        inputs = {'proprio': config.proprio, 'cameras': [*config.spec.cameras],
                  'center_crop': config.center_crop}
        defaults = {'proprio': True, 'cameras': [*PolicySpec().cameras], 'center_crop': True}
        return {
            'head': self.traits.name, 'chunk_length': config.chunk_length,
            'dit': asdict(_dit(config)),
            **{name: value for name, value in inputs.items() if value != defaults[name]}}

    def make_head(self, config: PrismaticConfig) -> DiffusionTransformer:
        """Build the diffusion transformer, whose positions fix the length of the chunk."""
        return DiffusionTransformer(
            _dit(config), config.language_model.width, config.chunk_length, config.action_size)

    def head_flops(self, config: PrismaticConfig, denoising_reused: int = 0) -> int:
        """All denoising steps; guidance doubles what comes after the embedded actions."""
        dit, rows = _dit(config), config.chunk_length
        halves, width = 1 + (dit.guidance > 1), dit.width
        embedding = rows * chain_flops(config.action_size, width)
        last = halves * rows * chain_flops(width, config.action_size)
        blocks = dit.blocks * block_flops(1 + rows, width, dit.mlp_width)
        full = chain_flops(STEP_WAVES, width, width) + halves * blocks
        conditions = halves * chain_flops(config.language_model.width, width)
        steps = dit.denoising_steps
        return conditions + steps * (embedding + last) + (steps - denoising_reused) * full
