"""Loads and saves method weights stored with the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from vla_policy_node.checkpoints.reading import plain
from vla_policy_node.checkpoints.tensor_files import PLAIN_DTYPES, check_dtype, open_safetensors
from vla_policy_node.nn.config import ModelConfig


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, from whatever device they are on."""
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def read_weights(path: Path, remedy: str) -> dict[str, Tensor]:
    """Read what `save_weights` wrote; ValueError if it is damaged, or missing: with the remedy.

    What is in it is finite; whether it has the right sizes is for the method to say.
    """
    if not path.exists():
        raise ValueError(f'{path.parent} has no {path.name}: {remedy}.')
    with open_safetensors(path) as (names, get, _):
        tensors = {name: get(name) for name in names}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or tensor.is_complex():  # others count something
            check_dtype(path, name, tensor, PLAIN_DTYPES)
        if not tensor.isfinite().all():
            raise ValueError(f'{path} has NaN or infinity in {plain(name)}; learn it again.')
    return tensors


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path, model: ModelConfig) -> None:
    """Put tensors into a module that will not be trained; ValueError if they are another's."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f'{path} is for another model: its sizes are not those of {model.architecture}.'
        ) from error
    module.eval().requires_grad_(False)
