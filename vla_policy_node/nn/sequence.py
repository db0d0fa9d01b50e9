"""The rows that go through a decoder, and what each of them is: spans of rows by name.

OpenVLA-OFT lays them out as bos | visual, camera by camera | proprio | prompt | actions | stop
(Kim et al. 2025, "Fine-Tuning Vision-Language-Action Models", as released). Other families have
other spans; whoever needs one asks for it by name, and dropped rows move none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """Neighbouring rows of one kind.

    rows: how many are left. first: position of the first one before anything was dropped.
    total: how many there were then.
    """

    name: str
    rows: int
    first: int
    total: int


def lay_out(rows: Mapping[str, int], totals: Mapping[str, int] | None = None) -> tuple[Span, ...]:
    """Spans one after the other, by name with their numbers of rows; spans without rows are none.

    totals: of spans that some rows are missing from already, how many there were.
    """
    spans, first = [], 0
    for name, count in rows.items():
        total = (totals or {}).get(name, count)
        if total:
            spans.append(Span(name, count, first, total))
        first += total
    return tuple(spans)


@dataclass(frozen=True)
class TokenSequence:
    """Hidden states with their places in the full sequence.

    states: [B, T, width]; input embeddings before layer 0, hidden states later.
    positions: [B, T] int64, place of each row in the sequence before anything was dropped.
        It is the rotary position and, in spans that come before any padding, names the row:
        visual token j has the position of the first one + j.
    spans: what the rows are, in order; together all T.
    key_bias: [B, T] float32 added to the attention logits of each row as a key (-inf hides
        it, ln(m) makes it count m times), or None.
    """

    states: Tensor
    positions: Tensor
    spans: tuple[Span, ...]
    key_bias: Tensor | None = None

    @classmethod
    def of(cls, rows: Mapping[str, Tensor], words: Tensor | None = None) -> TokenSequence:
        """Lay out rows before layer 0, span by span, each [B, rows, width].

        words: [B, L] bool, which of the first L rows of 'prompt' are words; the others only fill
            it up, and are hidden and not counted in positions. None: all are.
        """
        states = torch.cat([*rows.values()], dim=1)
        positions = torch.arange(states.shape[1], device=states.device).expand(len(states), -1)
        spans = lay_out({name: part.shape[1] for name, part in rows.items()})
        sequence = cls(states, positions, spans)
        if words is None:
            return sequence
        real = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        first = sequence.span('prompt').start
        real[:, first : first + words.shape[1]] = words
        hidden = torch.zeros(real.shape, device=real.device).masked_fill(~real, -torch.inf)
        return replace(sequence, positions=real.cumsum(1) - 1, key_bias=hidden)

    def span(self, name: str) -> slice:
        """Rows of a span; KeyError if there is none of this name."""
        start = 0
        for span in self.spans:
            if span.name == name:
                return slice(start, start + span.rows)
            start += span.rows
        raise KeyError(f'The sequence has no span {name!r}.')

    def __contains__(self, name: str) -> bool:
        return any(span.name == name for span in self.spans)

    def tokens(self, name: str) -> Tensor:
        """[rows] int64, which rows of the span are left, counted from 0 (first batch element)."""
        return self.positions[0, self.span(name)] - self.first(name)

    def first(self, name: str) -> int:
        """Position of the first row of the span before anything was dropped."""
        return self._described(name).first

    def total(self, name: str) -> int:
        """How many rows the span had before any was dropped."""
        return self._described(name).total

    def keep(self, name: str, kept: Tensor, bias: Tensor | None = None) -> TokenSequence:
        """Drop all rows of a span but `kept`.

        kept: [M] or, one choice per batch element, [B, M] int64, ascending, counted among the
            rows that are left of the span. Order and positions stay as they were, so attention
            among the rows left does not change.
        bias: [M] or [B, M], added to the key bias of these rows, None for nothing. -inf hides a
            row that only fills up a batch element which keeps fewer tokens than others.
        """
        batch, total = self.positions.shape
        span = self.span(name)
        kept = kept.expand(batch, -1)
        before = torch.arange(span.start, device=kept.device).expand(batch, -1)
        after = torch.arange(span.stop, total, device=kept.device).expand(batch, -1)
        rows = torch.cat([before, span.start + kept, after], dim=1)
        key_bias = None if self.key_bias is None else _take(self.key_bias, rows)
        if bias is not None:
            added = bias.new_zeros(rows.shape)
            added[:, span.start : span.start + kept.shape[1]] = bias
            key_bias = added if key_bias is None else key_bias + added
        return TokenSequence(
            states=_take(self.states, rows),
            positions=_take(self.positions, rows),
            spans=tuple(
                described._replace(rows=kept.shape[1]) if described.name == name else described
                for described in self.spans),
            key_bias=key_bias,
        )

    def with_states(self, name: str, states: Tensor) -> TokenSequence:
        """Replace the states of a span, [B, rows, width]."""
        span = self.span(name)
        parts = [self.states[:, : span.start], states, self.states[:, span.stop :]]
        return replace(self, states=torch.cat(parts, dim=1))

    @property
    def visual(self) -> Tensor:
        """States of the visual rows, [B, visual rows, width]."""
        return self.states[:, self.span('visual')]

    @property
    def visual_rows(self) -> int:
        """How many visual tokens are left."""
        return self._described('visual').rows

    @property
    def behind_visual(self) -> slice:
        """Every row after the visual ones: proprio, prompt, action slots, stop."""
        return slice(self.span('visual').stop, None)

    @property
    def context(self) -> Tensor:
        """States of those, [B, rows, width]."""
        return self.states[:, self.behind_visual]

    @property
    def context_hidden(self) -> Tensor | None:
        """[B, rows] bool, which of those only fill up a batch, None if none can."""
        return None if self.key_bias is None else self.key_bias[:, self.behind_visual].isneginf()

    @property
    def visual_tokens(self) -> Tensor:
        """[visual rows] int64, which visual tokens are left (of the first batch element)."""
        return self.tokens('visual')

    @property
    def visual_total(self) -> int:
        """How many visual tokens there were before any was dropped."""
        return self.total('visual')

    def keep_visual(self, kept: Tensor, bias: Tensor | None = None) -> TokenSequence:
        """Drop all visual tokens but `kept`; see `keep`."""
        return self.keep('visual', kept, bias)

    def with_visual(self, visual: Tensor) -> TokenSequence:
        """Replace the states of the visual rows, [B, visual rows, width]."""
        return self.with_states('visual', visual)

    def _described(self, name: str) -> Span:
        return next(span for span in self.spans if span.name == name)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """[B, T, ...] -> the given rows of each batch element, [B, M, ...]; rows: [B, M]."""
    first = x.shape[1] * torch.arange(len(x), device=x.device)[:, None]
    taken = x.flatten(0, 1).index_select(0, (first + rows).flatten())
    return taken.unflatten(0, rows.shape)
