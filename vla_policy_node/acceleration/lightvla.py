"""LightVLA: every visual token votes for the one it would keep (Jiang et al. 2025).

"The Better You Learn, The Smarter You Prune", arXiv 2509.12594, section III, in the form of the
authors' release (LiAutoAD/LightVLA). It has no parameters and no ratio: how many tokens stay
depends on the input.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vla_policy_node.acceleration.base import Method, Report
from vla_policy_node.models.token_sequence import TokenSequence

NORM_EPS = 1e-6


class LightVla(Method):
    """Keeps the union of the tokens that win at least one vote.

    multiplicity_bias: count a token chosen m times m times in attention (ln(m) on its logits),
        as the duplicates in LightVLA's training did. The release leaves it out.
    """

    name = 'lightvla'
    action_rows = 'last56'

    def __init__(self, *, multiplicity_bias: bool = False):
        self.multiplicity_bias = multiplicity_bias
        self._votes: Tensor | None = None

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Drop the visual tokens nobody voted for."""
        winners = find_winners(score(sequence.visual[0], sequence.context[0]))
        votes = torch.bincount(winners, minlength=sequence.visual_rows)
        self._votes = votes.new_zeros(sequence.visual_total)
        self._votes[sequence.visual_tokens] = votes
        kept = votes.nonzero().flatten()
        pruned = sequence.keep_visual(kept)
        if not self.multiplicity_bias:
            return pruned
        bias = torch.zeros(pruned.positions.shape, device=kept.device)
        bias[:, 1 : 1 + len(kept)] = votes[kept].float().log()
        if pruned.key_bias is not None:
            bias = bias + pruned.key_bias
        return replace(pruned, key_bias=bias)

    def reset(self) -> None:
        """Forget the last report; nothing else crosses steps."""
        self._votes = None

    def report(self) -> Report | None:
        """Kept tokens and votes per token."""
        if self._votes is None:
            return None
        votes = self._votes.cpu().numpy()
        return Report(kept=votes > 0, scores=votes.astype('float32'))


def score(visual: Tensor, context: Tensor) -> Tensor:
    """Score every visual token for every visual query.

    visual: [..., V, width]. context: [..., M, width], all rows that are not visual except BOS.
    The zero rows of the action slots belong to it: they only enlarge the softmax denominator.
    Returns [..., V, V] float32, rows are queries: with n() the weightless RMS norm, P = n(visual)
    and T = n(context), Q = n(softmax(P T' / sqrt(width)) T) and the scores Q P' / sqrt(width).

    Computed without ever forming Q: with A the softmax, Q P' = r A (T P'), where the norm
    r follows from |A T|^2 = diag(A (T T') A'). That needs V V M products instead of V V width.
    """
    width = visual.shape[-1]
    patches, text = _norm(visual), _norm(context)
    affinity = patches @ text.mT
    attention = torch.softmax(affinity / width**0.5, dim=-1)
    mean_square = ((attention @ (text @ text.mT)) * attention).sum(-1, keepdim=True) / width
    attention = attention * torch.rsqrt(mean_square + NORM_EPS)
    return attention @ affinity.mT / width**0.5


def find_winners(scores: Tensor) -> Tensor:
    """Choice of each query, [..., V, V] scores -> [..., V] int64.

    Of equal scores the lowest index wins; argmax leaves that open on some devices.
    """
    tokens = torch.arange(scores.shape[-1], device=scores.device)
    best = scores == scores.amax(dim=-1, keepdim=True)
    return torch.where(best, tokens, len(tokens)).amin(dim=-1)


def _norm(rows: Tensor) -> Tensor:
    """Weightless RMS norm; as the release does, rounded back to the dtype of the model."""
    wide = rows.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPS)
    return wide.to(rows.dtype).float()
