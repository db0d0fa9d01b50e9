"""LightVLA*: learnt queries vote for the visual tokens to keep (arXiv 2509.12594, section V).

The paper describes the variant in words only, "learnable queries" after the vision encoder or in
shallow layers of the language model, and its code is not public. This is our reading of it:
LightVLA's own rule with N learnt vectors in place of the visual tokens as queries. A query q
gathers what matters now from the context (proprio, prompt, ...) as LightVLA's queries do, and
votes. With n() the weightless RMS norm, P = n(visual) and T = n(context):

    Q = n(q + softmax(n(q) T' / sqrt(width)) T)        scores = Q P' / sqrt(width)

Kept is the union of the N choices, so at most N tokens stay.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_policy_node.acceleration.base import Capability, Effect
from vla_policy_node.acceleration.lightvla import count_votes, find_winners, norm
from vla_policy_node.acceleration.selection import Selection
from vla_policy_node.checkpoints.tensor_files import PLAIN_DTYPES, check_dtype, open_safetensors
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.hooks import Choice
from vla_policy_node.nn.sequence import TokenSequence

FILE_NAME = 'method--lightvla_star.safetensors'
LAST_LAYER = 3


class LearnedQueries(nn.Module):
    """The queries, and the layer in which they select.

    layer: 0 selects among the projected visual tokens before the language model, 1 to 3 among
        the hidden states before that layer.
    """

    def __init__(self, width: int, count: int = 64, layer: int = 0):
        super().__init__()
        if not 0 <= layer <= LAST_LAYER:
            raise ValueError(f'LightVLA* selects before layer 0 to {LAST_LAYER}, not {layer}.')
        self.layer = layer
        self.queries = nn.Parameter(torch.randn(count, width))

    def forward(self, sequence: TokenSequence) -> Tensor:
        """Scores of every visual row, [B, count, visual rows], at least float32."""
        patches, text = norm(sequence.visual), norm(sequence.context)
        width = patches.shape[-1]
        queries = self.queries.to(patches.dtype)
        logits = norm(queries) @ text.mT / width**0.5
        if sequence.context_hidden is not None:
            logits = logits.masked_fill(sequence.context_hidden[:, None], -torch.inf)
        queries = norm(queries + logits.softmax(dim=-1) @ text)
        return queries @ patches.mT / width**0.5

    def flops(self, sequence: TokenSequence) -> int:
        """FLOPs of `forward` for one batch element."""
        rows = 2 * sequence.context.shape[1] + sequence.visual_rows
        return 2 * self.queries.numel() * rows

    def save(self, checkpoint: Path) -> None:
        """Write the queries into the directory of the checkpoint they were trained with."""
        tensors = {'queries': self.queries.detach().cpu().contiguous()}
        save_file(tensors, checkpoint / FILE_NAME, metadata={'layer': str(self.layer)})

    @classmethod
    def load(cls, checkpoint: Path) -> LearnedQueries:
        """Read what `save` wrote; ValueError if it is missing or damaged."""
        path = checkpoint / FILE_NAME
        if not path.exists():
            raise ValueError(
                f'{checkpoint} has no {FILE_NAME}: it was not trained for LightVLA*; use the '
                "method 'lightvla', or train the queries."
            )
        with open_safetensors(path) as (_, get, texts):
            queries, layer = get('queries'), texts.get('layer', '')
        if queries.is_floating_point():
            check_dtype(path, 'queries', queries, PLAIN_DTYPES)
        if queries.ndim != 2 or 0 in queries.shape or not queries.is_floating_point() or (
            not queries.isfinite().all() or layer not in map(str, range(LAST_LAYER + 1))
        ):
            raise ValueError(f'{path} holds no queries that can be used; train them again.')
        layer = int(layer)
        loaded = cls(queries.shape[1], queries.shape[0], layer)
        loaded.queries.data = queries.float()
        return loaded.requires_grad_(False)


class LightVlaStar(Selection):
    """Keeps the union of the tokens that the checkpoint's learnt queries choose."""

    name = 'lightvla_star'
    needs = frozenset({Capability.VISUAL_TOKENS, Capability.LAYERS})
    # Of these, the layer that the queries were learnt for decides.
    does = frozenset({
        Effect.DROPS_TOKENS, Effect.DROPS_TOKENS_LATER, Effect.COST_VARIES, Effect.FIXED_SHAPES})
    off = None
    weights_file = FILE_NAME

    def __init__(self):
        super().__init__()
        self.queries: LearnedQueries | None = None

    @classmethod
    def save_untrained(cls, checkpoint: Path, config: ModelConfig) -> None:
        """Write queries that look before layer 0."""
        LearnedQueries(config.language_model.width).save(checkpoint)

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Read the queries."""
        queries = LearnedQueries.load(checkpoint)
        width = queries.queries.shape[1]
        if width != config.language_model.width or queries.layer >= config.language_model.layers:
            raise ValueError(
                f'{checkpoint / FILE_NAME} is for another model: its queries are {width} wide '
                f'and select before layer {queries.layer}.'
            )
        self.queries = queries
        if queries.layer:
            self.does = type(self).does - {Effect.DROPS_TOKENS, Effect.FIXED_SHAPES}
        else:
            self.does = type(self).does - {Effect.DROPS_TOKENS_LATER}

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Drop the visual tokens no query chose, if the queries look here."""
        return self._drop(0, sequence)

    def select_static(self, sequence: TokenSequence) -> Choice | None:
        """Choose the same, if the queries look here."""
        assert self.queries is not None, 'prepare comes first'
        return None if self.queries.layer else self._vote(self.queries, sequence)

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Drop the visual tokens no query chose, if the queries look here."""
        return self._drop(index, sequence)

    def _drop(self, index: int, sequence: TokenSequence) -> TokenSequence:
        if self.queries is None:
            raise ValueError('LightVLA* has no queries yet; call prepare with a checkpoint first.')
        if index != self.queries.layer:
            return sequence
        choice = self._vote(self.queries, sequence)
        kept = choice.kept.nonzero().flatten()
        return self._keep(sequence, kept, choice.scores, index, choice.flops)

    def _vote(self, queries: LearnedQueries, sequence: TokenSequence) -> Choice:
        winners = find_winners(queries.to(sequence.states.device)(sequence)[0])
        votes = count_votes(winners, sequence.visual_rows)
        return Choice(votes > 0, votes, flops=queries.flops(sequence))
