"""Stage `cogact`: the encoders and language model of another policy get a new diffusion head."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from vla_policy_node.families.cogact import CogAct, CogActFamily
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.config import DitConfig
from vla_policy_node.training.stages.base import TrainingStage

if TYPE_CHECKING:
    from vla_policy_node.families.prismatic import PrismaticVla
    from vla_policy_node.training.config import TrainingConfig


class NewDiffusionHead(TrainingStage):
    """Gives a policy without a diffusion transformer a new one, and trains all of it.

    Cameras and proprio stay as they are. The language model becomes causal, which weights cannot
    tell, so that it has to be trained further. A policy that has the head goes on with it.
    """

    name = 'cogact'
    flows = False
    entries: ClassVar = {'head_blocks': 4, 'head_width': 192, 'head_heads': 3}

    def check_config(self, config: TrainingConfig) -> None:
        """The head predicts noise, in chunks whose length its weights fix."""
        if config.losses.get('action') or not config.chunk_length:
            raise ValueError(
                f"Stage {self.name} learns by the loss 'noise', not 'action', and needs a "
                'chunk_length; the published one is 16.')

    def changed_sizes(self, policy: PrismaticConfig, config: TrainingConfig) -> PrismaticConfig:
        """Sizes with a head of the entries' sizes, if there is none."""
        if policy.can(Capability.DENOISING):
            return policy
        blocks, width, heads = (config.objective[name] for name in self.entries)
        return CogActFamily().configure(
            replace(policy, chunk_length=config.chunk_length), DitConfig(blocks, width, heads))

    def changed_model(self, model: PrismaticVla, config: TrainingConfig) -> PrismaticVla:
        """Put the head on, if there is none."""
        if model.config.can(Capability.DENOISING):
            return model
        return with_new_head(model, self.changed_sizes(model.config, config))


def with_new_head(model: PrismaticVla, sizes: PrismaticConfig) -> CogAct:
    """Return a policy of these sizes with the weights of `model` but for a fresh head."""
    new = CogActFamily().create_network(sizes)
    kept = {name: tensor for name, tensor in model.state_dict().items()
            if not name.startswith('action_head.')}
    missing, _ = new.load_state_dict(kept, strict=False, assign=True)
    assert all(name.startswith('action_head.') for name in missing), missing
    return new.to(next(model.parameters()).device)
