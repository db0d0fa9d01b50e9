"""Turns another policy into a CogACT policy: same encoders and language model, a fresh head."""

from __future__ import annotations

from dataclasses import asdict, replace

from vla_policy_node import families
from vla_policy_node.families.cogact import CogAct
from vla_policy_node.families.prismatic import PrismaticVla
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.config import DitConfig, ModelConfig
from vla_policy_node.training.config import TrainingConfig


def with_new_head(model: PrismaticVla, config: TrainingConfig) -> CogAct:
    """Return a policy with the weights of `model` but for a fresh head, on the same device.

    Cameras and proprio stay as they are. The language model becomes causal, which weights cannot
    tell, so that it has to be trained further.
    """
    dit = DitConfig(config.head_blocks, config.head_width, config.head_heads)
    family = families.named('cogact')
    sizes = replace(model.config, chunk_length=config.chunk_length)
    new = family.create_network(family.configure(sizes, dit))
    kept = {name: tensor for name, tensor in model.state_dict().items()
            if not name.startswith('action_head.')}
    missing, _ = new.load_state_dict(kept, strict=False, assign=True)
    assert all(name.startswith('action_head.') for name in missing), missing
    return new.to(next(model.parameters()).device)


def head_entries(config: ModelConfig) -> dict:
    """What config.json must say of a CogACT head; nothing for any other."""
    if not config.can(Capability.DENOISING):
        return {}
    return {
        'head': config.family.name, 'chunk_length': config.chunk_length, 'dit': asdict(config.dit)}
