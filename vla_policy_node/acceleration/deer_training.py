"""DeeR's training: the head learns to read every exit, and demonstrations calibrate them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla_policy_node.acceleration.deer import calibrate, distance, exits_of, save_thresholds
from vla_policy_node.acceleration.objective import Batch, HeldOut, Objective, teaches
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.sequence import TokenSequence

if TYPE_CHECKING:
    from vla_policy_node.families.prismatic import PrismaticVla


class EarlyExits(Objective):
    """DeeR: the action head learns to read the rows at every exit, at equal weights."""

    def __init__(self, config: ModelConfig, every: int, ratio: float):
        self._exits = exits_of(config.language_model.layers, every)
        if not self._exits:
            raise ValueError(
                f'deer finds no exit after every {every} of {config.language_model.layers} '
                'layers; choose a smaller exit_every, or a deeper policy.')
        self._ratio = ratio
        self._states: dict[int, Tensor] = {}

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Keep the states that an exit would read; the first exit compares with one earlier."""
        if index in self._exits or index + 1 in self._exits[:1]:
            self._states[index] = sequence.states
        return sequence

    def _answers(self, model: PrismaticVla) -> dict[int, Tensor]:
        rows = model.action_rows('oft')
        norm = model.language_model.norm
        return {
            index: model.action_head(norm(states[:, rows]))
            for index, states in self._states.items()
        }

    def state_losses(self, model: PrismaticVla, states: Tensor, batch: Batch) -> dict[str, Tensor]:
        """L1 of the actions, mean over the exits."""
        errors = [
            (answer - batch.actions).abs()[batch.has_actions].mean()
            for index, answer in self._answers(model).items() if index in self._exits
        ]
        return {'exits': torch.stack(errors).mean()}

    @torch.no_grad()
    def save(self, checkpoint: Path, model: PrismaticVla, held_out: HeldOut) -> None:
        """Calibrate on frames that training never saw."""
        weight = next(model.parameters())
        deltas = []
        for batch in held_out():
            visual = model.visual(batch.pixels.to(weight), batch.prompt_ids.to(weight.device))
            sequence = model.assemble(
                visual, batch.proprio.to(weight), batch.prompt_ids.to(weight.device))
            self.begin_pass()
            model.prefill(sequence, ForwardPass([self]))
            answers = self._answers(model)
            before = [self._exits[0] - 1, *self._exits[:-1]]
            deltas.append(torch.stack([
                distance(answers[first], answers[then])
                for first, then in zip(before, self._exits, strict=True)
            ], dim=1))
        thresholds = calibrate(torch.cat(deltas).double().cpu().numpy(), self._ratio)
        save_thresholds(checkpoint, self._exits, thresholds)


@teaches('deer', state_losses=('exits',), needs=frozenset({Capability.REGRESSION}))
def _early_exits(
    config: ModelConfig, losses: Mapping[str, float], *, exit_every: int = 2,
    exit_ratio: float = 1.0,
) -> EarlyExits:
    """exit_every: layers between exits. exit_ratio: r of their calibration."""
    return EarlyExits(config, exit_every, exit_ratio)
