"""Stages of `vla train` by name: those of the policy itself, and those that methods bring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vla_policy_node import acceleration
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.training.losses import STATE_LOSSES, TOKEN_LOSSES
from vla_policy_node.training.stages.base import MethodStage, TrainingStage
from vla_policy_node.training.stages.cogact import NewDiffusionHead
from vla_policy_node.training.stages.cogact_head import DiffusionHeadAlone
from vla_policy_node.training.stages.grounding import FirstStage
from vla_policy_node.training.stages.lora import LowRankUpdates

if TYPE_CHECKING:
    from vla_policy_node.nn.config import ModelConfig
    from vla_policy_node.training.config import TrainingConfig

__all__ = ['TrainingStage', 'available', 'current_name', 'for_policy', 'losses', 'named']

_OWN = (
    FirstStage(),
    TrainingStage('localization'),
    TrainingStage('behavior_cloning'),
    NewDiffusionHead(),
    DiffusionHeadAlone(),
    LowRankUpdates(),
)
# What stages were called up to release 0.1; accepted for one more.
_FORMER = {'ground': 'grounding', 'locate': 'localization', 'clone': 'behavior_cloning'}


def available() -> tuple[str, ...]:
    """Names of all stages."""
    return tuple(stage.name for stage in _all())


def current_name(name: str) -> str:
    """Return what a stage is called now, for a former name."""
    return _FORMER.get(name, name)


def named(name: str) -> TrainingStage:
    """Return the stage of this name; ValueError if there is none."""
    for stage in _all():
        if stage.name == name:
            return stage
    raise ValueError(f'stage must be one of {", ".join(available())}, not {name!r}.')


def for_policy(config: TrainingConfig, policy: ModelConfig) -> TrainingConfig:
    """Let the loss 'action' be that by which the policy learns actions: of a flow, 'flow'."""
    own = 'flow' if policy.can(Capability.FLOW) else 'action'
    if config.stage == 'lora' and own == 'action' and policy.can(Capability.DENOISING):
        own = 'noise'
    if own == 'action' or not config.losses.get('action'):
        return config
    weights = {own if name == 'action' else name: weight for name, weight in config.losses.items()}
    return replace(config, losses=weights)


def losses() -> tuple[str, ...]:
    """Names of all losses: those of the policy, and those that methods add."""
    return (*TOKEN_LOSSES, *STATE_LOSSES, *(
        name for stage in _all() for name in (*stage.token_losses, *stage.state_losses)))


def _all() -> Iterator[TrainingStage]:
    yield from _OWN
    yield from map(MethodStage, acceleration.objectives())
