"""Shared parts of methods that choose among visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vla_policy_node.acceleration.base import Method, Report
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.hooks import Choice
from vla_policy_node.nn.lazy_attention import LazyAttention
from vla_policy_node.nn.sequence import TokenSequence


@dataclass(frozen=True)
class Budget:
    """How many visual tokens a method keeps.

    keep: share of all cameras' tokens, so that a robot with another number of cameras loses as
        much of each; 1 keeps all. count: so many of all cameras instead, 0 for the share.
    ValueError for what cannot be, with the name of the method.
    """

    method: str
    keep: float
    count: int

    def __post_init__(self):
        if not 0 < self.keep <= 1 or self.count < 0:
            raise ValueError(
                f'{self.method} needs keep in (0, 1] and a count of at least 0, not '
                f'{self.keep} and {self.count}.')

    def of(self, total: int) -> int:
        """Tokens to keep of so many, at least 1."""
        return min(self.count or max(1, round(self.keep * total)), total)


class Selection(Method):
    """Drops visual tokens and remembers which, for the report. Not a method by itself."""

    def __init__(self):
        self._kept: Tensor | None = None  # [V] bool
        self._scores: Tensor | None = None  # [V]
        self._layer = 0
        self._flops = 0

    def _keep(
        self,
        sequence: TokenSequence,
        kept: Tensor,
        scores: Tensor | None = None,
        layer: int = 0,
        flops: int = 0,
    ) -> TokenSequence:
        """Keep the visual rows `kept`, ascending [M]; scores: of all visual rows, for the report.

        Of several drops in one pass, the report names the first layer and the last choice.
        """
        tokens = sequence.visual_tokens
        if layer == 0 or self._kept is None or layer <= self._layer:
            self._layer = layer
        self._kept = torch.zeros(sequence.visual_total, dtype=torch.bool, device=tokens.device)
        self._kept[tokens[kept]] = True
        if scores is not None:
            self._scores = by_token(scores, sequence)
        self._flops += flops
        return sequence if len(kept) == len(tokens) else sequence.keep_visual(kept)

    def record_selection(self, choice: Choice) -> None:
        """Take a choice before layer 0 for that of the last pass."""
        self._kept, self._scores = choice.kept, choice.scores
        self._layer, self._flops = 0, choice.flops

    def _check_layer(self, layer: int, config: ModelConfig) -> None:
        """Refuse, in `prepare`, a layer that the model does not have."""
        layers = config.language_model.layers
        if layer >= layers:
            raise ValueError(
                f'{self.name} cannot drop tokens before layer {layer}: the last one is '
                f'{layers - 1}.')

    def begin_pass(self) -> None:
        """Forget the last pass."""
        self._kept = self._scores = None
        self._layer = self._flops = 0

    def reset(self) -> None:
        """Forget the last report."""
        Selection.begin_pass(self)

    def report(self) -> Report | None:
        """Kept tokens and what they were ranked by."""
        if self._kept is None:
            return None
        kept = self._kept.cpu().numpy()
        if self._scores is None:
            return Report(kept, layer=self._layer, flops=self._flops)
        scores = self._scores.float().cpu().numpy()
        return Report(kept, scores, self._layer, self._flops)


def top(scores: Tensor, count: int) -> Tensor:
    """Places of the `count` highest scores [V], ascending; of equal ones the lower place wins."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def mark_top(scores: Tensor, count: int) -> Tensor:
    """[..., V] bool, the same places, in a shape that does not depend on the count."""
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, True)


def top_of_cameras(
    scores: Tensor, tokens: Tensor, per_camera: int, counts: Sequence[int]
) -> Tensor:
    """Places of the highest scores of each camera, ascending; of equal ones the lower place wins.

    scores: [N] of the visual tokens [N], ascending. per_camera: tokens that a camera has before
    any is dropped. counts: how many of each camera to choose.
    """
    camera = tokens // per_camera
    return torch.cat([
        (own := (camera == index).nonzero().flatten())[top(scores[own], count)]
        for index, count in enumerate(counts)
    ])


def union(*chosen: Tensor) -> Tensor:
    """Places that are in any of the lists, ascending, each once."""
    return torch.cat(chosen).unique()


def attention_received(
    attention: LazyAttention, sequence: TokenSequence, queries: slice
) -> tuple[Tensor, int]:
    """Attention that rows pay to each visual token, mean over heads and rows; what it costs.

    queries: those rows. Returns [V], 0 for tokens that are no rows, and FLOPs.
    """
    received = attention(queries)[0].mean(dim=(0, 1))[sequence.span('visual')]
    rows = range(*queries.indices(sequence.states.shape[1]))
    return by_token(received, sequence), attention.flops(len(rows))


def static_tokens(
    similarity: Tensor, cameras: int, count: int, threshold: float
) -> Tensor:
    """Tokens of each camera that changed least, at most `count` of them, ascending.

    similarity: [V], cosine of each patch with an earlier picture's. threshold: no token below it
    is static.
    """
    tokens = torch.arange(len(similarity), device=similarity.device)
    chosen = top_of_cameras(similarity, tokens, len(tokens) // cameras, [count] * cameras)
    return chosen[similarity[chosen] >= threshold]


def by_token(scores: Tensor, sequence: TokenSequence) -> Tensor:
    """Scores of the visual rows -> of all visual tokens, [V]; 0 for tokens that are no rows.

    What outlives the layer that it was read in is kept by token: another method may drop rows
    in between.
    """
    return scores.new_zeros(sequence.visual_total).index_copy(0, sequence.visual_tokens, scores)


def at_depth(published: int, layers: int, of: int = 32) -> int:
    """Return the layer that lies as deep among `layers` as `published` does among 32, from 1."""
    return max(1, round(published * layers / of))


def patches(images: Tensor, config: ModelConfig) -> Tensor:
    """[cameras, C, H, W] -> [V, C * patch pixels], in the order of the visual tokens."""
    rows, columns = config.grid
    size = (images.shape[2] // rows, images.shape[3] // columns)
    return functional.unfold(images, size, stride=size).mT.flatten(0, 1)
