"""EfficientVLA, part 2: keep visual tokens that matter for the task, and some diverse ones.

Yang et al. 2025, arXiv 2506.10100, section 3.3; no training. A few key tokens with the most
attention, then a share of the rest by attention and the others by how little they resemble the
key tokens.

Open in the paper, and how it is here: relevance is read from the layer before the drop, features
are the hidden states that enter the layer of the drop. The text has visual tokens attend to the
words; in a causal model they cannot see them, so `attention_from` 'words' reads the other way. It
is the default because it changes the actions less (docs/constants).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from vla_policy_node.acceleration.base import Capability, Effect
from vla_policy_node.acceleration.selection import Budget, Selection, by_token
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.lazy_attention import LazyAttention
from vla_policy_node.nn.sequence import TokenSequence

DIRECTIONS = ('words', 'tokens')


class EfficientVlaTokens(Selection):
    """Keeps a share of the visual tokens from layer `layer` on.

    keep: the share; published are 0.22 and 0.44, which is 56 and 112 of one camera's 256.
    count: so many of all cameras instead, 0 for the share.
    layer: the first that runs without the others; the published FLOPs say 2.
    key: tokens that are always kept, those with the most relevance; 4 to 8 in the paper.
    alpha: of the others, the share that is kept for relevance; the rest is kept for diversity.
    attention_from: 'words': relevance is the attention that the rows of the prompt pay to a
        token; 'tokens': that which the token pays to them, for bidirectional models only.
    """

    name = 'efficientvla_tokens'
    needs = frozenset({Capability.VISUAL_TOKENS, Capability.LAYERS})
    does = frozenset({Effect.DROPS_TOKENS_LATER, Effect.READS_ATTENTION})
    off: ClassVar = {'keep': 1.0}
    open_settings: ClassVar = {
        'attention_from': ('tokens',), 'layer': (1, 3), 'alpha': (0.0, 1.0), 'key': (16,),
    }

    def __init__(
        self,
        *,
        keep: float = 0.22,
        count: int = 0,
        layer: int = 2,
        key: int = 4,
        alpha: float = 0.5,
        attention_from: str = 'words',
    ):
        if layer < 1 or key < 1 or not 0 <= alpha <= 1:
            raise ValueError(
                'efficientvla_tokens needs layer and key of at least 1 and alpha in [0, 1], not '
                f'{layer}, {key} and {alpha}.')
        if attention_from not in DIRECTIONS:
            raise ValueError(
                f'attention_from must be one of {", ".join(DIRECTIONS)}, not {attention_from!r}.')
        super().__init__()
        self.budget = Budget(self.name, keep, count)
        self.layer, self.key, self.alpha = layer, key, alpha
        self.attention_from = attention_from
        self._config: ModelConfig  # from `prepare` on
        self._relevance: Tensor  # [V], of the last pass

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Find the prompt's rows; refuse a layer or a direction that the model does not have."""
        self._check_layer(self.layer, config)
        if config.causal and self.attention_from == 'tokens':
            raise ValueError(
                "attention_from 'tokens' needs a bidirectional model: in this one no visual token "
                "sees the prompt; use 'words'.")
        self._config = config

    def watch_attention(
        self, index: int, sequence: TokenSequence, attention: LazyAttention
    ) -> None:
        """Weigh the tokens one layer before the drop: mean over heads, sum over the prompt."""
        if index != self.layer - 1:
            return
        visual = sequence.span('visual')
        prompt = sequence.span('prompt')
        if self.attention_from == 'words':
            relevance = attention(prompt)[0, :, :, visual].mean(0).sum(0)
            self._flops = attention.flops(prompt.stop - prompt.start)
        else:
            relevance = attention(visual)[0, :, :, prompt].mean(0).sum(-1)
            self._flops = attention.flops(sequence.visual_rows)
        self._relevance = by_token(relevance, sequence)

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Drop the others, in the order and at the positions they had."""
        if index != self.layer:
            return sequence
        tokens = sequence.visual_rows
        relevance = self._relevance[sequence.visual_tokens]
        count = self.budget.of(sequence.visual_total)
        if tokens <= count:
            kept = torch.arange(tokens, device=relevance.device)
            return self._keep(sequence, kept, relevance, index)
        key, task, diverse = choose_tokens(
            relevance, sequence.visual[0], count, self.key, self.alpha)
        kept = torch.cat([key, task, diverse]).sort().values
        compared = tokens - len(key) - len(task)
        flops = 2 * compared * len(key) * sequence.states.shape[2]
        return self._keep(sequence, kept, relevance, index, flops)


def choose_tokens(
    relevance: Tensor, features: Tensor, count: int, key: int, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose `count` of N tokens: for being key, for the task, and for diversity.

    relevance: [N]. features: [N, width]. Returns three disjoint sets of indices, [min(key,
    count)], [floor(alpha (count - key))] and the rest, each best first. Diversity is 1 - the
    largest cosine to a key token. Of equals the more relevant one wins, then the lower index.
    """
    ranked = relevance.argsort(descending=True, stable=True)
    key = min(key, count)
    task = int(alpha * (count - key))
    first, second, rest = ranked[:key], ranked[key : key + task], ranked[key + task :]
    directions = functional.normalize(features.float(), dim=-1)
    resemblance = (directions[rest] @ directions[first].mT).amax(dim=-1)
    order = resemblance.argsort(stable=True)
    return first, second, rest[order[: count - key - task]]
