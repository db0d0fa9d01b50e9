"""Initial weights, which cost nothing where they have no values."""

import torch
from torch import Tensor


def normal(*shape: int, std: float = 1.0) -> Tensor:
    """Draw from N(0, std), or nothing on the meta device.

    To draw nothing, torch would import its compiler: a second in every process that loads a model.
    """
    weights = torch.empty(shape)
    return weights if weights.is_meta else weights.normal_().mul_(std)
