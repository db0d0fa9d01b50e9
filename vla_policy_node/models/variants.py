"""The class that runs a checkpoint, by the head it has."""

from __future__ import annotations

from vla_policy_node.models.cogact import CogAct
from vla_policy_node.models.config import ModelConfig
from vla_policy_node.models.diffusion import DiffusionOft
from vla_policy_node.models.openvla import OpenVla
from vla_policy_node.models.openvla_oft import OpenVlaOft

_CLASSES = {'diffusion': DiffusionOft, 'autoregressive': OpenVla, 'cogact': CogAct}


def create_model(config: ModelConfig) -> OpenVlaOft:
    """Build the model with weights that are not initialised for any use."""
    return _CLASSES.get(config.head, OpenVlaOft)(config)
