"""FastDriveVLA: a small scorer keeps only foreground tokens (AAAI 2026).

ReconPruner, arXiv 2507.23318, from a section-by-section note; official code was not found. One
decoder layer with full attention sees the visual tokens V and a learnt query Q; the score of a
token is a linear reading of V* o Q* (their product, element by element), and the best floor(N (1 -
p)) stay; p = 50 % is recommended. `vla train foreground` trains it as the paper does, by
reconstruction: the chosen tokens must suffice to paint the foreground, and the others the rest
(`fastdrivevla_training`), with the world's labels in place of Grounded-SAM's. The policy stays as
it is, and every policy with the same vision encoders and projector can use the scorer.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from vla_policy_node.acceleration.base import Capability, Effect
from vla_policy_node.acceleration.method_weights import fill, read_weights, save_weights
from vla_policy_node.acceleration.selection import Selection, mark_top, top
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.flops import LayerRows, chain_flops, layer_flops
from vla_policy_node.nn.hooks import Choice
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.nn.transformer import DecoderConfig, DecoderLayer, Rope

FILE_NAME = 'method--fastdrivevla.safetensors'


class ForegroundScorer(nn.Module):
    """Scores visual tokens; positive means foreground."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self._config = config
        self.query = nn.Parameter(torch.randn(config.width))
        self.layer = DecoderLayer(config)
        self.score = nn.Linear(config.width, 1)

    def forward(self, visual: Tensor, positions: Tensor) -> Tensor:
        """[B, V, width] at positions [B, V] -> [B, V]; the query has position 0."""
        query = self.query.expand(len(visual), 1, -1)
        places = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
        config = self._config
        rope = Rope.of(config, places, visual.dtype)
        rows = self.layer(torch.cat([query, visual], dim=1), rope, None, slice(None))
        return self.score(rows[:, 1:] * rows[:, :1]).squeeze(-1)

    def flops(self, tokens: int) -> int:
        """FLOPs of `forward` for one batch element."""
        rows = LayerRows(1 + tokens, 1 + tokens, 1 + tokens)
        return layer_flops(self._config, rows) + tokens * chain_flops(self._config.width, 1)

    def save(self, checkpoint: Path) -> None:
        """Write the scorer into the directory of the checkpoint it was trained with."""
        save_weights(checkpoint / FILE_NAME, self.state_dict())

    @classmethod
    def load(cls, checkpoint: Path, config: ModelConfig) -> ForegroundScorer:
        """Read what `save` wrote; ValueError if it is missing, damaged or of another size."""
        path = checkpoint / FILE_NAME
        tensors = read_weights(
            path, 'no scorer was trained for it; train one with `vla train foreground`')
        scorer = cls(config.language_model)
        fill(scorer, tensors, path, config)
        return scorer


class FastDriveVla(Selection):
    """Keeps the tokens that the checkpoint's scorer calls foreground most.

    prune: p, the share of the visual tokens that go; 0 keeps all.
    """

    name = 'fastdrivevla'
    needs = frozenset({Capability.VISUAL_TOKENS})
    does = frozenset({Effect.DROPS_TOKENS, Effect.FIXED_SHAPES})
    off: ClassVar = {'prune': 0.0}
    weights_file = FILE_NAME

    def __init__(self, *, prune: float = 0.5):
        super().__init__()
        if not 0 <= prune < 1:
            raise ValueError(f'fastdrivevla prunes a share in [0, 1), not {prune}.')
        self.prune = prune
        self.scorer: ForegroundScorer  # from `prepare` on

    @classmethod
    def save_untrained(cls, checkpoint: Path, config: ModelConfig) -> None:
        """Write a scorer."""
        ForegroundScorer(config.language_model).save(checkpoint)

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Read the scorer."""
        self.scorer = ForegroundScorer.load(checkpoint, config)

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Drop the background."""
        scores, flops = self._score(sequence)
        return self._keep(sequence, top(scores, self._count(sequence)), scores, flops=flops)

    def select_static(self, sequence: TokenSequence) -> Choice:
        """Choose the same."""
        scores, flops = self._score(sequence)
        return Choice(mark_top(scores, self._count(sequence)), scores, flops=flops)

    def _score(self, sequence: TokenSequence) -> tuple[Tensor, int]:
        """Scores of the visual rows, [V], and their FLOPs."""
        scorer = self.scorer.to(sequence.states.device, sequence.states.dtype)
        scores = scorer(sequence.visual, sequence.positions[:, sequence.span('visual')])[0]
        return scores, scorer.flops(sequence.visual_rows)

    def _count(self, sequence: TokenSequence) -> int:
        return max(1, int(sequence.visual_rows * (1 - self.prune)))
