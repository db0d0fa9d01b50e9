"""Flow matching: from noise at time 1 to actions at time 0, along a velocity that a head predicts.

pi0, pi0.5 and SmolVLA (openpi and LeRobot; the papers count time the other way round). Between
them x(t) = t noise + (1 - t) actions, and what is learnt is dx/dt = noise - actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Shortest and longest period of the waves that tell a head the time.
PERIODS = 4e-3, 4.0
# Times of training samples are Beta(1.5, 1), moved away from 0.
_TIME_POWER, _TIME_SCALE, _TIME_OFFSET = 1.5, 0.999, 0.001


def flow_times(steps: int, accumulated: bool = False) -> list[float]:
    """Return the times of so many Euler steps, from 1 down, as numbers of float32.

    accumulated: in float32, one step after the other, as openpi does; else each by itself in
    float64, as LeRobot does. The shortest wave turns 1571 rad per unit of time, so the last bits
    of a time are seen in the actions.
    """
    if not accumulated:
        return [float(np.float32(1.0 + index * (-1.0 / steps))) for index in range(steps)]
    time, step, times = np.float32(1), np.float32(-1.0 / steps), []
    while time >= -step / 2:
        times.append(float(time))
        time = np.float32(time + step)
    return times


def embed_time(time: Tensor, width: int, periods: tuple[float, float] = PERIODS) -> Tensor:
    """Sines, then cosines of times [B] at periods in geometric order, [B, width] float64."""
    share = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=time.device)
    shortest, longest = periods
    angles = time.double()[:, None] * (2 * math.pi / (shortest * (longest / shortest) ** share))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def integrate(
    velocity: Callable[[int, float, Tensor], Tensor], noise: Tensor, times: Sequence[float]
) -> Tensor:
    """Follow the velocity from noise [B, K, D] to actions, with an Euler step at each time.

    velocity: number of the step, its time, x -> dx/dt, like x.
    """
    x, step = noise, -1.0 / len(times)
    for index, time in enumerate(times):
        x = x + step * velocity(index, time, x)
    return x


@dataclass(frozen=True)
class FlowStep:
    """What an acceleration method may do in one step of a flow, as in `nn.denoising`.

    index: 0, 1, ... in the order they run. actions: [B, K, D], noisy. embed: those -> rows of the
    expert. run_layers: rows -> what its layers make of them, before its final norm. finish: that
    -> velocity [B, K, D] float32.
    """

    index: int
    actions: Tensor
    embed: Callable[[Tensor], Tensor]
    run_layers: Callable[[Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]

    def run(self) -> tuple[Tensor, Tensor]:
        """Run all layers: velocity, and what they added to the embedded actions."""
        embedded = self.embed(self.actions)
        rows = self.run_layers(embedded)
        return self.finish(rows), rows - embedded

    def reuse(self, added: Tensor) -> Tensor:
        """Velocity as if the layers added what they did in another step."""
        return self.finish(self.embed(self.actions) + added)


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """Times of training samples, [count] float32; generator: of the CPU."""
    uniform = torch.rand(count, generator=generator)
    return uniform ** (1 / _TIME_POWER) * _TIME_SCALE + _TIME_OFFSET


def between(actions: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Return x at times [B] between actions and noise [B, K, D], and the velocity to learn."""
    share = time.to(actions.dtype)[:, None, None]
    return share * noise + (1 - share) * actions, noise - actions
