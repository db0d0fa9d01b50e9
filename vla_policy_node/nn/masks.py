"""Who sees whom: bidirectional, causal and prefix-LM masks from one description.

A row sees the rows of its own block and of the blocks before it. In a causal block it sees, of its
own block, only itself and what is before it by position. One block makes a model bidirectional,
or causal; with several it is a prefix language model (pi0, PaliGemma, SmolVLA).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vla_policy_node.nn.sequence import TokenSequence

_BLOCK = 2**32  # more than any position


@dataclass(frozen=True)
class Visibility:
    """Blocks of spans, and which of the blocks are causal.

    later: names of the spans of block 1, 2, ...; all others are block 0. causal: block numbers.
    """

    later: tuple[tuple[str, ...], ...] = ()
    causal: tuple[int, ...] = ()

    @property
    def everything(self) -> bool:
        """Whether every row sees every row."""
        return not self.later and not self.causal

    def block(self, name: str) -> int:
        """In which block a span is."""
        return next((index for index, names in enumerate(self.later, 1) if name in names), 0)

    def ranks(self, sequence: TokenSequence) -> Tensor:
        """[B, T] int64: a row sees a row whose rank is not above its own."""
        if not self.later:
            return self.ranks_of(sequence.positions, 0)
        parts = [
            self.ranks_of(sequence.positions[:, sequence.span(span.name)], self.block(span.name))
            for span in sequence.spans]
        return torch.cat(parts, dim=1)

    def ranks_of(self, positions: Tensor, block: int) -> Tensor:
        """The same for rows of one block at these positions."""
        inside = positions if block in self.causal else torch.zeros_like(positions)
        return inside + block * _BLOCK if block else inside


BIDIRECTIONAL = Visibility()
CAUSAL = Visibility(causal=(0,))


def make_mask(sequence: TokenSequence, visibility: Visibility) -> Tensor | None:
    """What is added to attention logits, [B, 1, T or 1, T]; None for nothing."""
    bias = sequence.key_bias
    mask = None if bias is None else bias[:, None, None, :]
    # A single row sees itself.
    if not visibility.everything and sequence.states.shape[1] > 1:
        ranks = visibility.ranks(sequence)
        hidden = _hide_higher(ranks, ranks)
        mask = hidden if mask is None else mask + hidden
    return None if mask is None else mask.to(sequence.states.dtype)


def asked(mask: Tensor | None, rows: slice) -> Tensor | None:
    """Of a mask [B, 1, T or 1, keys] what `rows` need."""
    return mask if mask is None or mask.shape[2] == 1 else mask[:, :, rows]


def with_appended(
    mask: Tensor | None,
    sequence: TokenSequence,
    keys: int,
    positions: Tensor | None,
    visibility: Visibility,
) -> Tensor | None:
    """A mask for so many keys, of which those behind the rows' own were appended.

    positions: of the appended keys, [B or 1, N], which belong to block 0. Where all rows see each
    other they see those too; elsewhere only rows at or behind them do, so ValueError if nobody
    says where they are.
    """
    more = keys - sequence.states.shape[1]
    if not more:
        return mask
    if visibility.everything or mask is None:
        return mask if mask is None else functional.pad(mask, (0, more))
    if positions is None or positions.shape[-1] != more:
        raise ValueError(
            'Keys of rows that are no longer in the sequence need positions in a causal language '
            'model; choose another acceleration method for this policy.')
    keys_of = visibility.ranks_of(positions.expand(len(mask), -1), 0)
    hidden = _hide_higher(keys_of, visibility.ranks(sequence))
    return torch.cat([mask, hidden.to(mask.dtype)], dim=3)


def with_past(mask: Tensor | None, key: Tensor, past: int, bias: Tensor | None) -> Tensor | None:
    """A mask for keys [B, heads, past + T, ...] of which the first `past` come out of a cache.

    All rows see those, but for what their bias [B, past] hides. mask: of the others.
    """
    if not past or (mask is None and bias is None):
        return mask
    batch, keys = len(key), key.shape[2]
    if mask is None:
        mask = key.new_zeros(batch, 1, 1, keys - past)
    if bias is None:
        bias = key.new_zeros(batch, past)
    before = bias.to(mask.dtype)[:, None, None, :].expand(-1, -1, mask.shape[2], -1)
    return torch.cat([before, mask.expand(batch, -1, -1, -1)], dim=3)


def _hide_higher(keys: Tensor, rows: Tensor) -> Tensor:
    """Ranks [B, K] and [B, T] -> [B, 1, T, K], -inf where a key is above a row."""
    higher = keys[:, None, None, :] > rows[:, None, :, None]
    return torch.zeros(higher.shape, device=higher.device).masked_fill(higher, -torch.inf)
