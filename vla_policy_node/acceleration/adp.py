"""ADP: fewer tokens while the arm moves far, all of them where it works (2025).

"Action-aware Dynamic Pruning", arXiv 2509.22093, in the form of its public code
(chen7086/VLA-ADP, TerryPei/VLA-ADP). Two parts:

- Text-driven selection before layer 0: BOS, prompt and stop token as queries and the visual tokens
  as keys of layer 0, without rotary positions and softmax; the mean over heads and rows of
  q k' / sqrt(d) ranks the tokens of each camera. A camera whose share of the budget exceeds
  its tokens keeps all of them, and the other one gets no more for that; each keeps at least one.
- Motion gate, one window per inference: how far the end effector came since the last one, against
  the windows before (rule 'extrema'): at least as far as the farthest of them, prune; less than
  the nearest, do not; between them, prune. Or, from the first window on, against a running mean
  of which it is half (rule 'average'). After three pruned windows one runs in full.

The public code renumbers the positions of what it keeps; here they stay, by the contract. Its
further constants (L_eff, hysteresis_up and _down, min_delta) are zero or without effect there.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from vla_policy_node.acceleration.base import Capability, Effect, Step
from vla_policy_node.acceleration.selection import Selection, mark_top, top_of_cameras
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.hooks import Choice
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.nn.transformer import DecoderLayer

RULES = ('extrema', 'average', 'always', 'never')
QUERY_SPANS = ('bos', 'prompt', 'stop')  # rows whose mean query ranks the tokens


class Adp(Selection):
    """Keeps the tokens closest to the prompt while the gate is open.

    keep: share of the visual tokens; published are 0.3 to 0.75, 1.0 keeps all.
    third_person_share: of the kept ones, how many are of the first camera; published is 0.4.
    rule: 'extrema' or 'average'; 'always' and 'never' prune without a gate.
    windows: how many 'extrema' compares, and how many run in full at its start; published is 3,
        the least.
    max_pruned: windows pruned in a row at most; published is 3.
    hold: between the extremes leave the gate as it was, instead of pruning.
    """

    name = 'adp'
    needs = frozenset({Capability.VISUAL_TOKENS, Capability.LAYERS})
    does = frozenset({Effect.DROPS_TOKENS, Effect.COST_VARIES, Effect.FIXED_SHAPES})
    off: ClassVar = {'keep': 1.0, 'rule': 'always'}
    reads_state = ('x', 'y', 'z')

    def __init__(
        self,
        *,
        keep: float = 0.75,
        third_person_share: float = 0.4,
        rule: str = 'extrema',
        windows: int = 3,
        max_pruned: int = 3,
        hold: bool = False,
    ):
        super().__init__()
        if not 0 < keep <= 1 or not 0 <= third_person_share <= 1:
            raise ValueError(
                'adp needs keep in (0, 1] and third_person_share in [0, 1], not '
                f'{keep} and {third_person_share}.'
            )
        if rule not in RULES or windows < 3 or max_pruned < 1:
            raise ValueError(
                f'adp needs a rule of {", ".join(RULES)}, at least 3 windows and max_pruned of at '
                f'least 1, not {rule!r}, {windows} and {max_pruned}.'
            )
        self.keep = keep
        self.third_person_share = third_person_share
        self.gate = MotionGate(rule, windows, max_pruned, hold)
        self._config: ModelConfig  # from `prepare` on
        self._layer0: DecoderLayer  # from `change_weights` on
        self._is_open: Tensor | None = None  # the gate on the device, where shapes are fixed

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Remember the layout of the sequence."""
        self._config = config

    def change_weights(self, network: nn.Module) -> None:
        """Change nothing, but keep layer 0, whose projections rank the tokens."""
        self._layer0 = cast(DecoderLayer, network.get_submodule('language_model.layers.0'))

    def begin_step(self, step: Step) -> None:
        """Measure how far the arm came."""
        self.gate.update(step.proprio[:3])

    def begin_pass(self) -> None:
        """Pass the gate to a pass of fixed shapes, as a tensor on its device."""
        super().begin_pass()
        if self._is_open is not None:
            self._is_open.fill_(self.gate.open)

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Drop the tokens far from the prompt, if the gate is open."""
        if not self.gate.open:
            return self._keep(sequence, torch.arange(sequence.visual_rows))
        scores = importance(self._layer0, sequence.visual[0], self._query_rows(sequence))
        kept = self._choose(sequence, scores)
        return self._keep(sequence, kept, scores, flops=ranking_flops(self._layer0, sequence))

    def select_static(self, sequence: TokenSequence) -> Choice:
        """Choose the same, or all if the gate is closed; ranking costs the same either way."""
        if self._is_open is None:
            self._is_open = torch.tensor(self.gate.open, device=sequence.states.device)
        rows, hidden = self._query_rows(sequence), self._fills_up(sequence)
        scores = importance(self._layer0, sequence.visual[0], rows, hidden)
        if self.keep == 1:
            return Choice(torch.ones_like(scores, dtype=torch.bool), scores)
        by_camera = scores.view(self._config.cameras_of(len(scores)), -1)
        kept = torch.cat([
            mark_top(own, count)
            for own, count in zip(by_camera, self._counts(len(scores)), strict=True)])
        return Choice(kept | ~self._is_open, scores, flops=ranking_flops(self._layer0, sequence))

    def _query_rows(self, sequence: TokenSequence) -> Tensor:
        """Embeddings of BOS, prompt and stop, [N, width]; CogACT's prompt ends with its stop."""
        return torch.cat([
            sequence.states[0, sequence.span(name)] for name in QUERY_SPANS if name in sequence])

    def _fills_up(self, sequence: TokenSequence) -> Tensor | None:
        """[N] bool, which of those rows only fill up a prompt; None if none can."""
        if sequence.key_bias is None:
            return None
        return torch.cat([
            sequence.key_bias[0, sequence.span(name)].isneginf()
            for name in QUERY_SPANS if name in sequence])

    def _choose(self, sequence: TokenSequence, scores: Tensor) -> Tensor:
        """Places among the visual rows: the best of each camera, whose share is fixed."""
        total = sequence.visual_total
        cameras = self._config.cameras_of(total)
        if self.keep == 1:
            return torch.arange(sequence.visual_rows, device=scores.device)
        return top_of_cameras(
            scores, sequence.visual_tokens, total // cameras, self._counts(total))

    def _counts(self, total: int) -> list[int]:
        """How many tokens of each camera stay."""
        cameras, count = self._config.cameras_of(total), max(1, round(self.keep * total))
        others = max(cameras - 1, 1)
        shares = [self.third_person_share] + [(1 - self.third_person_share) / others] * others
        return [max(1, round(share * count)) for share in shares] if cameras > 1 else [count]

    def reset(self) -> None:
        """Forget the motion."""
        super().reset()
        self.gate.reset()


class MotionGate:
    """Decides from how far the end effector came whether the next window is pruned."""

    def __init__(self, rule: str, windows: int, max_pruned: int, hold: bool):
        self._rule = rule
        self._windows = windows
        self._max_pruned = max_pruned
        self._hold = hold
        self.reset()

    def reset(self) -> None:
        """An episode begins: nothing is pruned."""
        self.open = self._rule == 'always'
        self._position: np.ndarray | None = None
        self._distances: list[float] = []
        self._mean = 0.0
        self._pruned = 0

    def update(self, position_m: np.ndarray) -> None:
        """A window begins at this position [3]."""
        if self._rule in ('always', 'never'):
            return
        if self._position is not None:
            self._distances.append(float(np.linalg.norm(position_m - self._position)))
            first = len(self._distances) == 1
            self._mean = self._distances[-1] if first else (
                0.5 * self._mean + 0.5 * self._distances[-1])
        self._position = np.array(position_m)
        if len(self._distances) < (1 if self._rule == 'average' else self._windows):
            return
        self.open = self._pruned < self._max_pruned and self._moves_far()
        self._pruned = self._pruned + 1 if self.open else 0

    def _moves_far(self) -> bool:
        *before, last = self._distances[-self._windows :]
        if self._rule == 'average':
            return last >= self._mean
        if last >= max(before):
            return True
        if last < min(before):
            return False
        return self.open if self._hold else True


def ranking_flops(layer: DecoderLayer, sequence: TokenSequence) -> int:
    """FLOPs of `importance` for the visual rows of a sequence."""
    width, rows = sequence.states.shape[2], sequence.visual_rows
    attention = layer.self_attn
    return 2 * (width * attention.query_width + rows * attention.key_width * (width + 1))


def importance(
    layer: DecoderLayer, visual: Tensor, text: Tensor, hidden: Tensor | None = None
) -> Tensor:
    """Mean over heads and text rows of q k' / sqrt(head width), [V].

    visual: [V, width]. text: [N, width]. hidden: [N] bool, rows of the text that take no part,
    None for none. The mean query is the query of the mean row, because nothing but a linear map
    is in between. Where heads share keys, their mean query is that of the heads that share them.
    """
    attention = layer.self_attn
    rows = layer.input_layernorm(text)
    if hidden is None:
        mean = rows.mean(dim=0, keepdim=True)
    else:
        mean = rows.masked_fill(hidden[:, None], 0).sum(dim=0, keepdim=True) / (~hidden).sum()
    query = attention.bare_queries(mean.to(rows.dtype))
    key = attention.bare_keys(layer.input_layernorm(visual))
    head_width = query.shape[1] / attention.heads
    if query.shape != key[:1].shape:
        shared = key.shape[1] // attention.head_width
        query = query.unflatten(1, (shared, -1, attention.head_width)).sum(dim=2).flatten(1)
    products = (key @ query.mT).squeeze(1)
    return products / (attention.heads * head_width**0.5)
