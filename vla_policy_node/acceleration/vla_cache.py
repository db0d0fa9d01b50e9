"""VLA-Cache: reuse the last step's keys and values of static patches (NeurIPS 2025).

arXiv 2502.02175, in the form of the released code (siyuhsu/vla-cache, OpenVLA-OFT variant):

1. Of each camera the `static` patches most similar to the last frame's, by the cosine of their raw
   pixels, at least `similarity`, are static; of equals the first, on every device.
2. Those among the `relevant` tokens that the prompt attended to most in the last step, at layer 15
   of 32, are taken out again. The rest can be reused.
3. At layers 2, 6, 9 and 11 of 32 the first k of them (by position) leave the sequence, and later
   layers attend to the keys and values that earlier steps left. k = r |reusable| and never
   falls, r = 1 - H with H the entropy of the layer's attention in the last step, min-max
   normalised over the layers; rises of r from layer to layer are damped by `growth`.

In a causal model, OpenVLA there and CogACT here, reuse is exact for tokens before anything that
changed, and an approximation for those behind it. OpenVLA-OFT's rows all see each other, so there
it is exact for identical inputs and an approximation otherwise.
The entropy is that of the rows that the last step computed; the last layer, whose attention is
needed nowhere, does not take part, unless a depth cut has made it the layer of step 2. In models
of other depth the layers lie as deep.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from vla_policy_node.acceleration.base import Capability, Effect, Method, Report, Step
from vla_policy_node.acceleration.selection import (
    at_depth,
    patches,
    static_tokens,
    top_of_cameras,
)
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.lazy_attention import LazyAttention
from vla_policy_node.nn.sequence import TokenSequence

DROP_LAYERS = (2, 6, 9, 11)
RELEVANCE_LAYER = 15


class VlaCache(Method):
    """Does not recompute static tokens in the deep layers.

    similarity: cosine of a patch's pixels with the last frame's above which it is static.
    static: of each camera, at most; published is 150 of 256 for OpenVLA-OFT and 130 for OpenVLA,
        0 reuses nothing.
    relevant: of each camera, tokens that are recomputed in any case; published is 100 for
        OpenVLA-OFT and 120 for OpenVLA.
    growth: damping of the schedule; published is 0.55, 1.0 does not damp.
    """

    name = 'vla_cache'
    needs = frozenset({Capability.VISUAL_TOKENS, Capability.LAYERS, Capability.PREFIX_KV})
    does = frozenset({Effect.REUSES_KEYS_VALUES, Effect.READS_ATTENTION, Effect.COST_VARIES})
    off: ClassVar = {'static': 0}

    def __init__(
        self,
        *,
        similarity: float = 0.996,
        static: int = 150,
        relevant: int = 100,
        growth: float = 0.55,
    ):
        if static < 0 or relevant < 0 or not 0 < growth <= 1:
            raise ValueError(
                'vla_cache needs static and relevant of at least 0 and growth in (0, 1], not '
                f'{static}, {relevant} and {growth}.'
            )
        self.similarity = similarity
        self.static = static
        self.relevant = relevant
        self.growth = growth
        self._config: ModelConfig  # from `prepare` on
        self._pixels: Tensor | None
        self._similarity: Tensor | None
        self._relevance: Tensor | None
        self._reusable: Tensor
        self._dropped: Tensor
        self._cache: dict[int, tuple[Tensor, Tensor]]
        self._entropies: dict[int, float]
        self._rates: dict[int, float]
        self.reset()

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Place the layers in the depth of the model."""
        self._config = config
        layers = config.language_model.layers
        self._drop_layers = {min(at_depth(index, layers), layers - 1) for index in DROP_LAYERS}
        self._relevance_layer = min(at_depth(RELEVANCE_LAYER, layers), layers - 2)

    def begin_step(self, step: Step) -> None:
        """Find the static patches."""
        pixels = patches(step.images, self._config)
        self._similarity = (
            None if self._pixels is None
            else functional.cosine_similarity(pixels, self._pixels, dim=1)
        )
        self._pixels = pixels

    def begin_pass(self) -> None:
        """Decide what can be reused."""
        self._reusable = self._find_reusable()
        self._rates = damp(reuse_rates(self._entropies), self.growth)
        self._dropped = self._reusable[:0]
        self._entropies = {}
        self._has_run = True
        self._flops = 0

    def _find_reusable(self) -> Tensor:
        """Visual tokens, ascending."""
        if self._similarity is None or self._relevance is None or not self._cache:
            return torch.empty(0, dtype=torch.int64)
        cameras = self._config.cameras_of(len(self._relevance))
        static = static_tokens(self._similarity, cameras, self.static, self.similarity)
        matters = top_of_cameras(
            self._relevance, torch.arange(len(self._relevance), device=self._relevance.device),
            len(self._relevance) // cameras, [self.relevant] * cameras)
        static = static.to(matters.device)
        return static[~torch.isin(static, matters)]

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Drop some more of what can be reused."""
        if index not in self._drop_layers or not len(self._reusable):
            return sequence
        count = max(1, int(self._rates.get(index, 0.0) * len(self._reusable)))
        if count <= len(self._dropped):
            return sequence
        self._dropped = self._reusable[:count]
        left = ~torch.isin(sequence.visual_tokens, self._dropped)
        return sequence.keep_visual(left.nonzero().flatten())

    def keys_values(
        self, index: int, sequence: TokenSequence, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Remember those of the rows, and add those of the tokens that are none."""
        rows, tokens = sequence.span('visual'), sequence.visual_tokens
        if index not in self._cache:
            self._cache[index] = key[:, :, rows], value[:, :, rows]
            return key, value
        old_key, old_value = self._cache[index]
        old_key = old_key.index_copy(2, tokens, key[:, :, rows])
        old_value = old_value.index_copy(2, tokens, value[:, :, rows])
        self._cache[index] = old_key, old_value
        if not len(self._dropped):
            return key, value
        return (
            torch.cat([key, old_key.index_select(2, self._dropped)], dim=2),
            torch.cat([value, old_value.index_select(2, self._dropped)], dim=2),
        )

    def appended_positions(self, index: int, sequence: TokenSequence) -> Tensor:
        """A visual token has the same position in every step."""
        return sequence.first('visual') + self._dropped[None]

    def watch_attention(
        self, index: int, sequence: TokenSequence, attention: LazyAttention
    ) -> None:
        """See, for the next step, how each layer spreads its attention, and on which tokens."""
        if not self.static or (attention.last and index != self._relevance_layer):
            return
        maps = attention(slice(None))[0].mean(dim=0)
        self._entropies[index] = float(-(maps * maps.clamp(min=1e-12).log()).sum(dim=1).mean())
        rows = len(maps)
        self._flops += attention.flops(rows)
        if index == self._relevance_layer:
            received = maps[sequence.span('prompt')].mean(dim=0)
            visual = torch.cat([received[sequence.span('visual')], received[rows:]])
            tokens = torch.cat([sequence.visual_tokens, self._dropped.to(visual.device)])
            self._relevance = visual.new_zeros(sequence.visual_total).index_copy(0, tokens, visual)

    def reset(self) -> None:
        """Forget the last frame, its attention, and all keys and values."""
        self._pixels = self._similarity = self._relevance = None
        self._cache, self._entropies, self._rates = {}, {}, {}
        self._reusable = self._dropped = torch.empty(0, dtype=torch.int64)
        self._has_run = False
        self._flops = 0

    def report(self) -> Report | None:
        """Kept are the tokens that all layers computed anew; scores: how static each patch is."""
        if not self._has_run:
            return None
        total = self._config.visual_tokens if self._relevance is None else len(self._relevance)
        kept = torch.ones(total, dtype=torch.bool)
        kept[self._dropped.cpu()] = False
        layer = min(self._drop_layers)
        if self._similarity is None:
            return Report(kept.numpy(), layer=layer, flops=self._flops)
        return Report(kept.numpy(), self._similarity.cpu().numpy(), layer, self._flops)


def reuse_rates(entropies: dict[int, float]) -> dict[int, float]:
    """Entropy of each layer's attention -> share of the reusable tokens it may reuse."""
    if not entropies:
        return {}
    low, high = min(entropies.values()), max(entropies.values())
    span = (high - low) or 1.0
    return {index: 1 - (value - low) / span for index, value in sorted(entropies.items())}


def damp(rates: dict[int, float], growth: float) -> dict[int, float]:
    """Let a rate rise from one layer to the next by the share `growth` of the rise only."""
    damped: dict[int, float] = {}
    last: float | None = None
    for index, rate in rates.items():
        if last is not None and rate > last:
            rate = last + growth * (rate - last)
        damped[index] = last = rate
    return damped
