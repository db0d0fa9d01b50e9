"""Stage `lora`: a policy of others is fine-tuned on one's own data, by low-rank updates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vla_policy_node.training.stages.base import TrainingStage

if TYPE_CHECKING:
    from vla_policy_node.training.config import TrainingConfig


class LowRankUpdates(TrainingStage):
    """Trains updates of what sees and reads, and all of what acts; see `training.lora`."""

    name = 'lora'

    def check_config(self, config: TrainingConfig) -> None:
        """There must be updates."""
        if not config.lora_rank:
            raise ValueError(
                'Stage lora trains low-rank updates, and lora_rank is 0; take 32, or train all '
                'weights with stage behavior_cloning.')
