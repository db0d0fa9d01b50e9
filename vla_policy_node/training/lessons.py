"""Auxiliary objectives of the stages that train acceleration methods.

A lesson is a method that takes part in the forward pass of training, has parameters of its own, or
none, and adds losses. Stages: 'deer', 'mole' and 'foreground'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vla_policy_node.acceleration import Method, deer, mole
from vla_policy_node.acceleration.fastdrivevla import ForegroundScorer
from vla_policy_node.models.config import ModelConfig
from vla_policy_node.models.openvla_oft import OpenVlaOft
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.training.batches import Batch
from vla_policy_node.training.config import TrainingConfig
from vla_policy_node.training.foreground import PatchPainter, reconstruction_loss

MOLE_SHARE = 18 / 32  # of the layers run, as published


class Lesson(Method):
    """One stage's lesson.

    learnt: parameters beside the policy's, None for none. average: the running average of the
    policy's trained parameters, by name; the trainer sets it before the first step.
    """

    learnt: nn.Module | None = None
    average: Mapping[str, Tensor] = {}

    def visual_losses(self, visual: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Losses on the visual tokens [B, V, width], where the language model need not run."""
        return {}

    def losses(self, model: OpenVlaOft, states: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Losses after the language model ran; states: of the rows that the head reads."""
        return {}

    def save(self, checkpoint: Path, model: OpenVlaOft, held_out: Sequence[Batch]) -> None:
        """Write what was learnt beside the weights."""


class EarlyExits(Lesson):
    """DeeR: the action head learns to read the rows at every exit, at equal weights."""

    def __init__(self, config: ModelConfig, every: int, ratio: float):
        self._exits = deer.exits_of(config.language_model.layers, every)
        self._ratio = ratio
        self._states: dict[int, Tensor] = {}

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Keep the states that an exit would read; the first exit compares with one earlier."""
        if index in self._exits or index + 1 in self._exits[:1]:
            self._states[index] = sequence.states
        return sequence

    def _answers(self, model: OpenVlaOft) -> dict[int, Tensor]:
        rows = model.action_rows('oft')
        norm = model.language_model.norm
        return {
            index: model.action_head(norm(states[:, rows]))
            for index, states in self._states.items()
        }

    def losses(self, model: OpenVlaOft, states: Tensor, batch: Batch) -> dict[str, Tensor]:
        """L1 of the actions, mean over the exits."""
        errors = [
            (answer - batch.actions).abs()[batch.has_actions].mean()
            for index, answer in self._answers(model).items() if index in self._exits
        ]
        return {'exits': torch.stack(errors).mean()}

    @torch.no_grad()
    def save(self, checkpoint: Path, model: OpenVlaOft, held_out: Sequence[Batch]) -> None:
        """Calibrate on frames that training never saw."""
        weight = next(model.parameters())
        deltas = []
        for batch in held_out:
            visual = model.visual(batch.pixels.to(weight), batch.prompt_ids.to(weight.device))
            sequence = model.assemble(
                visual, batch.proprio.to(weight), batch.prompt_ids.to(weight.device))
            self.begin_pass()
            model.decode(sequence, [self])
            answers = self._answers(model)
            before = [self._exits[0] - 1, *self._exits[:-1]]
            deltas.append(torch.stack([
                deer.distance(answers[first], answers[then])
                for first, then in zip(before, self._exits, strict=True)
            ], dim=1))
        thresholds = deer.calibrate(torch.cat(deltas).double().cpu().numpy(), self._ratio)
        deer.save_thresholds(checkpoint, self._exits, thresholds)


class Routing(Lesson):
    """MoLE: all layers run, and gates say how much of each counts; the router learns them.

    distils: whether what comes out is also compared with what all layers make of it.
    """

    def __init__(self, config: ModelConfig, run: int, distils: bool = False):
        layers = config.language_model.layers
        self.run = run or max(2, round(MOLE_SHARE * layers))
        self.learnt = mole.LayerRouter(config.language_model.width, layers)
        self._config = config
        self._distils = distils

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Route; no token is dropped."""
        hidden = None
        if sequence.key_bias is not None:
            prompt = sequence.key_bias[:, sequence.span('prompt')].isneginf()
            hidden = nn.functional.pad(prompt, (1, 0))
        self._logits = self.learnt(
            sequence.visual, mole.prompt_of(sequence), hidden)
        self._gates = mole.gates(self._logits, self.run - 1)
        self._sequence = sequence
        self._input = sequence.states
        return sequence

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Weigh what the layer before did."""
        gate = self._gates[:, index - 1, None, None].to(sequence.states.dtype)
        self._input = self._input + gate * (sequence.states - self._input)
        return replace(sequence, states=self._input)

    def losses(self, model: OpenVlaOft, states: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Load balance, and how far the states are from those of the teacher."""
        losses = {'balance': mole.balance_loss(self._logits, self.run - 1)}
        if self._distils:
            losses['distil'] = mole.distillation_loss(states, self._taught(model))
        return losses

    @torch.no_grad()
    def _taught(self, model: OpenVlaOft) -> Tensor:
        """States of the action rows where all layers run, with averaged weights."""
        prefix = 'model.language_model.'
        weights = {name.removeprefix(prefix): weight for name, weight in self.average.items()
                   if name.startswith(prefix)}
        return functional_call(
            model.language_model, weights, (self._sequence, model.action_rows('oft')))

    def save(self, checkpoint: Path, model: OpenVlaOft, held_out: Sequence[Batch]) -> None:
        """Write the router."""
        self.learnt.save(checkpoint, self.run)


class Foreground(Lesson):
    """FastDriveVLA: the scorer learns which tokens paint the things of a picture."""

    def __init__(self, config: ModelConfig):
        patch_px = config.dino.patch_px
        self.scorer = ForegroundScorer(config.language_model)
        self.learnt = nn.ModuleDict({
            'scorer': self.scorer,
            'painter': PatchPainter(config.language_model, 3 * patch_px**2),
        })
        self._grid = config.grid

    def visual_losses(self, visual: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Reconstruction of foreground and background, and how many tokens are called which."""
        visual = visual.detach()
        positions = 1 + torch.arange(visual.shape[1], device=visual.device).expand(len(visual), -1)
        scores = self.scorer(visual, positions)
        things = batch.things.flatten(1)
        loss = reconstruction_loss(
            self.learnt['painter'], visual, positions, scores, things, batch.pixels, self._grid)
        right = ((scores > 0) == things).float().mean()
        return {'reconstruct': loss, 'right_tokens': right.detach()}

    def save(self, checkpoint: Path, model: OpenVlaOft, held_out: Sequence[Batch]) -> None:
        """Write the scorer; the painter has done its work."""
        self.scorer.save(checkpoint)


def lesson_of(config: TrainingConfig, model: ModelConfig) -> Lesson | None:
    """The lesson of a stage, None for stages without one."""
    if config.stage == 'deer':
        return EarlyExits(model, config.exit_every, config.exit_ratio)
    if config.stage == 'mole':
        return Routing(model, config.layers_run, bool(config.losses.get('distil')))
    if config.stage == 'foreground':
        return Foreground(model)
    return None
