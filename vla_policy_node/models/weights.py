"""Tensors of a checkpoint, by their names in the model, memory-mapped and one at a time.

Nothing here runs code from a file: safetensors hold tensors only, and `.pt` files are read with
`weights_only=True`.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vla_policy_node.models.cogact_release import is_release, rename_release
from vla_policy_node.models.config import ModelConfig
from vla_policy_node.models.layout import model_files, part_file

MODEL = 'model'  # where the vision-language model is, beside the parts of `models.layout`
# What wrappers of distributed training put before every name.
_WRAPPER = 'module.'
# The Llama decoder and its vocabulary head, here and in the files.
_DECODER = 'language_model.', 'language_model.model.'
_VOCABULARY_HEAD = 'action_head.lm_head.', 'language_model.lm_head.'
_HEAD_ROOTS = {'l1': 'model.', 'diffusion': 'noise_predictor.mlp_resnet.', 'cogact': 'net.'}


def locate(name: str, config: ModelConfig) -> tuple[str, str]:
    """Return the file kind that holds a tensor of the model, and its name in there.

    The kind is MODEL or one of `models.layout.PARTS`.
    """
    part, _, rest = name.partition('.')
    if name.startswith(_VOCABULARY_HEAD[0]):
        return MODEL, _VOCABULARY_HEAD[1] + name.removeprefix(_VOCABULARY_HEAD[0])
    if part == 'action_head':
        return part, _HEAD_ROOTS[config.head] + rest
    if part in ('proprio_projector', 'noisy_action_projector'):
        return part, rest
    if part == 'vision_backbone' and config.film:
        # Each block is wrapped together with the two layers that modulate it.
        return part, re.sub(r'(\.blocks\.\d+\.)(?!scale\.|shift\.)', r'\1block.', name)
    if name.startswith(_DECODER[0]):
        return MODEL, _DECODER[1] + name.removeprefix(_DECODER[0])
    return MODEL, name


def read_tensors(
    directory: Path, names: Iterable[str], config: ModelConfig
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that are there, file by file, on the CPU as views of the mapped files."""
    wanted: dict[str, dict[str, str]] = {}
    for name in names:
        kind, file_name = locate(name, config)
        wanted.setdefault(kind, {})[file_name] = name
    for kind, by_file_name in wanted.items():
        files = model_files(directory) if kind == MODEL else [part_file(directory, kind)]
        for path in files:
            with open_tensors(path) as (available, get):
                merged = merge_adapters(available, get, lora_scale(directory))
                for file_name in merged.keys() & by_file_name.keys():
                    yield by_file_name[file_name], merged[file_name]()


@contextmanager
def open_tensors(path: Path) -> Iterator[tuple[set[str], Callable[[str], Tensor]]]:
    """Open a file; yields its tensor names, without wrappers, and a function that gets one.

    ValueError with one sentence for a file that is damaged or holds something else.
    """
    with _readable(path):
        if path.suffix == '.safetensors':
            with safe_open(path, framework='pt') as file:
                names = {key.removeprefix(_WRAPPER): key for key in file.keys()}  # noqa: SIM118
                yield set(names), lambda name: file.get_tensor(names[name])
            return
        # Only the newer of torch's two formats, a zip archive, can be mapped.
        state = torch.load(
            path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path)
        )
        if is_release(state):
            state = rename_release(state)
        if not isinstance(state, Mapping) or not all(
            isinstance(value, Tensor) for value in state.values()
        ):
            raise ValueError(f'{path} holds no table of tensors; it is no part of a checkpoint.')
        names = {key.removeprefix(_WRAPPER): key for key in state}
        yield set(names), lambda name: state[names[name]]


def merge_adapters(
    names: set[str], get: Callable[[str], Tensor], scale: Callable[[int], float]
) -> dict[str, Callable[[], Tensor]]:
    """Return a reader for each tensor; what LoRA left in two pieces becomes one, in float32.

    W + s B A, with A as [rank, in] and B as [out, rank]; for a convolution, flattened to these.
    scale: s for a rank.
    """
    readers = {}
    for name in names:
        stem, _, kind = name.rpartition('.')
        if '.lora_A.' in name or '.lora_B.' in name:
            continue
        if not stem.endswith('.base_layer'):
            readers[name] = lambda name=name: get(name)
            continue
        stem = stem.removesuffix('.base_layer')
        down, up = (f'{stem}.lora_{piece}.default.weight' for piece in 'AB')
        if kind != 'weight' or down not in names:
            readers[f'{stem}.{kind}'] = lambda name=name: get(name)
            continue

        def merged(name: str = name, down: str = down, up: str = up) -> Tensor:
            base, a, b = get(name), get(down).float(), get(up).float()
            change = (b.flatten(1) @ a.flatten(1)).view(base.shape)
            return base.float() + scale(len(a)) * change

        readers[f'{stem}.weight'] = merged
    return readers


def lora_scale(directory: Path) -> Callable[[int], float]:
    """Return s = alpha / rank as a function of the rank.

    From `lora_adapter/adapter_config.json` if it is there; OpenVLA-OFT's alpha is otherwise the
    rank, at most 16.
    """
    path = directory / 'lora_adapter' / 'adapter_config.json'
    if path.is_file():
        document = json.loads(path.read_text(encoding='utf-8'))
        if 'lora_alpha' in document:
            return lambda rank: document['lora_alpha'] / rank
    return lambda rank: min(rank, 16) / rank


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
