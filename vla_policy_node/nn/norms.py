"""Root-mean-square norms of decoders: with a weight, 1 + weight, or modulated by a condition."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RmsNorm(nn.Module):
    """Root-mean-square norm, computed in float32 at least; offset: by 1 + weight (Gemma)."""

    def __init__(self, width: int, eps: float, offset: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width) if offset else torch.ones(width))
        self.eps, self.offset = eps, offset

    @property
    def gain(self) -> Tensor:
        """What each channel is multiplied with, [width]."""
        return 1 + self.weight if self.offset else self.weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        wide = normalise(x, self.eps)
        if self.offset:  # Gemma rounds after the product, Llama before
            return (wide * (1 + self.weight.to(wide.dtype))).to(x.dtype)
        return self.weight * wide.to(x.dtype)


class AdaptiveRmsNorm(nn.Module):
    """A norm that a condition scales, shifts and gates (adaRMS)."""

    def __init__(self, width: int, eps: float, condition_width: int):
        super().__init__()
        self.dense = nn.Linear(condition_width, 3 * width)
        self.eps = eps

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, width], [B, condition] -> normed rows, gate [B, 1, width] of what they become."""
        scale, shift, gate = self.dense(condition)[:, None].chunk(3, dim=-1)
        wide = normalise(x, self.eps)
        return (wide * (1 + scale.to(wide.dtype)) + shift.to(wide.dtype)).to(x.dtype), gate


def normalise(x: Tensor, eps: float) -> Tensor:
    """Rows of mean square 1, [..., width], in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)


def apply_norm(
    norm: nn.Module, x: Tensor, condition: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Normed rows, and the gate of what is made of them, None for none."""
    return (norm(x), None) if condition is None else norm(x, condition)
