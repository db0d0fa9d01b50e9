"""MoLE's training: all layers run, gates weigh them, and the router learns the gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vla_policy_node.acceleration.mole import (
    LayerRouter,
    balance_loss,
    distillation_loss,
    gates,
    layers_to_run,
    prompt_of,
)
from vla_policy_node.acceleration.objective import Batch, HeldOut, Objective, teaches
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.sequence import TokenSequence

if TYPE_CHECKING:
    from vla_policy_node.families.prismatic import PrismaticVla


class Routing(Objective):
    """MoLE: all layers run, and gates say how much of each counts; the router learns them.

    distils: whether what comes out is also compared with what all layers make of it.
    """

    def __init__(self, config: ModelConfig, run: int, distils: bool = False):
        layers = config.language_model.layers
        self.run = run or layers_to_run(layers)
        self.router = LayerRouter(config.language_model.width, layers)
        self.learnt = {'learnt': self.router}
        self._config = config
        self._distils = distils

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Route; no token is dropped."""
        hidden = None
        if sequence.key_bias is not None:
            prompt = sequence.key_bias[:, sequence.span('prompt')].isneginf()
            hidden = nn.functional.pad(prompt, (1, 0))
        self._logits = self.router(
            sequence.visual, prompt_of(sequence), hidden)
        self._gates = gates(self._logits, self.run - 1)
        self._sequence = sequence
        self._input = sequence.states
        return sequence

    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Weigh what the layer before did."""
        gate = self._gates[:, index - 1, None, None].to(sequence.states.dtype)
        self._input = self._input + gate * (sequence.states - self._input)
        return replace(sequence, states=self._input)

    def state_losses(self, model: PrismaticVla, states: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Load balance, and how far the states are from those of the teacher."""
        losses = {'balance': balance_loss(self._logits, self.run - 1)}
        if self._distils:
            losses['distil'] = distillation_loss(states, self._taught(model))
        return losses

    @torch.no_grad()
    def _taught(self, model: PrismaticVla) -> Tensor:
        """States of the action rows where all layers run, with averaged weights."""
        prefix = 'model.language_model.'
        weights = {name.removeprefix(prefix): weight for name, weight in self.average.items()
                   if name.startswith(prefix)}
        return functional_call(
            model.language_model, weights, (self._sequence, model.action_rows('oft')))

    def save(self, checkpoint: Path, model: PrismaticVla, held_out: HeldOut) -> None:
        """Write the router."""
        self.router.save(checkpoint, self.run)


@teaches('mole', state_losses=('balance', 'distil'), needs=frozenset({Capability.ONE_PASS}))
def _routing(
    config: ModelConfig, losses: Mapping[str, float], *, layers_run: int = 0
) -> Routing:
    """layers_run: how many layers the router picks, 0 for the published share."""
    return Routing(config, layers_run, bool(losses.get('distil')))
