"""Deterministic denoising of actions (DDIM, Song et al. 2021, arXiv 2010.02502)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

# Largest share of the signal that one step may take away (Nichol and Dhariwal 2021).
MAX_BETA = 0.999


class Ddim:
    """A squared cosine noise schedule; the network predicts the noise.

    training_steps: those that the schedule has. count: those that denoising runs, evenly spaced
        from step 0 on (a single one runs the middle), 0 for all. clip: whether the clean actions
        that a prediction implies are clipped to [-1, 1], as OpenVLA-OFT's diffusion head does and
        CogACT's does not.
    ValueError for a count that no whole stride gives.
    """

    def __init__(self, training_steps: int, count: int = 0, clip: bool = True):
        def level(share: float) -> float:
            return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

        signal, self._signal = 1.0, []
        for step in range(training_steps):
            beta = min(1 - level((step + 1) / training_steps) / level(step / training_steps),
                       MAX_BETA)
            signal *= 1 - beta
            self._signal.append(signal)
        self._clip = clip
        self.steps = tuple(reversed(_spaced(training_steps, count or training_steps)))
        self._earlier = dict(zip(self.steps, self.steps[1:], strict=False))

    def step(self, noise: Tensor, step: int, actions: Tensor) -> Tensor:
        """One step less noise; noise is what the network sees in `actions`, same shape."""
        now = self._signal[step]
        before = self._signal[self._earlier[step]] if step in self._earlier else 1.0
        clean = (actions - math.sqrt(1 - now) * noise) / math.sqrt(now)
        clean = clean.clamp(-1, 1) if self._clip else clean
        return math.sqrt(before) * clean + math.sqrt(1 - before) * noise

    def add_noise(self, actions: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Clean actions [B, K, A] as they are after so many diffusion steps, [B] int64."""
        signal = torch.tensor(self._signal, device=steps.device)[steps][:, None, None]
        return signal.sqrt() * actions + (1 - signal).sqrt() * noise


def initial_noise(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the same normal noise in every inference: equal observations, equal actions."""
    return _noise(shape, like.device, like.dtype)


@lru_cache(maxsize=16)
def _noise(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Made once: a graph on a device can hold no copy of what the host draws."""
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(shape, generator=generator).to(device, dtype)


def _spaced(steps: int, count: int) -> range:
    if count == 1:
        return range(steps // 2, steps // 2 + 1)
    for stride in range(1, steps):
        if len(range(0, steps, stride)) == count:
            return range(0, steps, stride)
    raise ValueError(
        f'{steps} diffusion steps cannot be denoised in {count}; choose a number that divides '
        'them.')
