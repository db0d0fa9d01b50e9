"""Tensors of a checkpoint, by their names in the model, memory-mapped and one at a time.

Nothing here runs code from a file: safetensors hold tensors only, and `.pt` files are read with
`weights_only=True`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vla_policy_node.checkpoints.cogact_release import is_of_prismatic, is_release, rename_release
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.layout import PARTS, model_files, part_file, part_files
from vla_policy_node.checkpoints.quantised import check_float8, check_names, int8_weights
from vla_policy_node.checkpoints.reading import plain, read_json, regular_file
from vla_policy_node.checkpoints.tensor_files import (
    check_dtype,
    check_weights,
    load_pt,
    open_safetensors,
)
from vla_policy_node.nn.config import ModelConfig

INDEX = 'model.safetensors.index.json'
MODEL = 'model'  # where the vision-language model is, beside the parts of `checkpoints.layout`
# What wrappers of distributed training put before every name.
_WRAPPER = 'module.'
# Name of a tensor in the model -> kind of the files that hold it (MODEL or one of
# `checkpoints.layout.PARTS`), and its name in there. Every family has its own.
Locate = Callable[[str], tuple[str, str]]


@dataclass(frozen=True)
class Stored:
    """A tensor of the model as files hold it, on the CPU as a view of a mapped file.

    view: has the shape that `read` returns, and no values if they are codes; `read` makes numbers
    of these, and merges what adapters left beside them.
    """

    path: Path
    name: str
    view: Tensor
    read: Callable[[], Tensor]


def stored_tensors(
    directory: Path, names: Iterable[str], locate: Locate
) -> Iterator[Stored]:
    """Yield the tensors of the model that are there, file by file, in no certain order."""
    wanted: dict[str, dict[str, str]] = {}
    for name in names:
        kind, file_name = locate(name)
        wanted.setdefault(kind, {})[file_name] = name
    for kind, by_file_name in wanted.items():
        files = model_files(directory) if kind == MODEL else [part_file(directory, kind)]
        for path in files:
            with open_tensors(path) as (available, get):
                codes = int8_weights(path, available, get)
                read_one = partial(_read_one, codes, get)
                merged = merge_adapters(path, available, read_one, lora_scale(directory))
                for file_name in merged.keys() & by_file_name.keys():
                    base, read = merged[file_name]
                    view = get(base)
                    check_float8(path, base, view, available)
                    if base in codes:
                        view = view.to('meta', torch.float16)
                    yield Stored(path, by_file_name[file_name], view, read)


def _read_one(
    codes: Mapping[str, Callable[[], Tensor]], get: Callable[[str], Tensor], name: str
) -> Tensor:
    return codes[name]() if name in codes else get(name)


def check_stored(
    directory: Path, wanted: Mapping[str, Tensor], locate: Locate, dtype: torch.dtype
) -> int:
    """Compare what files say they hold with what the model needs; nothing is read or placed.

    wanted: name -> tensor of the right shape, on whatever device. Returns the bytes, in `dtype`,
    of all that are stored in another one and have to be copied. ValueError names what is missing,
    in two files, or of the wrong shape or kind.
    """
    found: dict[str, Path] = {}
    copied = 0
    for stored in stored_tensors(directory, wanted, locate):
        name, path, shape = stored.name, stored.path, wanted[stored.name].shape
        if name in found:
            raise ValueError(
                f'{directory} holds {name} twice, in {found[name].name} and in {path.name}; '
                'leave the one to be used.'
            )
        found[name] = path
        check_dtype(path, name, stored.view)
        if stored.view.shape != shape:
            raise ValueError(
                f'{name} in {directory} has shape {list(stored.view.shape)}, config.json asks for '
                f'{list(shape)}; the files are not of one checkpoint.'
            )
        if stored.view.dtype != dtype:
            copied += stored.view.numel() * dtype.itemsize
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise ValueError(
            f'{directory} lacks {len(missing)} of {len(wanted)} tensors, first {missing[0]}'
            f'{_shard_of(directory, missing[0], locate)}; the download may be incomplete.'
        )
    return copied


def check_file_sizes(directory: Path, config: ModelConfig) -> None:
    """Raise ValueError if the files are too small for what config.json describes.

    Before a model is built, for which a number in a text file would otherwise be reason enough.
    Far too small, that is: a file that is missing is found later, and named.
    """
    paths = {*model_files(directory), *(p for part in PARTS for p in part_files(directory, part))}
    size = sum(regular_file(path) for path in paths)
    if config.least_weights > 4 * size:
        raise ValueError(
            f'config.json describes at least {config.least_weights:,} weights, and the files in '
            f'{directory} have {size:,} bytes; they are not of one checkpoint.'
        )


def stored_size(directory: Path, part: str, name: str) -> int:
    """Last dimension of a tensor of a part; 0 if it is not there, as somebody else will say."""
    files = part_files(directory, part)
    for path in files[: len(files) == 1]:
        regular_file(path)
        with suppress(ValueError), open_tensors(path) as (names, get):
            shape = get(name).shape if name in names else ()
            return shape[-1] if shape else 0
    return 0


@contextmanager
def open_tensors(path: Path) -> Iterator[tuple[set[str], Callable[[str], Tensor]]]:
    """Open a file; yields its tensor names, without wrappers, and a function that gets one.

    ValueError with one sentence for a file that is damaged or holds something else, quantised
    weights among it.
    """
    if path.suffix == '.safetensors':
        with open_safetensors(path) as (keys, get, _):
            check_names(path, keys)
            names = {key.removeprefix(_WRAPPER): key for key in keys}
            yield set(names), lambda name: get(names[name])
        return
    state = load_pt(path)
    if is_release(state):
        state = rename_release(state)
    elif is_of_prismatic(state):
        raise ValueError(
            f'{path} is as the Prismatic code base saves a policy in training; convert it with '
            'its vla-scripts/extern/convert_openvla_weights_to_hf.py, and name the result.')
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(f'{path} holds no table of tensors; it is no part of a checkpoint.')
    check_names(path, state)
    for name, tensor in state.items():
        check_weights(path, name, tensor)
    names = {key.removeprefix(_WRAPPER): key for key in state}
    yield set(names), lambda name: state[names[name]]


def merge_adapters(
    path: Path, names: set[str], get: Callable[[str], Tensor], scale: Callable[[int], float]
) -> dict[str, tuple[str, Callable[[], Tensor]]]:
    """Return for each tensor where its shape is, and a function that reads it.

    What LoRA left in two pieces becomes one, in float32: W + s B A, with A as [rank, in] and B as
    [out, rank]; for a convolution, flattened to these. scale: s for a rank.
    """
    readers: dict[str, tuple[str, Callable[[], Tensor]]] = {}
    for name in names:
        stem, _, kind = name.rpartition('.')
        if '.lora_A.' in name or '.lora_B.' in name:
            continue
        if not stem.endswith('.base_layer'):
            readers[name] = name, partial(get, name)
            continue
        stem = stem.removesuffix('.base_layer')
        down, up = (f'{stem}.lora_{piece}.default.weight' for piece in 'AB')
        if kind != 'weight' or down not in names:
            readers[f'{stem}.{kind}'] = name, partial(get, name)
            continue

        def merged(name: str = name, down: str = down, up: str = up) -> Tensor:
            return _merge(path, up, get(name), get(down), get(up) if up in names else None, scale)

        readers[f'{stem}.weight'] = name, merged
    return readers


def _merge(
    path: Path, name: str, base: Tensor, down: Tensor, up: Tensor | None,
    scale: Callable[[int], float],
) -> Tensor:
    rank, rows = len(down) if down.ndim else 0, base.shape[0] if base.ndim else 0
    if up is None or not (rank and rows and down.ndim > 1 and up.ndim > 1) or (
        up.shape[0] != rows or up[0].numel() != rank or down[0].numel() != base[0].numel()
    ):
        raise ValueError(
            f'{path} has an adapter around {plain(name)} that does not fit its weight; the file '
            'is damaged, download it again.'
        )
    change = (up.float().flatten(1) @ down.float().flatten(1)).view(base.shape)
    return base.float() + scale(rank) * change


def lora_scale(directory: Path) -> Callable[[int], float]:
    """Return s = alpha / rank as a function of the rank.

    From `lora_adapter/adapter_config.json` if it is there; OpenVLA-OFT's alpha is otherwise the
    rank, at most 16.
    """
    path = directory / 'lora_adapter' / 'adapter_config.json'
    if path.exists():
        entries = Entries(read_json(path), str(path))
        if 'lora_alpha' in entries:
            alpha = entries.number('lora_alpha', 0, 1e6)
            return lambda rank: alpha / rank
    return lambda rank: min(rank, 16) / rank


def _shard_of(directory: Path, name: str, locate: Locate) -> str:
    """Say where the index of a sharded model expects a tensor, if it does."""
    kind, file_name = locate(name)
    path = directory / INDEX
    if kind != MODEL or not path.exists():
        return ''
    shards = Entries(read_json(path), INDEX).inside('weight_map')
    return f' in {plain(shards.word(file_name))}' if file_name in shards else ''
