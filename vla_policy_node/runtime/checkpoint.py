"""Reads and writes checkpoint directories in the layout of the public OpenVLA-OFT checkpoints.

`config.json`, `preprocessor_config.json`, `dataset_statistics.json`, `tokenizer.json`, one or
more `*.safetensors` with the vision-language model, and action head and proprio projector in
files of their own (`action_head--<step>_checkpoint.pt`, or the same name in safetensors).
`checkpoints.layout` says which files there are, `checkpoints.weights` reads them. Loading runs no
code from a file and needs hardly more memory than the model: tensors go one by one from the mapped
files to the device. On the CPU, without a change of dtype, they stay views of the files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vla_policy_node import families
from vla_policy_node.checkpoints.layout import (
    PARTS,
    model_files,
    part_files,
    read_json,
    read_statistics_document,
)
from vla_policy_node.checkpoints.weights import (
    MODEL,
    Stored,
    check_file_sizes,
    check_stored,
    stored_tensors,
)
from vla_policy_node.common.machine import memory_bytes
from vla_policy_node.compression.float8 import check_device, to_float8
from vla_policy_node.compression.quantise import BITS, make_quantiser
from vla_policy_node.families import PolicyNetwork
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.runtime.fusing import fuse

__all__ = [
    'DTYPES',
    'fingerprint',
    'finish_model',
    'load_model',
    'read_json',
    'read_statistics_document',
    'save_model',
]

# What a policy computes in; int8 and int4 are how it keeps its weights.
DTYPES = {
    'float32': torch.float32,
    'bfloat16': torch.bfloat16,
    'int8': torch.bfloat16,
    'int4': torch.bfloat16,
    'float8': torch.bfloat16,  # around products of 8-bit floats, see `compression.float8`
}


def load_model(
    directory: Path,
    config: ModelConfig,
    device: str,
    dtype: str,
    progress: Callable[[float], None] = lambda share: None,
    fused: bool = False,
) -> PolicyNetwork:
    """Build the model and fill it with the weights of `directory`.

    dtype: one of DTYPES. progress: called with the share of parameters that is loaded, up to 1.
    fused: put weights together (`runtime.fusing`), unless they are of 8 or 4 bit integers.
    Tensors the forward pass never uses (vocabulary head, attention pool, blocks after the
    feature block) are not read. ValueError names what is missing or has the wrong shape.
    """
    where, precision = _device(device), _dtype(dtype)
    if dtype == 'float8':
        check_device(where)
    check_file_sizes(directory, config)
    with torch.device('meta'):
        model = families.create_network(config)
    quantise = make_quantiser(model, dtype, where) if dtype in BITS else None
    wanted, locate = model.state_dict(), families.locator(config)
    copied = check_stored(directory, wanted, locate, precision) * BITS.get(dtype, 16) // 16
    if where.type == 'cpu' and copied > memory_bytes():
        raise ValueError(
            f'{directory} takes {copied / 1e9:.0f} GB of memory as {dtype}, and this machine has '
            f'{memory_bytes() / 1e9:.0f} GB; choose a smaller dtype.'
        )
    total, loaded = sum(tensor.numel() for tensor in wanted.values()), 0
    state: dict[str, Tensor] = {}
    for stored in stored_tensors(directory, wanted, locate):
        placed = _place(stored, where, precision)
        state[stored.name] = quantise(stored.name, placed) if quantise else placed
        loaded += placed.numel()
        progress(loaded / total)
    model.load_state_dict(state, assign=True)
    return finish_model(model, dtype, fused)


def finish_model(model: PolicyNetwork, dtype: str, fused: bool) -> PolicyNetwork:
    """Make a filled model ready to run, see `load_model`."""
    model.eval().requires_grad_(False)
    if fused and dtype not in BITS:
        fuse(model)
    return to_float8(model) if dtype == 'float8' else model


def save_model(directory: Path, model: PolicyNetwork, step: int = 0) -> None:
    """Write the weights of `model` into `directory`, all in safetensors.

    Files are replaced, not overwritten: the model may be a view of the ones that are there.
    """
    files: dict[str, dict[str, Tensor]] = {}
    locate = families.locator(model.config)
    for name, tensor in model.state_dict().items():
        kind, file_name = locate(name)
        files.setdefault(kind, {})[file_name] = tensor.contiguous()
    for kind, tensors in files.items():
        name = MODEL if kind == MODEL else f'{kind}--{step}_checkpoint'
        path = directory / f'{name}.safetensors'
        save_file(tensors, path.with_suffix('.part'))
        path.with_suffix('.part').replace(path)


def fingerprint(directory: Path) -> str:
    """sha256 over names and contents of weights, config and statistics.

    Contents enter as their own sha256, which a file of the hub's cache has in its name already.
    """
    paths = [directory / 'config.json', directory / 'dataset_statistics.json']
    paths += model_files(directory)
    paths += [path for part in PARTS for path in part_files(directory, part)]
    paths += directory.glob('method--*.safetensors')  # what acceleration methods have learnt
    digest = hashlib.sha256()
    for path in sorted(paths):
        if path.is_file():  # OpenVLA before OFT keeps its statistics in config.json
            digest.update(f'{path.name} {_sha256(path)}\n'.encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    blob = path.resolve()
    if blob.parent.name == 'blobs' and re.fullmatch('[0-9a-f]{64}', blob.name):
        return blob.name
    digest = hashlib.sha256()
    with path.open('rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _place(stored: Stored, device: torch.device, dtype: torch.dtype) -> Tensor:
    tensor = stored.read()
    try:
        return tensor.to(device, dtype)
    except RuntimeError as error:  # all else was checked
        raise ValueError(
            f'{stored.name} of {stored.path} finds no room in the memory of {str(device)!r}; '
            'choose a smaller dtype, or end what else runs there.'
        ) from error


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f'dtype must be one of {", ".join(DTYPES)}, not {name!r}.')
    return DTYPES[name]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"There is no kind of device {name!r}; use 'cpu' or 'cuda'.") from error
    if device.type not in ('cpu', 'cuda'):
        raise ValueError(f"Device {name!r} cannot run a policy; use 'cpu' or 'cuda'.")
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"Device {name!r} is not available here; use another one, or 'cpu'.")
    return device
