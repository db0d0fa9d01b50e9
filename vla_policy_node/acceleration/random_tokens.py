"""Random tokens: the baseline that every token selection has to beat."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from vla_policy_node.acceleration.base import Capability, Effect
from vla_policy_node.acceleration.selection import Budget, Selection
from vla_policy_node.nn.hooks import Choice
from vla_policy_node.nn.sequence import TokenSequence


class RandomTokens(Selection):
    """Keeps some visual tokens of each pass, drawn anew without regard to the input.

    keep: share of them, 1.0 keeps all; LightVLA's mean on LIBERO is 78 of 512. count: so many
        instead, 0 for the share.
    seed: of the choices; `reset` starts them again, so every episode sees the same ones.
    """

    name = 'random_tokens'
    needs = frozenset({Capability.VISUAL_TOKENS})
    does = frozenset({Effect.DROPS_TOKENS, Effect.FIXED_SHAPES})
    off: ClassVar = {'keep': 1.0}

    def __init__(self, *, keep: float = 0.152, count: int = 0, seed: int = 0):
        super().__init__()
        self.budget = Budget(self.name, keep, count)
        self._generator = torch.Generator().manual_seed(seed)
        self._marked: Tensor | None = None  # [V] bool, on the device, where shapes are fixed

    def begin_pass(self) -> None:
        """Draw for a pass of fixed shapes, which reads what lies on its device."""
        super().begin_pass()
        if self._marked is not None:
            self._marked.copy_(self._mark(len(self._marked)))

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Drop all but those drawn, the same ones in a whole batch."""
        rows = torch.arange(sequence.visual_rows, device=sequence.positions.device)
        return self._keep(sequence, draw(
            rows, self.budget.of(sequence.visual_total), self._generator))

    def select_static(self, sequence: TokenSequence) -> Choice:
        """Choose what was drawn as the pass began, or, the first time, draw."""
        if self._marked is None:
            self._marked = self._mark(sequence.visual_rows).to(sequence.positions.device)
        return Choice(self._marked, self._marked.float())

    def _mark(self, total: int) -> Tensor:
        chosen = draw(torch.arange(total), self.budget.of(total), self._generator)
        return torch.zeros(total, dtype=torch.bool).index_fill(0, chosen, True)

    def record_selection(self, choice: Choice) -> None:
        """Take a choice for that of the last pass; nothing ranked it."""
        super().record_selection(choice)
        self._scores = None

    def reset(self) -> None:
        """Forget the last report and start the random choices again."""
        super().reset()
        self._generator.manual_seed(self._generator.initial_seed())


def draw(candidates: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Choose `count` of the candidates [N], or all if there are fewer; order stays."""
    chosen = torch.randperm(len(candidates), generator=generator)[:count].sort().values
    return candidates[chosen.to(candidates.device)]
