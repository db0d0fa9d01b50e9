"""Stage `grounding`: where a policy begins, as large as its entries say."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vla_policy_node.families import config_of
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.runtime.small import SIZES, sized_config
from vla_policy_node.training.stages.base import TrainingStage

if TYPE_CHECKING:
    from vla_policy_node.training.config import TrainingConfig
    from vla_policy_node.training.stage_run import Run


class FirstStage(TrainingStage):
    """Trains all of a policy; where it begins with a new network, entries give its sizes."""

    name = 'grounding'
    entries: ClassVar = dict.fromkeys(SIZES, 0)

    def check_config(self, config: TrainingConfig) -> None:
        """Sizes must be possible."""
        sized_config(sizes_of(config))

    def check_run(self, run: Run, policy: PrismaticConfig) -> None:
        """Weights that exist have the sizes that they have."""
        super().check_run(run, policy)
        sizes = sizes_of(run.config)
        if not sizes:
            return
        wanted = config_of(sized_config(sizes))
        if (wanted.dino, wanted.siglip, wanted.language_model) != (
                policy.dino, policy.siglip, policy.language_model):
            said = ', '.join(f'{name}={value}' for name, value in sizes.items())
            raise ValueError(
                f'{said} is for a new network, and {run.start} is {policy.architecture}; leave '
                'out --from, or the sizes.')


def sizes_of(config: TrainingConfig) -> dict[str, int]:
    """Return the sizes that a stage gives to a new network, without those left as they are."""
    return {name: value for name, value in config.objective.items() if name in SIZES and value}
