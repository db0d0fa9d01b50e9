"""LightVLA: every visual token votes for the one it would keep (Jiang et al. 2025).

"The Better You Learn, The Smarter You Prune", arXiv 2509.12594, section III, in the form of the
authors' release (LiAutoAD/LightVLA). It has no parameters and no ratio: how many tokens stay
depends on the input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vla_policy_node.acceleration.base import Capability, Effect, Method, Report
from vla_policy_node.acceleration.random_tokens import draw
from vla_policy_node.acceleration.selection import mark_top
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.hooks import Choice
from vla_policy_node.nn.sequence import TokenSequence

NORM_EPS = 1e-6
PUBLISHED_COUNT = 78  # of 512 tokens, the mean on LIBERO


class LightVla(Method):
    """Keeps the union of the tokens that win at least one vote.

    multiplicity_bias: count a token chosen m times m times in attention (ln(m) on its logits),
        as the duplicates in LightVLA's training did. The release leaves it out.
    extra_random, drop_fraction: the paper's ablation (table IV): so many random tokens that
        nobody voted for are kept as well; this share of the voted ones, in [0, 1), is dropped
        at random. Off by default.
    count: keep so many, those with the most votes, whatever the picture; 0: all that have any.
        For measurements at a fixed price.
    seed: of the ablation's random choices; `reset` starts them again.
    """

    name = 'lightvla'
    needs = frozenset({Capability.VISUAL_TOKENS})
    does = frozenset({Effect.DROPS_TOKENS, Effect.COST_VARIES, Effect.FIXED_SHAPES})
    off = None
    action_rows = 'last56'

    def __init__(
        self,
        *,
        multiplicity_bias: bool = False,
        extra_random: int = 0,
        drop_fraction: float = 0.0,
        count: int = 0,
        seed: int = 0,
    ):
        if count < 0:
            raise ValueError(f'LightVLA needs a count of at least 0, not {count}.')
        if extra_random < 0 or not 0 <= drop_fraction < 1:
            raise ValueError(
                'LightVLA needs extra_random of at least 0 and drop_fraction in [0, 1), not '
                f'{extra_random} and {drop_fraction}.'
            )
        self.multiplicity_bias = multiplicity_bias
        self.extra_random = extra_random
        self.drop_fraction = drop_fraction
        self.count = count
        if count:
            self.does = self.does - {Effect.COST_VARIES}
        if self._ablates:
            self.does = self.does - {Effect.FIXED_SHAPES}
        self._generator = torch.Generator().manual_seed(seed)
        self._report: tuple[Tensor, Tensor, int] | None = None

    @property
    def _ablates(self) -> bool:
        return bool(self.extra_random or self.drop_fraction)

    @classmethod
    def counted_settings(cls, config: ModelConfig) -> dict[str, object]:
        """As large a share of the tokens as it keeps on LIBERO."""
        return {'count': round(PUBLISHED_COUNT / 512 * config.visual_tokens)}

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Drop the visual tokens without a vote."""
        choice = self._vote(sequence)
        kept = self._ablate(choice.kept.nonzero().flatten(), (~choice.kept).nonzero().flatten())
        tokens, total = sequence.visual_tokens, sequence.visual_total
        votes = choice.scores
        self._report = (
            votes.new_zeros(total, dtype=torch.bool).index_fill(0, tokens[kept], True),
            votes.new_zeros(total).index_copy(0, tokens, votes),
            choice.flops,
        )
        return sequence.keep_visual(kept, None if choice.bias is None else choice.bias[kept])

    def select_static(self, sequence: TokenSequence) -> Choice | None:
        """Choose the visual tokens with a vote; not with the ablation, which draws at random."""
        return None if self._ablates else self._vote(sequence)

    def record_selection(self, choice: Choice) -> None:
        """Store a choice among all visual tokens as that of the last pass."""
        self._report = choice.kept, choice.scores, choice.flops

    def _vote(self, sequence: TokenSequence) -> Choice:
        hidden = sequence.context_hidden
        winners = find_winners(score(
            sequence.visual[0], sequence.context[0], None if hidden is None else hidden[0]))
        votes = count_votes(winners, len(winners))
        return Choice(
            kept=mark_top(votes, self.count) if self.count else votes > 0,
            scores=votes,
            bias=votes.clamp(min=1).float().log() if self.multiplicity_bias else None,
            flops=score_flops(sequence.visual, sequence.context),
        )

    def _ablate(self, voted: Tensor, others: Tensor) -> Tensor:
        """Tokens to keep, ascending; at least one of the voted ones stays."""
        if not self._ablates:
            return voted
        count = max(1, len(voted) - round(self.drop_fraction * len(voted)))
        kept = draw(voted, count, self._generator)
        return torch.cat([kept, draw(others, self.extra_random, self._generator)]).sort().values

    def reset(self) -> None:
        """Forget the last report and start the random choices again."""
        self._report = None
        self._generator.manual_seed(self._generator.initial_seed())

    def report(self) -> Report | None:
        """Kept tokens and votes per token."""
        if self._report is None:
            return None
        kept, votes, flops = self._report
        return Report(kept.cpu().numpy(), votes.cpu().numpy().astype('float32'), flops=flops)


def score(visual: Tensor, context: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Score every visual token for every visual query.

    visual: [..., V, width]. context: [..., M, width], all rows that are not visual except BOS.
    The zero rows of the action slots belong to it: they only enlarge the softmax denominator.
    hidden: [..., M] bool, context rows that fill up a batch and take no part, None for none.
    Returns [..., V, V] float32, rows are queries: with n() the weightless RMS norm, P = n(visual)
    and T = n(context), Q = n(softmax(P T' / sqrt(width)) T) and the scores Q P' / sqrt(width).

    Computed without ever forming Q: with A the softmax, Q P' = r A (T P'), where the norm
    r follows from |A T|^2 = diag(A (T T') A'). That needs V V M products instead of V V width.
    """
    width = visual.shape[-1]
    patches, text = norm(visual), norm(context)
    affinity = patches @ text.mT
    logits = affinity / width**0.5
    if hidden is not None:
        logits = logits.masked_fill(hidden[..., None, :], -torch.inf)
    attention = torch.softmax(logits, dim=-1)
    mean_square = ((attention @ (text @ text.mT)) * attention).sum(-1, keepdim=True) / width
    attention = attention * torch.rsqrt(mean_square + NORM_EPS)
    return attention @ affinity.mT / width**0.5


def score_flops(visual: Tensor, context: Tensor) -> int:
    """FLOPs of `score` for one batch element."""
    (tokens, width), rows = visual.shape[-2:], context.shape[-2]
    return 2 * rows * (tokens * width + rows * width + tokens * rows + tokens**2)


def find_winners(scores: Tensor) -> Tensor:
    """Choice of each query, [..., N, V] scores -> [..., N] int64.

    Of equal scores the lowest index wins; argmax leaves that open on some devices. NaN chooses
    the last token, so that it reaches the actions, where it is noticed.
    """
    tokens = torch.arange(scores.shape[-1], device=scores.device)
    best = scores == scores.amax(dim=-1, keepdim=True)
    return torch.where(best, tokens, len(tokens) - 1).amin(dim=-1)


def count_votes(winners: Tensor, tokens: int) -> Tensor:
    """How many queries [N] chose each token, [tokens] int32."""
    # Compilers count 32 bits in place; for 64 they would sort.
    votes = winners.new_zeros(tokens, dtype=torch.int32)
    return votes.index_add(0, winners, torch.ones_like(winners, dtype=torch.int32))


def norm(rows: Tensor) -> Tensor:
    """Weightless RMS norm; as the release does, rounded back to the dtype of the model.

    Returns at least float32, whatever the model computes in.
    """
    precision = torch.promote_types(rows.dtype, torch.float32)
    wide = rows.to(precision)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPS)
    return wide.to(rows.dtype).to(precision)
