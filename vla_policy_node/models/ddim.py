"""Deterministic denoising of actions (DDIM, Song et al. 2021, arXiv 2010.02502)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Largest share of the signal that one step may take away (Nichol and Dhariwal 2021).
MAX_BETA = 0.999


class Ddim:
    """The noise schedule of OpenVLA-OFT's diffusion head: squared cosine, all steps of training.

    The network predicts the noise; the clean actions it implies are clipped to [-1, 1].
    """

    def __init__(self, steps: int):
        def level(share: float) -> float:
            return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

        signal, self._signal = 1.0, []
        for step in range(steps):
            beta = min(1 - level((step + 1) / steps) / level(step / steps), MAX_BETA)
            signal *= 1 - beta
            self._signal.append(signal)
        self.steps = tuple(reversed(range(steps)))

    def step(self, noise: Tensor, step: int, actions: Tensor) -> Tensor:
        """One step less noise; noise is what the network sees in `actions`, same shape."""
        now = self._signal[step]
        before = self._signal[step - 1] if step else 1.0
        clean = (actions - math.sqrt(1 - now) * noise) / math.sqrt(now)
        return math.sqrt(before) * clean.clamp(-1, 1) + math.sqrt(1 - before) * noise


def initial_noise(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the same normal noise in every inference: equal observations, equal actions."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like)
