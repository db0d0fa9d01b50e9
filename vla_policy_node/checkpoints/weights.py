"""Tensors of a checkpoint, by their names in the model, memory-mapped and one at a time.

Nothing here runs code from a file: safetensors hold tensors only, and `.pt` files are read with
`weights_only=True`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from vla_policy_node.checkpoints.adapter import adapter_file, adapter_in, place
from vla_policy_node.checkpoints.cogact_release import is_of_prismatic, is_release, rename_release
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.inside import ADAPTER_FOLDER
from vla_policy_node.checkpoints.layout import PARTS, model_files, part_file, part_files
from vla_policy_node.checkpoints.lora import ADAPTER_CONFIG, Scale, Tensors, read_scale
from vla_policy_node.checkpoints.quantised import check_float8, check_names, int8_weights, is_scale
from vla_policy_node.checkpoints.reading import plain, read_json, regular_file
from vla_policy_node.checkpoints.tensor_files import (
    check_dtype,
    check_weights,
    load_pt,
    open_safetensors,
    plain_names,
)
from vla_policy_node.nn.config import ModelConfig

INDEX = 'model.safetensors.index.json'
MODEL = 'model'  # where the vision-language model is, beside the parts of `checkpoints.layout`
# Name of a tensor in the model -> kind of the files that hold it (MODEL or one of
# `checkpoints.layout.PARTS`), and its name in there. Every family has its own.
Locate = Callable[[str], tuple[str, str]]


@dataclass(frozen=True)
class Stored:
    """A tensor of the model as files hold it, on the CPU as a view of a mapped file.

    view: has the shape that `read` returns, and no values if they are codes; `read` makes numbers
    of these, and merges what adapters left beside them (`changed`).
    """

    path: Path
    name: str
    view: Tensor
    read: Callable[[], Tensor]
    changed: bool = False


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
        with ExitStack() as stack:
            views: dict[Path, Callable[[str], Tensor]] = {}
            tensors = _open(files, stack, views)
            scale = _scale_of(directory, kind)
            if kind == MODEL and (folder := adapter_in(directory)):
                path = adapter_file(folder)
                film = bool(part_files(directory, 'vision_backbone'))  # with its own changes in it
                tensors.put(
                    _open([path], stack, views), path, 'vision_backbone.' if film else '')
            for target, source, read, changed in tensors.merged(scale):
                if target in by_file_name:
                    view = views[source.path](source.name)
                    yield Stored(source.path, by_file_name[target], view, read, changed)


def _open(
    files: Iterable[Path], stack: ExitStack, views: dict[Path, Callable[[str], Tensor]]
) -> Tensors:
    """Open files until the stack closes them; views: gets what returns a view of each tensor."""
    tensors = Tensors()
    opened = [(path, *stack.enter_context(open_tensors(path))) for path in files]
    scales = {name: partial(get, name) for _, available, get in opened
              for name in filter(is_scale, available)}  # which may be in the next shard
    for path, available, get in opened:
        codes = int8_weights(path, available, get, scales)
        tensors.add(path, available, partial(_read_one, codes, get))
        views[path] = partial(_view, path, sorted(available), codes, get)
    return tensors


def _view(
    path: Path, names: Sequence[str], codes: Mapping[str, object], get: Callable[[str], Tensor],
    name: str,
) -> Tensor:
    view = get(name)
    check_float8(path, name, view, names)
    return view.to('meta', torch.float16) if name in codes else view


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
        if stored.changed or stored.view.dtype != dtype:
            copied += stored.view.numel() * dtype.itemsize
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise ValueError(
            f'{directory} lacks {len(missing)} of {len(wanted)} tensors, first {missing[0]}'
            f'{_shard_of(directory, missing[0], locate)}; '
            f'{_called(directory, missing[0], locate) or "the download may be incomplete"}.'
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
            names = plain_names(path, keys)
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
    names = plain_names(path, state)
    yield set(names), lambda name: state[names[name]]


def _scale_of(directory: Path, kind: str) -> Scale:
    """Return how much the adapters inside of files count, read when it is asked for.

    As `adapter_config.json` says; in the parts that OpenVLA-OFT saves, alpha is the rank without
    it, at most 16.
    """
    for path in (directory / ADAPTER_FOLDER / ADAPTER_CONFIG, directory / ADAPTER_CONFIG):
        if path.exists():
            read = cache(partial(read_scale, path))
            return lambda module, rank: read()(module, rank)
    if kind == MODEL:
        def refuse(module: str, rank: int) -> float:
            raise ValueError(
                f'{directory} holds weights with LoRA adapters beside them, and no '
                f'{ADAPTER_CONFIG} that says how much these count; copy that of the training.')

        return refuse
    return lambda module, rank: min(rank, 16) / rank


def _called(directory: Path, name: str, locate: Locate) -> str:
    """Say what the files call a tensor, if something that is not known wrapped it."""
    kind, file_name = locate(name)
    for path in model_files(directory) if kind == MODEL else ():
        with open_tensors(path) as (names, _):
            for other in sorted(names):
                if other.endswith(f'.{file_name}'):
                    return (f'{path.name} calls it {plain(other)}, as something round the model '
                            'does; save what is inside of that')
    return ''


def missing_shard(directory: Path) -> str:
    """Return a file of the model that its index names and that is not there, '' for none."""
    path = place(directory, INDEX)
    if not path.exists():
        return ''
    there = {file.name for file in model_files(directory)}
    shards = Entries(read_json(path), INDEX).inside('weight_map')
    named = (str(name) for name in shards.items().values())
    return next((plain(name) for name in named if name not in there), '')


def _shard_of(directory: Path, name: str, locate: Locate) -> str:
    """Say where the index of a sharded model expects a tensor, if it does."""
    kind, file_name = locate(name)
    path = place(directory, INDEX)
    if kind != MODEL or not path.exists():
        return ''
    shards = Entries(read_json(path), INDEX).inside('weight_map')
    return f' in {plain(shards.word(file_name))}' if file_name in shards else ''
