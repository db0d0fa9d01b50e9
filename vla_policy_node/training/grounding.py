"""Grounding losses: which visual token holds the named object, and where the object is.

Cloning from scratch does not teach the vision encoders to look, even in a hundred thousand
samples; this does, in thousands. At small scale it replaces the pre-training of public
checkpoints. Its losses:

- token: for each thing in view, cross-entropy between the tokens it covers and the similarity of
  all tokens of a camera to its words, in the form LightVLA scores by (weightless RMS norms,
  1 / sqrt(width)), so that a pruner finds the words and the tokens aligned.
- point: from the tokens that the words attend to, where the thing is (L1): in the world from the
  third-person camera, seen from the hand from the wrist camera. One linear layer reads it, so
  that the tokens state positions in the way that is easiest to use further on.
- attend: in one layer of the language model, two heads of the action rows attend to the thing
  that the instruction asks for and to where it belongs (-log of the attention that they get).
  Without it the rows do not find them among the tokens, although the tokens encode them.
- readout: from the action rows after the language model, where those two are (L1).

The heads are for training only and belong to no checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.families.prismatic import PrismaticVla
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.hooks import PassHooks
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.training.batches import Batch

METRES = 0.1  # losses count in tenths of a metre, which makes them about one
IN_VIEW = 0.3  # of a patch; what shows less of itself is not asked for
ON_THING = 0.1  # of a patch; what is less covered does not count as on a thing
ATTEND_LAYER = 2  # two layers bring the words to the action rows


class GroundingHeads(nn.Module):
    """Reads positions out of visual tokens and of action rows.

    width: of visual tokens. row_width: of action rows; 0: the same.
    """

    def __init__(self, width: int, cameras: int, row_width: int = 0):
        super().__init__()
        self.point = nn.ModuleList(_linear_reader(width, 3) for _ in range(cameras))
        self.readout = _linear_reader(row_width or width, 6)


def row_width(config: ModelConfig) -> int:
    """Width of the action rows, which may be those of an expert."""
    if not config.can(Capability.FLOW):
        return config.language_model.width
    return config.expert.width  # of Pi0Config and SmolVlaConfig


class AttentionRecorder(PassHooks):
    """Records how the action rows divide their attention in layer ATTEND_LAYER, or the last."""

    def __init__(self, model: PrismaticVla):
        self._rows = model.action_rows('oft')
        self._layer = min(ATTEND_LAYER, len(model.language_model.layers) - 1)
        self.attention: Tensor | None = None  # [B, heads, rows, visual rows]

    def watch_attention(
        self, index: int, sequence: TokenSequence, attention: Callable[[slice], Tensor]
    ) -> None:
        """Keep it, with its gradient."""
        if index == self._layer:
            self.attention = attention(self._rows)[..., sequence.span('visual')]


def _linear_reader(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, outputs))


def token_losses(
    visual: Tensor, coverage: Tensor, embed_words: Callable[[Tensor], Tensor], batch: Batch,
    heads: GroundingHeads,
) -> dict[str, Tensor]:
    """Losses 'token' and 'point', and the error 'point_mm' of the asked thing (median).

    visual: [B, C, M, width], of the tokens kept. coverage: [B, C, N, M].
    """
    logits = similarity(visual, _name_vectors(embed_words, batch.name_ids))
    area = coverage.sum(-1)
    seen = area > IN_VIEW
    target = coverage / area.clamp(min=1e-6)[..., None]
    entropy = -(target * logits.log_softmax(-1)).sum(-1)
    pooled = logits.softmax(-1) @ visual
    points = torch.stack([head(pooled[:, c]) for c, head in enumerate(heads.point)], 1)
    distance = points - batch.place / METRES
    asked = torch.arange(len(visual)), 0, batch.asked
    return {
        'token': _mean(entropy, seen),
        'point': _mean(distance.abs().mean(-1), seen),
        'point_mm': _median_mm(distance[asked], seen[asked]),
    }


def attend_loss(attention: Tensor, coverage: Tensor, batch: Batch) -> Tensor:
    """Loss 'attend'. attention: [B, heads, rows, C M], to visual tokens. coverage: [B, C, N, M].
    """
    sample = torch.arange(len(coverage))
    losses, seen = [], []
    for head, thing in enumerate((batch.asked, batch.goal)):
        on_thing = (coverage[sample, :, thing] > ON_THING).flatten(1)
        mass = (attention[:, head] * on_thing[:, None]).sum(-1)
        losses.append(-(mass + 1e-4).log().mean(-1))
        seen.append(on_thing.any(-1))
    return _mean(torch.stack(losses), torch.stack(seen))


def readout_losses(states: Tensor, batch: Batch, heads: GroundingHeads) -> dict[str, Tensor]:
    """Loss 'readout' and error 'readout_mm' (median, of the asked thing).

    states: [B, rows, width], the action rows after the last layer, or [B, draws, rows, width]
        where several answers are to state it.
    """
    sample = torch.arange(len(states))
    wanted = torch.cat(
        [batch.offset[sample, batch.asked], batch.offset[sample, batch.goal]], -1) / METRES
    stated = heads.readout(states.mean(-2))
    distance = stated - (wanted if states.ndim == 3 else wanted[:, None])
    return {'readout': distance.abs().mean(), 'readout_mm': _median_mm(distance[..., :3])}


def similarity(visual: Tensor, names: Tensor) -> Tensor:
    """[B, C, M, width] tokens and [B, N, width] names -> [B, C, N, M] logits."""
    width = visual.shape[-1]
    tokens = functional.rms_norm(visual, (width,), eps=1e-6)
    return names[:, None] @ tokens.mT / width**0.5


def _name_vectors(embed_words: Callable[[Tensor], Tensor], name_ids: Tensor) -> Tensor:
    """Mean of the normed word embeddings of each name, [B, N, width]."""
    real = (name_ids >= 0)[..., None]
    words = embed_words(name_ids.clamp(min=0))
    words = functional.rms_norm(words, (words.shape[-1],), eps=1e-6)
    return (words * real).sum(2) / real.sum(2).clamp(min=1)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)


def _median_mm(distance: Tensor, where: Tensor | None = None) -> Tensor:
    """Median length of [n, 3] offsets in units of METRES; NaN if there are none."""
    length = distance.detach().norm(dim=-1) * METRES * 1000
    if where is not None:
        length = length.masked_fill(~where, torch.nan)
    return length.nanmedian()
