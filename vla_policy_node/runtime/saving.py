"""Writes the weights of a network into a checkpoint directory, as `runtime.loading` reads them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from vla_policy_node import families
from vla_policy_node.checkpoints.weights import MODEL
from vla_policy_node.families import PolicyNetwork
from vla_policy_node.outputs.files import draft


def save_model(directory: Path, model: PolicyNetwork, step: int = 0) -> None:
    """Write the weights of `model` into `directory`, all in safetensors.

    The vision-language model, and each other part in a file of its own, which names the step of
    training. Files are replaced, not overwritten: the model may be a view of the ones that are
    there.
    """
    files: dict[str, dict[str, Tensor]] = {}
    locate = families.locator(model.config)
    for name, tensor in model.state_dict().items():
        kind, file_name = locate(name)
        files.setdefault(kind, {})[file_name] = tensor.contiguous()
    for kind, tensors in files.items():
        name = MODEL if kind == MODEL else f'{kind}--{step}_checkpoint'
        path = directory / f'{name}.safetensors'
        with draft(path) as partial:
            save_file(tensors, partial)
