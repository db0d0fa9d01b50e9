"""A LoRA adapter in files of its own, and the model that it changes.

What fine-tuning leaves without merging: `adapter_config.json` and `adapter_model.safetensors`, in
the directory itself or, of OpenVLA-OFT, in `lora_adapter/` beside the action head. The model is
read where `base_model_name_or_path` says, and so is every other file that the directory lacks.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path

from vla_policy_node.checkpoints import cogact_release
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.hub import find_checkpoint
from vla_policy_node.checkpoints.inside import ADAPTER_FOLDER
from vla_policy_node.checkpoints.lora import ADAPTER_CONFIG
from vla_policy_node.checkpoints.reading import read_json, regular_file

_FILES = ('adapter_model.safetensors', 'adapter_model.bin')


def adapter_in(directory: Path) -> Path | None:
    """Return the folder of the adapter that stands in the place of a model, None for none."""
    if any(directory.glob('model*.safetensors')):
        return None
    folders = (directory, directory / ADAPTER_FOLDER)
    return next((folder for folder in folders if os.path.lexists(folder / ADAPTER_CONFIG)), None)


def adapter_file(folder: Path) -> Path:
    """Return the file with the tensors of an adapter."""
    for name in _FILES:
        if os.path.lexists(folder / name):
            return folder / name
    raise ValueError(
        f'{folder} has {ADAPTER_CONFIG} and no {_FILES[0]}; the download may be incomplete.')


def adapter_files(directory: Path) -> list[Path]:
    """Return the files of the adapter that stands in the place of a model, none for none."""
    folder = adapter_in(directory)
    return [] if folder is None else [folder / ADAPTER_CONFIG, adapter_file(folder)]


def base_of(directory: Path) -> Path | None:
    """Return the directory of the model that an adapter changes, None for no adapter.

    One of the hub is downloaded. ValueError with one sentence if it is not to be had.
    """
    folder = adapter_in(directory)
    if folder is None:
        return None
    path = folder / ADAPTER_CONFIG
    regular_file(path)
    found = path.stat()
    return _base(directory, path, found.st_mtime_ns, found.st_size)


def place(directory: Path, name: str) -> Path:
    """Return where a file of a checkpoint is: in its directory, or with the base of an adapter."""
    if not os.path.lexists(directory / name) and (base := base_of(directory)):
        return base / name
    return directory / name


def folders(directory: Path) -> list[Path]:
    """Return where files of a checkpoint are looked for: its directory, and an adapter's base."""
    base = base_of(directory)
    return [directory, base] if base else [directory]


def refuse_both(directory: Path) -> None:
    """Raise ValueError for a whole model with an adapter beside it that it may contain or not."""
    beside = [name for name in (*_FILES, ADAPTER_CONFIG) if os.path.lexists(directory / name)]
    if {*beside} & {*_FILES} and any(directory.glob('model*.safetensors')):
        raise ValueError(
            f'{directory} holds a whole model and a LoRA adapter, {beside[0]}, and nothing says '
            f'whether it is merged already; if it is, move {" and ".join(beside)} into a folder '
            f'{ADAPTER_FOLDER}, else into a directory without the model.')


@lru_cache(maxsize=64)
def _base(directory: Path, path: Path, changed_ns: int, size: int) -> Path:
    """Find the base that a file of this age and size names, once."""
    entries = Entries(read_json(path), str(path))
    named = entries.word('base_model_name_or_path', default='')
    revision = entries.word('revision', default='')
    why = ''
    if named:
        try:
            base = find_checkpoint(_name(named, revision, path.parent))
            if base.resolve() == directory.resolve() or adapter_in(base):
                raise ValueError(f'{base} is an adapter itself.')
            if cogact_release.find(base):
                raise ValueError(f'{base} is a release of CogACT, which is not changed here.')
        except ValueError as error:
            why = f': {str(error).rstrip(".?")}'
        else:
            logging.getLogger(__name__).warning(
                '%s is a LoRA adapter; merging it into the model in %s.', directory, base)
            return base
    raise ValueError(
        f'{directory} holds a LoRA adapter without the model it belongs to{why}; write the '
        f'directory of that model, or its id of the hub, as base_model_name_or_path into {path}, '
        'or merge it with merge_and_unload of the peft library and name the result.')


def _name(named: str, revision: str, folder: Path) -> Path | str:
    """Return what to look up: a directory relative to the adapter, or else what stands there."""
    try:
        if (folder / named).is_dir():
            return folder / named
        local = Path(named).is_dir()
    except (OSError, RuntimeError, ValueError):  # no path at all; that is said of the name
        return named
    return f'{named}@{revision}' if revision and not local and '@' not in named else named
