"""OpenVLA-OFT, any size: L1, discrete and diffusion heads (Kim et al. 2025; arXiv 2502.19645).

The decoder sees the whole sequence both ways and fills all action slots in one pass.

| files beside the language model's | head |
|---|---|
| `action_head--*`, `proprio_projector--*` | L1 regression (also LightVLA) |
| ... and `noisy_action_projector--*` | diffusion: the decoder runs once per denoising step |
| `proprio_projector--*` alone | discrete: the vocabulary head, all tokens in one pass |
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vla_policy_node.families.prismatic import (
    PrismaticFamily,
    PrismaticVla,
    VocabularyAnswers,
    vision_flops,
)
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.nn.capabilities import HOOKED, Capability
from vla_policy_node.nn.config import FamilyTraits
from vla_policy_node.nn.ddim import Ddim, initial_noise
from vla_policy_node.nn.flops import LayerRows, chain_flops, decoder_flops
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.heads import (
    L1ActionHead,
    NoisyActionProjector,
    VocabularyHead,
    time_embedding,
)
from vla_policy_node.nn.sequence import TokenSequence


class DiscreteVla(PrismaticVla):
    """Every slot is a word."""

    action_head: VocabularyHead

    def decode(self, context: Tensor, forward_pass: ForwardPass) -> Tensor:
        """Hidden states of the action rows -> tokens [B, A K] int64."""
        return self.action_head.token_ids(context)

    def to_actions(self, decoded: Tensor) -> Tensor:
        """Tokens -> normalised actions [B, K, A]; ValueError if they are other words."""
        return self.action_head.decode(decoded)


class DiffusionVla(PrismaticVla):
    """The action slots hold noisy actions, the row 'time' the step; the head reads the noise."""

    def __init__(self, config: PrismaticConfig, family: PrismaticFamily):
        super().__init__(config, family)
        self.noisy_action_projector = NoisyActionProjector(config.language_model.width)

    def prefill(self, sequence: TokenSequence, forward_pass: ForwardPass) -> TokenSequence:
        """Nothing can be computed before the steps: every row sees the noisy actions."""
        forward_pass.mark('select')
        return sequence

    def decode(self, context: TokenSequence, forward_pass: ForwardPass) -> Tensor:
        """Denoise; the methods see the layers once per step."""
        states = context.states
        shape = (len(states), self.config.chunk_length, self.config.action_size)
        actions = initial_noise(states, shape)
        schedule = Ddim(self.config.diffusion_steps)
        for step in schedule.steps:
            steps = torch.full((len(states),), step, device=states.device)
            time = time_embedding(steps, states.shape[-1]).to(states.dtype)
            sequence = context.with_states('time', time).with_states(
                'actions', self.noisy_action_projector(actions))
            noise = self.action_head(self.run_layers(sequence, forward_pass))
            actions = schedule.step(noise, step, actions)
        forward_pass.mark('language_model')
        return actions


class _OftFamily(PrismaticFamily):
    """What the three have in common."""

    network = PrismaticVla
    head_end = 'fc2.bias'

    def with_chunk_length(self, config: PrismaticConfig, chunk_length: int) -> PrismaticConfig:
        """There are as many slots as wanted."""
        return replace(config, chunk_length=chunk_length)

    def make_head(self, config: PrismaticConfig) -> nn.Module:
        """Build an MLP that reads the rows of each time step."""
        return L1ActionHead(config.language_model.width, config.action_size)

    def head_flops(self, config: PrismaticConfig, denoising_reused: int = 0) -> int:
        """Those of the MLP."""
        width, actions = config.language_model.width, config.action_size
        return config.chunk_length * chain_flops(actions * width, width, width, width, actions)


class L1Oft(_OftFamily):
    """OpenVLA-OFT with its L1 head, and LightVLA."""

    traits = FamilyTraits(
        'l1', 'OpenVLA-OFT', 'L1 head',
        HOOKED | {Capability.EARLY_ANSWERS, Capability.REGRESSION, Capability.FUSED,
                  Capability.FIXED_SHAPES})
    head_root = 'model.'

    def recognises_parts(self, directory: Path, parts: Collection[str]) -> bool:
        """By its action head."""
        return 'action_head' in parts and 'noisy_action_projector' not in parts


class DiscreteOft(VocabularyAnswers, _OftFamily):
    """OpenVLA-OFT that answers with words, all at once."""

    traits = FamilyTraits(
        'discrete', 'OpenVLA-OFT', 'discrete head',
        HOOKED | {Capability.EARLY_ANSWERS, Capability.FUSED, Capability.FIXED_SHAPES})
    network = DiscreteVla
    taken_for = ('a policy whose action_head--* is missing has the same files; if this one has '
                 'none, write "head": "discrete" into its config.json')

    def recognises_parts(self, directory: Path, parts: Collection[str]) -> bool:
        """By proprio without an action head."""
        return 'proprio_projector' in parts and not {
            'action_head', 'noisy_action_projector'}.intersection(parts)


class DiffusionOft(_OftFamily):
    """OpenVLA-OFT with its diffusion head."""

    traits = FamilyTraits(
        'diffusion', 'OpenVLA-OFT', 'diffusion head',
        frozenset({Capability.FUSED, Capability.FIXED_SHAPES}), step_rows=1)
    head_root = 'noise_predictor.mlp_resnet.'
    network = DiffusionVla

    def recognises_parts(self, directory: Path, parts: Collection[str]) -> bool:
        """By what embeds noisy actions."""
        if 'noisy_action_projector' in parts and 'action_head' not in parts:
            raise ValueError(
                f'{directory} has a noisy_action_projector--* and no action_head--*; a diffusion '
                'policy needs both, the download is incomplete.'
            )
        return 'noisy_action_projector' in parts

    def count_flops(
        self,
        config: PrismaticConfig,
        layer_rows: Sequence[int] | Sequence[LayerRows],
        denoising_reused: int = 0,
    ) -> dict[str, int]:
        """All layers run once per denoising step, and so does what embeds the noisy actions."""
        width, passes = config.language_model.width, config.diffusion_steps
        inputs = config.proprio * chain_flops(config.proprio_size, width, width)
        inputs += passes * config.action_slots * chain_flops(1, width, width)
        return {
            'vision': vision_flops(config),
            'language_model': inputs + decoder_flops(
                config.language_model, layer_rows, config.rows_read),
            'head': passes * self.head_flops(config),
        }
