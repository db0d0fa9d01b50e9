"""Checkpoints by name: a directory, or an id or address of the Hugging Face hub."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from vla_policy_node.checkpoints.inside import ADAPTER_FOLDER, checkpoint_in
from vla_policy_node.checkpoints.reading import shown

# Weights, sizes, statistics and the tokenizer; neither code nor adapters that are merged.
FILES = (
    '*.json',
    '*tokenizer.model',
    'policy_*.safetensors',  # statistics of LeRobot's processors
    'model*.safetensors',
    'adapter_model*',
    'checkpoints/*.pt',
    'action_head--*',
    'proprio_projector--*',
    'noisy_action_projector--*',
    'vision_backbone--*',
    'method--*.safetensors',
)
_ID = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?')
# An address of the hub, as browsers, git and fsspec write it, up to the name of the repository.
_HUB = re.compile(
    r'(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|(?:ssh://)?git@hf\.co[:/]|hf://)',
    re.IGNORECASE)
_ADDRESS = re.compile(r'[a-z][a-z0-9+.-]*://', re.IGNORECASE)
# What may follow the name in an address: kinds of pages, and a revision.
_PAGES = ('tree', 'blob', 'resolve', 'raw', 'commit')


def find_checkpoint(checkpoint: Path | str) -> Path:
    """Return the directory of a checkpoint; one of the hub is downloaded first.

    checkpoint: a directory, or `owner/name`, `owner/name@revision` or an address of the hub. What
        is in the hub's cache already is not downloaded again, an interrupted download goes on
        where it stopped, and with HF_HUB_OFFLINE=1 only the cache is used. In place of a directory
        that is no checkpoint itself, the only one in it is taken (`checkpoints.inside`).
    ValueError with one sentence if there is neither.
    """
    if _HUB.match(str(checkpoint)):
        return _download(_id_of(str(checkpoint)))
    if _ADDRESS.match(str(checkpoint)):
        raise ValueError(
            f'{shown(str(checkpoint))} is an address from which nothing is read; download the '
            'checkpoint and name its directory.')
    try:
        directory = Path(checkpoint).expanduser()
        is_directory, exists = directory.is_dir(), directory.exists()
        if not str(directory).isprintable():
            raise ValueError('it has characters that cannot be printed')
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, not allowed
        raise ValueError(
            f'{shown(str(checkpoint))} is no name of a checkpoint that can be looked up '
            f'({getattr(error, "strerror", None) or error}); name a directory.'
        ) from error
    if is_directory:
        return checkpoint_in(directory)
    if exists:
        raise ValueError(f'{directory} is a file; name the checkpoint directory it lies in.')
    if not _ID.fullmatch(str(checkpoint)):
        raise ValueError(f'{directory} has no config.json; there is no such directory.')
    return _download(str(checkpoint))


def _id_of(address: str) -> str:
    """Return `owner/name` or `owner/name@revision` for an address of the hub."""
    path = re.split('[?#]', _HUB.sub('', address, count=1))[0].strip('/')
    owner, name, page, revision, *rest = [*path.split('/'), *[''] * 4][:5]
    found = f'{owner}/{name.removesuffix(".git")}'
    if page and revision not in ('', 'main'):
        found += f'@{unquote(revision)}'
    if page not in ('', *_PAGES) or (page == 'tree' and any(rest)) or not _ID.fullmatch(found):
        raise ValueError(
            f'{shown(address)} is no address of a model; name it as owner/name, or download it '
            'and name its directory.')
    return found


def _download(name: str) -> Path:
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as error:
        raise ValueError(
            f'There is no directory {name}; to download it from the Hugging Face hub, the '
            'package huggingface_hub is needed: pip install huggingface_hub.'
        ) from error
    repository, _, revision = name.partition('@')
    download = partial(snapshot_download, repository, revision=revision or None)
    try:
        found = Path(download(allow_patterns=[*FILES]))
        if not any(found.glob('model*.safetensors')) and (found / ADAPTER_FOLDER).is_dir():
            download(allow_patterns=[*FILES, f'{ADAPTER_FOLDER}/*.safetensors'])  # not merged
        return found
    except LocalEntryNotFoundError as error:
        reason = (
            'is not in its cache, and HF_HUB_OFFLINE forbids to download it'
            if constants.HF_HUB_OFFLINE
            else 'cannot be reached; try again, what is there already will be kept'
        )
        raise ValueError(
            f'There is no directory {name}, and {name} of the Hugging Face hub {reason}.'
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f'There is no directory {name}, and the Hugging Face hub does not give it out: '
            f'{str(error).strip().splitlines()[0]}'
        ) from error
    except OSError as error:
        raise ValueError(
            f'{name} could not be downloaded ({error}); try again, what is there already will be '
            'kept.'
        ) from error
