"""One step of an action head that denoises: the seam at which acceleration methods take part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vla_policy_node.nn.dit import DiffusionTransformer


class DenoisingStep(Protocol):
    """What an acceleration method may do in one step.

    index: 0, 1, ... in the order they run.
    """

    @property
    def index(self) -> int:
        """Number of the step."""

    def run(self) -> tuple[Tensor, Tensor]:
        """Run the whole head: its prediction, and what its layers added to embedded actions."""

    def reuse(self, added: Tensor) -> Tensor:
        """Return the prediction as if the layers added what they did in another step."""


@dataclass(frozen=True)
class DiffusionStep:
    """A step of CogACT's head, which predicts noise.

    actions: [B, K, A], noisy. step: the diffusion step. conditions: [B, 1, width] embedded, with
    guidance [2 B, 1, width], the second half of it none.
    """

    head: DiffusionTransformer
    index: int
    actions: Tensor
    step: int
    conditions: Tensor
    guidance: float

    def run(self) -> tuple[Tensor, Tensor]:
        """Run all blocks: noise [B, K, A], and what the blocks added to the embedded actions.

        The latter is [B or 2 B, K, width] and contains the positional embedding.
        """
        embedded = self._embedded()
        steps = torch.full((1,), self.step, device=self.actions.device)
        rows = self.head.run_blocks(embedded, steps, self.conditions)
        return self._guide(self.head.finish(rows)), rows - embedded

    def reuse(self, added: Tensor) -> Tensor:
        """Noise [B, K, A] as if the blocks added what they did in another step.

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
