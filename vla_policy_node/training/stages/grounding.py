"""Stage `grounding`: where a policy begins, as large as its entries say."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vla_policy_node.families import config_of
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.runtime.small import FAMILIES, SIZES, sized_config
from vla_policy_node.runtime.small_pi0 import small_pi0_config
from vla_policy_node.training.stages.base import TrainingStage

if TYPE_CHECKING:
    from vla_policy_node.training.config import TrainingConfig
    from vla_policy_node.training.stage_run import Run


class FirstStage(TrainingStage):
    """Trains all of a policy; where it begins with a new network, entries give its sizes."""

    name = 'grounding'
    entries: ClassVar = {'family': 'openvla_oft', **dict.fromkeys(SIZES, 0)}
    choices: ClassVar = {'family': FAMILIES}

    def check_config(self, config: TrainingConfig) -> None:
        """Sizes must be possible."""
        sized_config({
            name: size for name, size in sizes_of(config).items() if name in SIZES})

    def check_run(self, run: Run, policy: PrismaticConfig) -> None:
        """Weights that exist have the sizes that they have."""
        super().check_run(run, policy)
        sizes = sizes_of(run.config)
        if not sizes:
            return
        made = sized_config({name: size for name, size in sizes.items() if name in SIZES})
        wanted = small_pi0_config(made) if 'family' in sizes else config_of(made)
        parts = ('dino', 'siglip', 'vision', 'expert', 'language_model')
        if any(getattr(wanted, part, None) != getattr(policy, part, None) for part in parts):
            said = ', '.join(f'{name}={value}' for name, value in sizes.items())
            raise ValueError(
                f'{said} is for a new network, and {run.start} is {policy.architecture}; leave '
                'out --from, or the sizes.')


def sizes_of(config: TrainingConfig) -> dict[str, object]:
    """Return what a stage says of a new network, without what is left as it is."""
    defaults = FirstStage.entries if config.stage == FirstStage.name else {}
    return {name: config.objective[name] for name, default in defaults.items()
            if config.objective[name] != default}
