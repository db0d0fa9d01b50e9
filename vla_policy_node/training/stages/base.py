"""What a stage of training decides: where it starts, what it trains, and on which losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from vla_policy_node.acceleration.objective import Objective, ObjectiveStage
from vla_policy_node.families.pi0_config import Pi0Config
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.training import losses

if TYPE_CHECKING:
    from vla_policy_node.families.prismatic import PrismaticVla
    from vla_policy_node.training.config import TrainingConfig
    from vla_policy_node.training.data import TrainingData
    from vla_policy_node.training.grounding import GroundingHeads
    from vla_policy_node.training.stage_run import Run


class TrainingStage:
    """A stage that trains all of a policy on the losses that its YAML weighs; others override.

    name: how `vla train` and YAML call it. entries: those that only its YAML has, with defaults;
        `TrainingConfig.objective` holds them. choices: of entries that are words, which there
        are. token_losses, state_losses: names of those that it adds to the policy's own, on
        visual tokens and on what comes out of the language model. needs: what a policy must offer
        besides what its losses need (`losses.NEEDS`). flows: whether it can train a policy whose
        actions follow a flow.
    """

    name = ''
    entries: Mapping[str, object] = {}
    choices: Mapping[str, Sequence[object]] = {}
    token_losses: tuple[str, ...] = ()
    state_losses: tuple[str, ...] = ()
    needs: frozenset[Capability] = frozenset()
    flows = True

    def __init__(self, name: str = ''):
        self.name = name or self.name

    def complete(self, chosen: Mapping[str, object]) -> dict[str, object]:
        """Defaults under the chosen entries; ValueError with one sentence for what cannot be."""
        for name, value in chosen.items():
            if name not in self.entries:
                raise ValueError(f'Stage {self.name} has no entry {name!r}.')
            words = self.choices.get(name, (value,))
            if value not in words:
                raise ValueError(f'{name} must be {" or ".join(map(repr, words))}, not {value!r}.')
        return {**self.entries, **chosen}

    def check_config(self, config: TrainingConfig) -> None:
        """Raise ValueError with one sentence for entries that do not go together."""

    def check_run(self, run: Run, policy: PrismaticConfig) -> None:
        """Raise ValueError with one sentence for a checkpoint or folders it cannot start from.

        policy: sizes of the checkpoint.
        """
        if policy.can(Capability.FLOW):
            self._check_flow(run, policy)
        sizes = self.changed_sizes(policy, run.config)
        why = dict.fromkeys(self.needs, 'needs')
        for loss in run.config.weighed:
            for need in losses.NEEDS.get(loss, ()):
                why.setdefault(need, f'learns by the loss {loss!r}, which needs')
        for need, reason in why.items():
            if not sizes.can(need):
                raise ValueError(
                    f'Stage {self.name} {reason} a policy whose {need.value}; {run.start} is '
                    f'{policy.architecture}.')

    def _check_flow(self, run: Run, policy: ModelConfig) -> None:
        if not self.flows or run.config.losses.get('noise'):
            raise ValueError(
                f'Stage {self.name} does not train policies whose actions follow a flow, by the '
                f"loss 'flow'; {run.start} is {policy.architecture}.")
        if not isinstance(policy, Pi0Config) and (
                run.config.tokens_kept or run.config.losses.get('attend')):
            raise ValueError(
                f'{run.start} is {policy.architecture}, which is trained on all visual tokens, '
                "and without the loss 'attend'; leave tokens_kept at 0 and that loss away.")

    def changed_sizes(self, policy: PrismaticConfig, config: TrainingConfig) -> PrismaticConfig:
        """Sizes of a checkpoint -> of what `changed_model` makes of it."""
        return policy

    def changed_model(self, model: PrismaticVla, config: TrainingConfig) -> PrismaticVla:
        """Turn the policy of the checkpoint into the one to train."""
        return model

    def trains(self, parameter: str) -> bool:
        """Whether it trains a parameter of the policy, if nothing else speaks against it."""
        return True

    def objective(self, policy: PrismaticConfig, config: TrainingConfig) -> Objective:
        """Make what it teaches besides the policy's own losses."""
        return Objective()

    def data(
        self, data: TrainingData, model: PrismaticVla, run: Run, rank: int, processes: int
    ) -> Any:
        """Frames of the folders -> what batches are drawn from."""
        return data

    def compute_losses(
        self, model: PrismaticVla, heads: GroundingHeads, batch: Any, config: TrainingConfig,
        objective: Objective, rng: np.random.Generator,
    ) -> dict[str, Tensor]:
        """Run a batch of `data` forward; see `losses.compute_losses`."""
        return losses.compute_losses(model, heads, batch, config, objective, rng)


class MethodStage(TrainingStage):
    """The stage in which an acceleration method learns."""

    def __init__(self, described: ObjectiveStage):
        super().__init__(described.name)
        self._described = described
        self.entries, self.choices = described.settings, described.choices
        self.token_losses, self.state_losses = described.token_losses, described.state_losses
        self.needs = described.needs
        self.flows = not described.state_losses  # which are of rows that answer at once

    def check_config(self, config: TrainingConfig) -> None:
        """Some choose among all tokens."""
        if self._described.needs_all_tokens and config.tokens_kept:
            raise ValueError(
                f'In stage {self.name} all visual tokens vote, as they will on the robot; leave '
                'tokens_kept at 0.')

    def objective(self, policy: PrismaticConfig, config: TrainingConfig) -> Objective:
        """Make what the method teaches."""
        return self._described.make(policy, config.losses, **config.objective)
