"""CogACT's action head: a diffusion transformer (Li et al. 2024, arXiv 2411.19650, section 3.3).

Modules carry the names of the public checkpoints, so weights load without renaming. Unlike other
diffusion transformers it has no adaptive norms: diffusion step and condition are one token beside
the noisy actions, and nothing else.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.nn import initial
from vla_policy_node.nn.config import STEP_WAVES, DitConfig
from vla_policy_node.nn.vision import Attention, Mlp

NORM_EPS = 1e-6
INITIAL_STD = 0.02  # of what embeds


class DiffusionTransformer(nn.Module):
    """Predicts the noise in a chunk of K actions, given a diffusion step and a condition.

    actions: numbers of one action, A.
    """

    def __init__(self, config: DitConfig, condition_width: int, chunk_length: int, actions: int):
        """Initialise as the authors do: the last layer with zeros, so that all noise is 0."""
        super().__init__()
        width = config.width
        self.x_embedder = _named(linear=nn.Linear(actions, width))
        self.t_embedder = _named(mlp=nn.Sequential(
            nn.Linear(STEP_WAVES, width), nn.SiLU(), nn.Linear(width, width)))
        self.z_embedder = ConditionEmbedder(condition_width, width)
        self.positional_embedding = nn.Parameter(
            initial.normal(1 + chunk_length, width, std=width**-0.5))
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.blocks))
        self.final_layer = _named(linear=nn.Linear(width, actions))
        if not self.positional_embedding.is_meta:
            self._initialise()

    def forward(self, actions: Tensor, steps: Tensor, conditions: Tensor) -> Tensor:
        """[B, K, A] noisy actions, [B] int64 and [B, 1, condition] -> [B, K, A] noise."""
        embedded = self.embed(actions)
        return self.finish(self.run_blocks(embedded, steps, self.z_embedder(conditions)))

    def embed(self, actions: Tensor) -> Tensor:
        """[B, K, A] -> [B, K, width]."""
        return self.x_embedder(actions)

    def run_blocks(self, embedded: Tensor, steps: Tensor, conditions: Tensor) -> Tensor:
        """[B, K, width], [B] or [1] int64, [B, 1, width] -> rows after the blocks, [B, K, width].

        conditions: embedded by `z_embedder`.
        """
        waves = step_waves(steps).to(conditions.dtype)
        first = self.t_embedder(waves)[:, None] + conditions
        rows = torch.cat([first, embedded], dim=1) + self.positional_embedding
        for block in self.blocks:
            rows = block(rows)
        return rows[:, 1:]

    def finish(self, rows: Tensor) -> Tensor:
        """[B, K, width] -> noise [B, K, A]."""
        return self.final_layer(_norm(rows))

    def _initialise(self) -> None:
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        for module in (self.x_embedder, self.t_embedder, self.z_embedder):
            for name, parameter in module.named_parameters():
                if not name.endswith('bias'):
                    nn.init.normal_(parameter, std=INITIAL_STD)
        nn.init.zeros_(self.final_layer.get_parameter('linear.weight'))
        for name, parameter in self.named_parameters():
            if name.endswith('bias'):
                nn.init.zeros_(parameter)


class ConditionEmbedder(nn.Module):
    """Embeds the condition; `uncondition` [1, condition] stands for none, as guidance needs."""

    def __init__(self, condition_width: int, width: int):
        super().__init__()
        self.linear = nn.Linear(condition_width, width)
        self.uncondition = nn.Parameter(torch.zeros(1, condition_width))

    def forward(self, conditions: Tensor) -> Tensor:
        """[B, 1, condition] -> [B, 1, width]."""
        return self.linear(conditions)


class DiTBlock(nn.Module):
    """A pre-norm transformer block whose norms have no weights."""

    def __init__(self, config: DitConfig):
        super().__init__()
        self.attn = Attention(config.width, config.heads)
        self.mlp = Mlp(config.width, config.mlp_width, approximate='tanh')

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        x = x + self.attn(_norm(x))
        return x + self.mlp(_norm(x))


def step_waves(steps: Tensor) -> Tensor:
    """Cosines, then sines, of diffusion steps: [B] -> [B, STEP_WAVES] float32."""
    half = STEP_WAVES // 2
    exponents = torch.arange(half, device=steps.device, dtype=torch.float32) / half
    angles = steps.float()[:, None] * torch.exp(-math.log(10000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def _named(**modules: nn.Module) -> nn.Sequential:
    """Modules under names that checkpoints use."""
    return nn.Sequential(OrderedDict(modules))
