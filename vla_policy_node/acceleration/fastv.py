"""FastV: after a few layers, drop the visual tokens that got little attention (Chen et al. 2024).

"An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764; code pkunlp-icler/FastV. It needs
no training. There the last row of a causal prompt ranks the tokens, because it writes the answer.
OpenVLA-OFT writes its answer in all action rows at once and its last row is a stop token that
nobody reads, so here every row behind the visual ones has the same say by default.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from vla_policy_node.acceleration.selection import (
    Selection,
    attention_received,
    by_token,
    top,
)
from vla_policy_node.models.config import ModelConfig
from vla_policy_node.models.language_model import Attention
from vla_policy_node.models.token_sequence import TokenSequence


class FastV(Selection):
    """Keeps the `count` tokens with the most attention in the layer before `layer`.

    layer: the first layer that runs without the others; the published value is 2.
    count: how many stay; at least as many as there are keeps all. Published is half of them, 256
        of OpenVLA-OFT's 512.
    last_row: rank by the attention of the last row alone, as published, instead of the mean over
        proprio, prompt, action slots and stop.
    """

    name = 'fastv'

    def __init__(self, *, layer: int = 2, count: int = 256, last_row: bool = False):
        if layer < 1 or count < 1:
            raise ValueError(
                f'fastv needs a layer and a count of at least 1, not {layer} and {count}.'
            )
        super().__init__()
        self.layer = layer
        self.count = count
        self.last_row = last_row
        self._received: Tensor | None = None

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Refuse a layer that the model does not have."""
        self._check_layer(self.layer, config)

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Begin a pass."""
        self._begin_pass()
        return sequence

    def watch_attention(self, index: int, sequence: TokenSequence, attention: Attention) -> None:
        """Rank the tokens by the attention they get one layer before the drop."""
        if index != self.layer - 1:
            return
        maps = attention(slice(-1 if self.last_row else 1 + sequence.visual_rows, None))
        self._received = by_token(attention_received(maps, sequence), sequence)
        self._flops = attention.flops(maps.shape[2])

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Drop the lowest ranks; of equal ones the lower index stays."""
        if index != self.layer:
            return sequence
        received = self._received[sequence.visual_tokens]
        return self._keep(sequence, top(received, self.count), received, index)
