"""The rows that go through the language model, and what each of them is.

Layout (Kim et al. 2025, "Fine-Tuning Vision-Language-Action Models", as released):
BOS | visual tokens, camera by camera | proprio | rest of the prompt | action slots | stop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    def context_hidden(self) -> Tensor | None:
        """[B, rows of the context] bool, which of them only fill up a batch, None if none can."""
        if self.key_bias is None:
            return None
        return self.key_bias[:, 1 + self.visual_rows :].isneginf()

    @property
    def visual_tokens(self) -> Tensor:
        """[visual_rows] int64, which visual tokens are left (of the first batch element)."""
        return self.positions[0, 1 : 1 + self.visual_rows] - 1

    @property
    def visual_total(self) -> int:
        """How many visual tokens there were before any was dropped."""
        return int(self.positions[0, 1 + self.visual_rows]) - 1

    def keep_visual(self, kept: Tensor, bias: Tensor | None = None) -> TokenSequence:
        """Drop all visual tokens but `kept`.

        kept: [M] or, one choice per batch element, [B, M] int64, ascending, counted among the
            visual rows of this sequence. Order and positions stay as they were, so attention
            among the rows left does not change.
        bias: [M] or [B, M], added to the key bias of these rows, None for nothing. -inf hides a
            row that only fills up a batch element which keeps fewer tokens than others.
        """
        batch, total = self.positions.shape
        kept = kept.expand(batch, -1)
        after = torch.arange(1 + self.visual_rows, total, device=kept.device).expand(batch, -1)
        rows = torch.cat([kept.new_zeros(batch, 1), 1 + kept, after], dim=1)
        key_bias = None if self.key_bias is None else _take(self.key_bias, rows)
        if bias is not None:
            added = bias.new_zeros(rows.shape)
            added[:, 1 : 1 + kept.shape[1]] = bias
            key_bias = added if key_bias is None else key_bias + added
        return TokenSequence(
            states=_take(self.states, rows),
            positions=_take(self.positions, rows),
            visual_rows=kept.shape[1],
            key_bias=key_bias,
        )

    def with_visual(self, visual: Tensor) -> TokenSequence:
        """Replace the states of the visual rows, [B, visual_rows, width]."""
        states = torch.cat([self.states[:, :1], visual, self.context], dim=1)
        return replace(self, states=states)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """[B, T, ...] -> the given rows of each batch element, [B, M, ...]; rows: [B, M]."""
    first = x.shape[1] * torch.arange(len(x), device=x.device)[:, None]
    taken = x.flatten(0, 1).index_select(0, (first + rows).flatten())
    return taken.unflatten(0, rows.shape)
