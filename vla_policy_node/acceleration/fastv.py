"""FastV: after a few layers, drop the visual tokens that got little attention (Chen et al. 2024).

"An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764; code pkunlp-icler/FastV. It needs
no training. There the last row of a causal prompt ranks the tokens, because it writes the answer.
OpenVLA-OFT writes its answer in all action rows at once and its last row is a stop token that
nobody reads, so here every row behind the visual ones has the same say by default.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vla_policy_node.acceleration.base import Method, Report, attention_flops
from vla_policy_node.models.config import ModelConfig
from vla_policy_node.models.token_sequence import TokenSequence


class FastV(Method):
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
        self.layer = layer
        self.count = count
        self.last_row = last_row
        self._scores: Tensor | None = None
        self._kept: Tensor | None = None
        self._flops = 0

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Refuse a layer that the model does not have."""
        layers = config.language_model.layers
        if self.layer >= layers:
            raise ValueError(
                f'fastv cannot drop tokens before layer {self.layer}: the last one is '
                f'{layers - 1}.'
            )

    def watch_attention(
        self, index: int, sequence: TokenSequence, attention: Callable[[slice], Tensor]
    ) -> None:
        """Rank the tokens by the attention they get one layer before the drop."""
        if index != self.layer - 1:
            return
        asking = slice(-1 if self.last_row else 1 + sequence.visual_rows, None)
        maps = attention(asking)[0]
        received = maps.mean(dim=(0, 1))[1 : 1 + sequence.visual_rows]
        scores = received.new_zeros(sequence.visual_total)
        self._scores = scores.index_copy(0, sequence.visual_tokens, received)
        self._flops = attention_flops(maps.shape[1], sequence)

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Drop the lowest ranks; of equal ones the lower index stays."""
        if index != self.layer:
            return sequence
        tokens = sequence.visual_tokens
        ranked = self._scores[tokens].argsort(descending=True, stable=True)
        kept = ranked[: self.count].sort().values
        self._kept = torch.zeros_like(self._scores, dtype=torch.bool)
        self._kept[tokens[kept]] = True
        return sequence if len(kept) == len(tokens) else sequence.keep_visual(kept)

    def reset(self) -> None:
        """Forget the last report; nothing else crosses steps."""
        self._scores = self._kept = None

    def report(self) -> Report | None:
        """Kept tokens and the attention each of them got."""
        if self._kept is None:
            return None
        kept, scores = self._kept.cpu().numpy(), self._scores.cpu().numpy()
        return Report(kept, scores, self.layer, self._flops)
