"""FastV: drop visual tokens that get little attention after a few layers (Chen et al. 2024).

"An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764; code pkunlp-icler/FastV. It needs
no training. There the last row of the prompt ranks the tokens: in a causal model that row has seen
everything and writes the answer. In CogACT it is the cognition token.

OpenVLA-OFT, whose rows all see each other, has rows behind its prompt: empty action slots and a
stop token, which attend to little that matters in the ranking layer. Ranked by them, half of the
tokens suffice for none of 10 episodes; ranked by the last row of the prompt, for 9
(docs/acceleration.md). `rows` chooses; 'prefill' is the ranking of a public port for OpenVLA-OFT
(MINT-SJTU/VLA-Pruner), with an equal part of the budget for each camera.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from vla_policy_node.acceleration.base import Capability, Effect
from vla_policy_node.acceleration.selection import (
    Budget,
    Selection,
    attention_received,
    top_of_cameras,
)
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.lazy_attention import LazyAttention
from vla_policy_node.nn.sequence import TokenSequence

ROWS = ('prompt_end', 'prefill', 'behind')


class FastV(Selection):
    """Keeps the tokens with the most attention in the layer before `layer`.

    layer: the first layer that runs without the others; the published value is 2.
    keep: share of the tokens, published is 0.5; 1.0 keeps all. count: so many instead, 0 for the
        share.
    rows: whose attention ranks the tokens. 'prompt_end': the last row of the prompt, as
        published; 'prefill': all rows up to that one, for each camera by itself; 'behind': all
        rows behind the visual ones, action slots and stop among them.
    """

    name = 'fastv'
    needs = frozenset({Capability.VISUAL_TOKENS, Capability.LAYERS})
    does = frozenset({Effect.DROPS_TOKENS_LATER, Effect.READS_ATTENTION})
    off: ClassVar = {'keep': 1.0}
    open_settings: ClassVar = {'layer': (1, 3), 'rows': ('prefill', 'behind')}

    def __init__(
        self, *, layer: int = 2, keep: float = 0.5, count: int = 0, rows: str = 'prompt_end'
    ):
        if layer < 1:
            raise ValueError(f'fastv needs a layer of at least 1, not {layer}.')
        if rows not in ROWS:
            raise ValueError(f'fastv needs rows of {", ".join(ROWS)}, not {rows!r}.')
        super().__init__()
        self.layer = layer
        self.budget = Budget(self.name, keep, count)
        self.rows = rows
        self._config: ModelConfig  # from `prepare` on
        self._received: Tensor  # in the last pass

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Find the prompt's rows; refuse a layer that the model does not have."""
        self._check_layer(self.layer, config)
        self._config = config

    def watch_attention(
        self, index: int, sequence: TokenSequence, attention: LazyAttention
    ) -> None:
        """Rank the tokens by the attention they get one layer before the drop."""
        if index != self.layer - 1:
            return
        self._received, self._flops = attention_received(
            attention, sequence, self._queries(sequence))

    def _queries(self, sequence: TokenSequence) -> slice:
        end = sequence.span('prompt').stop
        if self.rows == 'behind':
            return sequence.behind_visual
        return slice(0 if self.rows == 'prefill' else end - 1, end)

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Drop the lowest ranks; of equal ones the lower index stays."""
        if index != self.layer:
            return sequence
        received = self._received[sequence.visual_tokens]
        total = sequence.visual_total
        count = self.budget.of(total)
        parts = self._config.cameras_of(total) if self.rows == 'prefill' else 1
        shares = [count // parts + (part < count % parts) for part in range(parts)]
        kept = top_of_cameras(received, sequence.visual_tokens, total // parts, shares)
        return self._keep(sequence, kept, received, index)
