"""Reads and writes checkpoint directories in the layout of the public OpenVLA-OFT checkpoints.

`config.json`, `preprocessor_config.json`, `dataset_statistics.json`, `tokenizer.json`, one or
more `*.safetensors` with the vision-language model, and action head and proprio projector in
files of their own (`action_head--<step>_checkpoint.pt`, or the same name in safetensors).
Nothing here runs code from a file: safetensors hold tensors only, and `.pt` files are read with
`weights_only=True`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_policy_node.models.config import ModelConfig
from vla_policy_node.models.openvla_oft import OpenVlaOft

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
# Parts of the model that have a file of their own, and the name of their root module in it.
PARTS = {'action_head': 'model.', 'proprio_projector': ''}
# The Llama decoder sits one level deeper in the files than here.
FILE_PREFIX, MODEL_PREFIX = 'language_model.model.', 'language_model.'


def read_json(directory: Path, name: str) -> Mapping:
    """Parse a file of the checkpoint; ValueError if it is missing or damaged.

    An entry that is looked up and not there is a ValueError, too.
    """
    path = _require(directory, name)

    class Document(dict):
        def __missing__(self, key: str):
            raise ValueError(f'{path} has no entry {key!r}; is it of an OpenVLA-OFT checkpoint?')

    try:
        return json.loads(path.read_text(encoding='utf-8'), object_pairs_hook=Document)
    except json.JSONDecodeError as error:
        raise ValueError(f'{path} is not valid JSON: {error}.') from error


def load_model(directory: Path, config: ModelConfig, device: str, dtype: str) -> OpenVlaOft:
    """Build the model and fill it with the weights of `directory`.

    Tensors the forward pass never uses (vocabulary head, attention pool, blocks after the
    feature block) are not read. ValueError names what is missing or has the wrong shape.
    """
    where, precision = _device(device), _dtype(dtype)
    with torch.device('meta'):
        model = OpenVlaOft(config)
    wanted = model.state_dict()
    state = {}
    for name, tensor in _tensors(directory, wanted):
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f'{name} in {directory} has shape {list(tensor.shape)}, config.json asks for '
                f'{list(wanted[name].shape)}; the files are not of one checkpoint.'
            )
        state[name] = tensor.to(where, precision)
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise ValueError(
            f'{directory} lacks {len(missing)} of {len(wanted)} tensors, first {missing[0]}; '
            'the download may be incomplete.'
        )
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def save_model(directory: Path, model: OpenVlaOft, step: int = 0) -> None:
    """Write the weights of `model` into `directory`, all in safetensors."""
    files: dict[str, dict[str, Tensor]] = {'model': {}, **{part: {} for part in PARTS}}
    for name, tensor in model.state_dict().items():
        part, _, rest = name.partition('.')
        if part in PARTS:
            files[part][PARTS[part] + rest] = tensor.contiguous()
        else:
            files['model'][_file_name(name)] = tensor.contiguous()
    save_file(files.pop('model'), directory / 'model.safetensors')
    for part, tensors in files.items():
        save_file(tensors, directory / f'{part}--{step}_checkpoint.safetensors')


def fingerprint(directory: Path) -> str:
    """sha256 over names and contents of weights, config and statistics."""
    paths = [directory / 'config.json', directory / 'dataset_statistics.json']
    paths += _model_files(directory) + [_part_file(directory, part) for part in PARTS]
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f'{path.name} {path.stat().st_size}\n'.encode())
        with path.open('rb') as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _tensors(directory: Path, wanted: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the wanted tensors by their names in the model, one file after the other."""
    file_names = {_file_name(name): name for name in wanted}
    for path in _model_files(directory):
        with _readable(path), safe_open(path, framework='pt') as file:
            for file_name in file_names.keys() & file.keys():
                yield file_names[file_name], file.get_tensor(file_name)
    for part, root in PARTS.items():
        for file_name, tensor in _read_part(_part_file(directory, part)).items():
            name = f'{part}.{file_name.removeprefix("module.").removeprefix(root)}'
            if name in wanted:
                yield name, tensor


def _file_name(name: str) -> str:
    if name.startswith(MODEL_PREFIX):
        return FILE_PREFIX + name.removeprefix(MODEL_PREFIX)
    return name


def _model_files(directory: Path) -> list[Path]:
    files = sorted(directory.glob('model*.safetensors'))
    if not files:
        raise ValueError(f'{directory} has no model*.safetensors; is it a complete checkpoint?')
    return files


def _part_file(directory: Path, part: str) -> Path:
    files = sorted(
        path
        for pattern in (f'{part}--*checkpoint*.safetensors', f'{part}--*checkpoint*.pt')
        for path in directory.glob(pattern)
    )
    if len(files) != 1:
        found = ', '.join(path.name for path in files) or 'none'
        raise ValueError(
            f'{directory} must hold one file {part}--*checkpoint.pt (or .safetensors), '
            f'found {found}.'
        )
    return files[0]


def _read_part(path: Path) -> Mapping[str, Tensor]:
    with _readable(path):
        if path.suffix == '.safetensors':
            return load_file(path)
        return torch.load(path, map_location='cpu', weights_only=True)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(
            f'{path} holds something else than tensors, which could run code; it was not read.'
        ) from error
    except (SafetensorError, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f'{path} cannot be read; the download may be incomplete.') from error


def _require(directory: Path, name: str) -> Path:
    path = directory / name
    if not path.is_file():
        raise ValueError(f'{directory} has no {name}; is it a complete checkpoint?')
    return path


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
