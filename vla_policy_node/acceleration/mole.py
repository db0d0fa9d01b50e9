"""MoLe-VLA: a router chooses which layers run, before the first one (2025).

Mixture of layers, arXiv 2503.20384, in the form of its public code (RoyZry98/MoLe-VLA-Pytorch).
The router sees the normed input embeddings: images through a shared projection, their mean, and
two layers; the prompt through the projection and one transformer layer, its mean, and one layer. A
temperature read from the first word multiplies the sum, and the k largest of the logits run.
Published: width 1024 of 4096, 8 heads, feed-forward 2048, GELU, and 18 of 32 layers.

Different here: the released forward pass runs all layers and multiplies by the gates; this one
leaves layers out, and only training (`vla train mole`) multiplies. The last layer always runs and
is not routed, because only action rows ask in it. The norm before the router has no weights, and
its transformer layer no dropout.

Training adds to the loss of the actions the load balance at its published weight 0.1 and the
self-distillation at 0.5 (`distillation_loss`): the teacher is the average of the student's
weights, decay 0.999, in which all layers run. Published, it compares all rows, each weighed by the
attention that the cognition token pays it. Here the rows that the head reads are compared, because
no others come out of the last layer, weighed by the attention that they pay to each other; of
CogACT that is the cognition token itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.acceleration.base import Capability, Effect, Method, Report
from vla_policy_node.acceleration.method_weights import fill, read_weights, save_weights
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.flops import chain_flops
from vla_policy_node.nn.sequence import TokenSequence

FILE_NAME = 'method--mole.safetensors'
HEADS = 8
SHARE = 18 / 32  # of the layers run, as published


class LayerRouter(nn.Module):
    """From input embeddings to a logit for each layer but the last.

    width: of the language model. layers: how many it has.
    """

    def __init__(self, width: int, layers: int):
        super().__init__()
        hidden = max(HEADS, width // 4 // HEADS * HEADS)
        self.project = nn.Linear(width, hidden)
        self.spatial = nn.Sequential(
            nn.Linear(hidden, hidden // 2), nn.GELU(),
            nn.Linear(hidden // 2, layers - 1, bias=False))
        self.text = nn.TransformerEncoderLayer(
            hidden, HEADS, 2 * hidden, dropout=0.0, activation='gelu', batch_first=True)
        self.temporal = nn.Linear(hidden, layers - 1, bias=False)
        self.temperature = nn.Linear(hidden, 1)
        with torch.no_grad():
            self.temperature.bias.add_(1)  # published as a parameter of its own, which begins at 1

    def forward(self, visual: Tensor, text: Tensor, hidden: Tensor | None = None) -> Tensor:
        """[B, V, width] and, BOS first, [B, N, width] -> logits [B, layers - 1].

        hidden: [B, N] bool, rows of the text that only fill up a batch, None for none.
        """
        weight = self.project.weight
        images, words = (
            self.project(functional.rms_norm(rows.to(weight.dtype), rows.shape[-1:], eps=1e-6))
            for rows in (visual, text)
        )
        real = torch.ones_like(words[..., :1])
        if hidden is not None:
            real = real.masked_fill(hidden[..., None], 0)
        read = (self.text(words, src_key_padding_mask=hidden) * real).sum(1) / real.sum(1)
        temperature = torch.sigmoid(self.temperature(words[:, 0]))
        return (self.spatial(images.mean(dim=1)) + self.temporal(read)) * temperature

    def flops(self, visual_rows: int, text: int) -> int:
        """FLOPs of `forward` for one batch element."""
        width, hidden = self.project.in_features, self.project.out_features
        layers = self.temporal.out_features
        words = chain_flops(width, hidden) + 4 * chain_flops(hidden, hidden)
        words += chain_flops(hidden, 2 * hidden, hidden) + 4 * text * hidden
        return (
            visual_rows * chain_flops(width, hidden) + text * words
            + chain_flops(hidden, hidden // 2, layers) + chain_flops(hidden, layers)
            + chain_flops(hidden, 1)
        )

    def save(self, checkpoint: Path, run: int) -> None:
        """Write the router and how many layers run into the checkpoint's directory."""
        save_weights(checkpoint / FILE_NAME, {**self.state_dict(), 'run': torch.tensor(run)})

    @classmethod
    def load(cls, checkpoint: Path, config: ModelConfig) -> tuple[LayerRouter, int]:
        """Read what `save` wrote; ValueError if it is missing, damaged or of another size."""
        path = checkpoint / FILE_NAME
        tensors = read_weights(
            path, 'it was not trained to skip layers; train it with `vla train mole`')
        run = tensors.pop('run', torch.tensor(0))
        if run.numel() != 1 or not 0 <= run <= config.language_model.layers:
            raise ValueError(f'{path} does not say how many layers run; train it again.')
        router = cls(config.language_model.width, config.language_model.layers)
        fill(router, tensors, path, config)
        return router, int(run)


class Mole(Method):
    """Runs the layers that the checkpoint's router picks.

    run: how many layers, the last one among them; 0 is what the router was trained for; as many as
        there are runs all.
    """

    name = 'mole'
    needs = frozenset({Capability.LAYERS})
    does = frozenset({Effect.SKIPS_LAYERS})
    off = None
    weights_file = FILE_NAME

    def __init__(self, *, run: int = 0):
        if run < 0:
            raise ValueError(f'mole cannot run {run} layers.')
        self.run = run
        self.router: LayerRouter  # from `prepare` on
        self._config: ModelConfig  # from `prepare` on
        self._flops: int | None = None

    @classmethod
    def save_untrained(cls, checkpoint: Path, config: ModelConfig) -> None:
        """Write a router for the published share of layers."""
        sizes = config.language_model
        LayerRouter(sizes.width, sizes.layers).save(checkpoint, layers_to_run(sizes.layers))

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Read the router."""
        self.router, trained = LayerRouter.load(checkpoint, config)
        self.run = self.run or trained
        self._config = config

    def select_layers(self, sequence: TokenSequence, layers: Sequence[int]) -> Sequence[int]:
        """Route; of equal logits the lower layer runs."""
        router = self.router.to(sequence.states.device)
        text = prompt_of(sequence)
        best = best_layers(router(sequence.visual, text), self.run - 1)
        chosen = {*best[0].nonzero().flatten().tolist()}
        self._visual_tokens = sequence.visual_total
        self._flops = router.flops(sequence.visual_rows, text.shape[1])
        return [index for index in layers if index in chosen or index == layers[-1]]

    def reset(self) -> None:
        """Forget the last pass; nothing crosses steps."""
        self._flops = None

    def report(self) -> Report | None:
        """All tokens stay; routing costs."""
        if self._flops is None:
            return None
        return Report(np.ones(self._visual_tokens, bool), flops=self._flops)


def layers_to_run(layers: int) -> int:
    """How many of so many layers run, at the published share."""
    return max(2, round(SHARE * layers))


def prompt_of(sequence: TokenSequence) -> Tensor:
    """BOS, if there is one, and the rest of the prompt, [B, N, width]."""
    return torch.cat([sequence.states[:, sequence.span(name)] for name in ('bos', 'prompt')
                      if name in sequence], dim=1)


def best_layers(logits: Tensor, count: int) -> Tensor:
    """[B, L] logits -> [B, L] bool, the `count` largest of each row."""
    chosen = logits.argsort(dim=1, descending=True, stable=True)[:, : max(count, 0)]
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, chosen, True)


def gates(logits: Tensor, count: int) -> Tensor:
    """Straight-through gates [B, L]: forward 0 or 1, backward the gradient of the softmax."""
    soft = logits.softmax(dim=1)
    hard = best_layers(logits, count).to(soft.dtype)
    # In this order the forward value is exactly 0 or 1.
    return hard + (soft - soft.detach())


def balance_loss(logits: Tensor, count: int) -> Tensor:
    """Load balance: mean of gate times probability, over batch and layers."""
    return (best_layers(logits, count).to(logits.dtype) * logits.softmax(dim=1)).mean()


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Self-distillation of states [B, R, width] of the rows that the head reads, a scalar.

    Half the reverse Kullback-Leibler divergence of softmaxes over the width, half the squared
    error, element by element; each row weighed by the product of what the teacher's and the
    student's rows attend to among the student's, without projections, mean over the queries.
    """
    student, teacher = student.float(), teacher.float()
    ours, theirs = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    apart = 0.5 * ours.exp() * (ours - theirs) + 0.5 * (student - teacher).square()
    scale = student.shape[-1] ** 0.5
    asked_by_teacher, asked_by_student = (
        (rows @ student.mT / scale).softmax(dim=-1) for rows in (teacher, student))
    weights = (asked_by_teacher * asked_by_student).mean(dim=1)
    return (weights[..., None] * apart).mean()
