"""The rows that go through the language model, and what each of them is.

Layout (Kim et al. 2025, "Fine-Tuning Vision-Language-Action Models", as released):
BOS | visual tokens, camera by camera | proprio | rest of the prompt | action slots | stop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenSequence:
    """Hidden states with their places in the full sequence.

    states: [B, T, width]; input embeddings before layer 0, hidden states later.
    positions: [B, T] int64, place of each row in the sequence before anything was dropped.
        It is the rotary position and names the row: visual token j has position 1 + j.
    visual_rows: how many visual tokens are left; they are rows 1 to visual_rows.
    key_bias: [B, T] float32 added to the attention logits of each row as a key (-inf hides
        it, ln(m) makes it count m times), or None.
    """

    states: Tensor
    positions: Tensor
    visual_rows: int
    key_bias: Tensor | None = None

    @property
    def visual(self) -> Tensor:
        """[B, visual_rows, width]."""
        return self.states[:, 1 : 1 + self.visual_rows]

    @property
    def context(self) -> Tensor:
        """Every row after the visual ones: proprio, prompt, action slots, stop."""
        return self.states[:, 1 + self.visual_rows :]

    @property
    def visual_tokens(self) -> Tensor:
        """[visual_rows] int64, which visual tokens are left (of the first batch element)."""
        return self.positions[0, 1 : 1 + self.visual_rows] - 1

    @property
    def visual_total(self) -> int:
        """How many visual tokens there were before any was dropped."""
        return int(self.positions[0, 1 + self.visual_rows]) - 1

    def keep_visual(self, kept: Tensor) -> TokenSequence:
        """Drop all visual tokens but `kept`.

        kept: [M] int64, ascending, counted among the visual rows of this sequence. Order and
        positions stay as they were, so attention among the rows left does not change.
        """
        rows = torch.cat(
            [
                kept.new_zeros(1),
                1 + kept,
                torch.arange(1 + self.visual_rows, self.states.shape[1], device=kept.device),
            ]
        )
        bias = self.key_bias
        return TokenSequence(
            states=self.states[:, rows],
            positions=self.positions[:, rows],
            visual_rows=len(kept),
            key_bias=None if bias is None else bias[:, rows],
        )
