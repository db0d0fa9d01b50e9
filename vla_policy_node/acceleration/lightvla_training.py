"""LightVLA's differentiable selection, for fine-tuning (arXiv 2509.12594, section III).

The authors' training replaces every visual row i by the token it votes for, H'_i = W_i H with
W = one-hot + softmax - stop-gradient(softmax), and pays the dense price for rows of which most
are copies. Here copies run once, and training costs what the pruned network costs. The result is
the same: m copies of a token, at one position, are equal in every layer, so a single key with
ln(m) on its attention logits replaces them, and each copy's gradient is a share 1/m of the
single row's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla_policy_node.acceleration.lightvla import find_winners, score
from vla_policy_node.acceleration.lightvla_star import LearnedQueries
from vla_policy_node.acceleration.objective import HeldOut, Objective, teaches
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.sequence import TokenSequence

if TYPE_CHECKING:
    from vla_policy_node.families.prismatic import PrismaticVla

NOISES = ('uniform', 'gumbel')


class StraightThroughSelection(Objective):
    """Keeps the tokens that win a vote and lets a gradient through to the scores.

    Any batch size: samples that keep fewer tokens than others are filled up with hidden rows.
    No subclass is offered by name, because a policy that runs has no use for it.

    noise: 'uniform', [0, 1) as in the release, or 'gumbel', Gumbel(0, 1) as in the paper.
    noise_scale: factor of the noise on the scores, at first. The release lowers it linearly from
        1 to 0 over the training, as `noise_decays` does, where `begin_step` is called. There is no
        noise under `torch.no_grad()`.
    multiplicity_bias: True trains the network in which a token chosen m times counts m times,
        exactly the authors' training; False the one that their inference runs.
    votes: [B, V] int64, votes for each visual token in the last pass, None before the first.
    """

    def __init__(
        self,
        noise: str = 'uniform',
        noise_scale: float = 0.0,
        multiplicity_bias: bool = True,
    ):
        if noise not in NOISES:
            raise ValueError(f'noise must be one of {", ".join(NOISES)}, not {noise!r}.')
        self.noise = noise
        self.noise_scale = noise_scale
        self.noise_decays = False
        self.multiplicity_bias = multiplicity_bias
        self.votes: Tensor | None = None
        self._first_scale = noise_scale

    def begin_step(self, done: float) -> None:
        """Lower the noise."""
        self.noise_scale = self._first_scale * (1 - done if self.noise_decays else 1.0)

    def begin_pass(self) -> None:
        """Forget the last pass."""
        self.votes = None

    def measures(self) -> dict[str, Tensor]:
        """How many visual tokens were kept, on average."""
        return {'tokens': self.kept_counts.float().mean()}

    @property
    def kept_counts(self) -> Tensor:
        """[B] int64, how many visual tokens each sample of the last pass kept."""
        assert self.votes is not None, 'no pass has run'
        return (self.votes > 0).sum(dim=1)

    def _select(self, sequence: TokenSequence, scores: Tensor) -> TokenSequence:
        """Keep the winners of scores [B, N, visual rows], one vote per query."""
        scores = self._noisy(scores)
        winners = find_winners(scores)
        votes = scores.new_zeros(scores[:, 0].shape, dtype=torch.int64)
        votes.scatter_add_(1, winners, torch.ones_like(winners))
        tokens = sequence.positions[:, sequence.span('visual')] - sequence.first('visual')
        total = votes.new_zeros(len(votes), sequence.visual_total)
        self.votes = total.scatter(1, tokens, votes)

        # First the winners, in their order, then as many others as the batch needs.
        rows = int((votes > 0).sum(dim=1).max())
        kept = (votes == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :rows]
        counts = votes.gather(1, kept)
        pruned = sequence.keep_visual(kept, self._bias(counts, scores.dtype))
        copy_of = ((votes > 0).cumsum(1) - 1).gather(1, winners)
        visual = _StraightThrough.apply(
            pruned.visual, torch.softmax(scores, dim=-1), sequence.visual, copy_of, counts
        )
        return pruned.with_visual(visual)

    def _noisy(self, scores: Tensor) -> Tensor:
        if not self.noise_scale or not torch.is_grad_enabled():
            return scores
        if self.noise == 'uniform':
            noise = torch.rand_like(scores)
        else:
            noise = -torch.empty_like(scores).exponential_().log()
        return scores + self.noise_scale * noise

    def _bias(self, counts: Tensor, dtype: torch.dtype) -> Tensor | None:
        """ln(m) of the kept rows; of those that only fill up, m is 0 and this hides them."""
        if self.multiplicity_bias:
            return counts.to(dtype).log()
        if bool(counts.all()):
            return None
        return counts.clamp(max=1).to(dtype).log()


class LightVlaTraining(StraightThroughSelection):
    """LightVLA while it learns: every visual token votes.

    padding_votes: let the rows that fill up shorter prompts of a batch take part in the scores,
        as the release does, for comparison with it. They never do at inference.
    """

    def __init__(
        self,
        noise: str = 'uniform',
        noise_scale: float = 0.0,
        multiplicity_bias: bool = True,
        padding_votes: bool = False,
    ):
        super().__init__(noise, noise_scale, multiplicity_bias)
        self.padding_votes = padding_votes

    def method_settings(self) -> dict[str, dict[str, object]]:
        """How often a token counts is what the network got used to."""
        return {'lightvla': {'multiplicity_bias': self.multiplicity_bias}}

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Keep the tokens that some visual token votes for."""
        hidden = None if self.padding_votes else sequence.context_hidden
        with torch.autocast(sequence.states.device.type, enabled=False):
            return self._select(sequence, score(sequence.visual, sequence.context, hidden))


class LightVlaStarTraining(StraightThroughSelection):
    """LightVLA* while it learns: the queries are parameters, for the optimiser to have."""

    def __init__(
        self,
        queries: LearnedQueries,
        noise: str = 'uniform',
        noise_scale: float = 0.0,
        multiplicity_bias: bool = False,
    ):
        super().__init__(noise, noise_scale, multiplicity_bias)
        self.queries = queries
        self.learnt = {'queries': queries}

    def save(self, checkpoint: Path, model: PrismaticVla, held_out: HeldOut) -> None:
        """Write the queries."""
        self.queries.save(checkpoint)

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Keep the tokens that some query votes for, if the queries look here."""
        return self.before_layer(0, sequence)

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Keep the tokens that some query votes for, if the queries look here."""
        if index != self.queries.layer:
            return sequence
        with torch.autocast(sequence.states.device.type, enabled=False):
            return self._select(sequence, self.queries(sequence))


class _StraightThrough(torch.autograd.Function):
    """Passes the kept rows on and, backward, gives the softmax the gradient of W.

    kept: [B, U, width], one row for each token that was voted for. soft: [B, N, V], the queries'
    softmax over all tokens `visual` [B, V, width]. copy_of: [B, N], which kept row each query's
    copy became part of. counts: [B, U], of how many copies a kept row consists.
    """

    @staticmethod
    def forward(ctx, kept, soft, visual, copy_of, counts):
        ctx.save_for_backward(soft, visual, copy_of, counts)
        return kept.clone()

    @staticmethod
    def backward(ctx, gradient):
        soft, visual, copy_of, counts = ctx.saved_tensors
        share = gradient / counts.clamp(min=1)[..., None]
        by_row = share.to(soft.dtype) @ visual.to(soft.dtype).mT
        by_query = by_row.gather(1, copy_of[..., None].expand_as(soft))
        return gradient, by_query, None, None, None


@teaches(
    'lightvla', choices={'noise': NOISES}, needs=frozenset({Capability.VISUAL_TOKENS}),
    needs_all_tokens=True)
def _selection(
    config: ModelConfig,
    losses: Mapping[str, float],
    *,
    noise: str = 'uniform',
    noise_scale: float = 1.0,
    noise_decays: bool = True,
    multiplicity_bias: bool = True,
    learnt_queries: int = 0,
    query_layer: int = 0,
) -> StraightThroughSelection:
    """LightVLA, or LightVLA* where queries are learnt.

    noise: on the scores; it falls from `noise_scale` to 0 over the run, or stays where
    `noise_decays` is false. learnt_queries: how many, 0 for LightVLA itself; `query_layer`: the
    layer before which they choose, 0 to 3.
    """
    selection: StraightThroughSelection
    if learnt_queries:
        queries = LearnedQueries(config.language_model.width, learnt_queries, query_layer)
        selection = LightVlaStarTraining(queries, noise, noise_scale, multiplicity_bias)
    else:
        selection = LightVlaTraining(noise, noise_scale, multiplicity_bias)
    selection.noise_decays = noise_decays
    return selection
