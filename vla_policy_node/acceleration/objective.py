"""What a learnt method teaches in its stage of `vla train`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.hooks import PassHooks

if TYPE_CHECKING:
    from vla_policy_node.families.prismatic import PrismaticVla

# Of training: `training.batches.Batch`, which lies above methods.
Batch = Any
HeldOut = Callable[[], Sequence[Batch]]


class Objective(PassHooks):
    """Takes part in the forward pass of training, may have parameters, and may add losses.

    learnt: parameters beside the policy's, by what the state of a run calls them.
    average: the running average of the policy's trained parameters, by name; the trainer sets it
        before the first step.
    """

    learnt: Mapping[str, nn.Module] = {}
    average: Mapping[str, Tensor] = {}

    def begin_step(self, done: float) -> None:
        """A step of training begins; done: share of the run, in [0, 1)."""

    def token_losses(self, visual: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Losses on the visual tokens [B, V, width], where the language model need not run."""
        return {}

    def state_losses(self, model: PrismaticVla, states: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Losses after the language model ran; states: of the rows that the head reads."""
        return {}

    def measures(self) -> dict[str, Tensor]:
        """Scalars of the last pass for the log."""
        return {}

    def save(self, checkpoint: Path, model: PrismaticVla, held_out: HeldOut) -> None:
        """Write what was learnt beside the weights; held_out: frames that were not trained on."""

    def method_settings(self) -> dict[str, dict[str, object]]:
        """Settings of methods that the checkpoint was trained with, by method."""
        return {}


@dataclass(frozen=True)
class ObjectiveStage:
    """A stage of training that teaches a method.

    make: sizes of the policy, the losses weighed and the settings of the stage -> the objective.
    token_losses, state_losses: names of the losses that it adds, see `Objective`.
    choices: of settings that are words, which there are.
    needs: what a policy must offer, as for a method.
    needs_all_tokens: whether a step cannot run on a part of the visual tokens.
    """

    name: str
    make: Callable[..., Objective]
    token_losses: tuple[str, ...] = ()
    state_losses: tuple[str, ...] = ()
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    needs: frozenset[Capability] = frozenset()
    needs_all_tokens: bool = False

    @property
    def settings(self) -> Mapping[str, object]:
        """Entries of the stage's YAML that only it knows, with their defaults."""
        parameters = inspect.signature(self.make).parameters.values()
        return {parameter.name: parameter.default for parameter in parameters
                if parameter.kind is parameter.KEYWORD_ONLY}


STAGES: dict[str, ObjectiveStage] = {}


def teaches(stage: str, **described: Any) -> Callable[[Callable], Callable]:
    """Mark what makes the objective of a stage: (config, losses, *, settings) -> Objective."""
    def mark(make: Callable) -> Callable:
        STAGES[stage] = ObjectiveStage(stage, make, **described)
        return make

    return mark
