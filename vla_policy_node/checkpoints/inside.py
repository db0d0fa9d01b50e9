"""Finds the checkpoint in a directory that holds it further down: a run, or the hub's cache.

Such directories may be anybody's: what a link leads to outside of them is not taken, and no more
than a few thousand entries are looked at.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from vla_policy_node.checkpoints.reading import listed, regular_file

ADAPTER_FOLDER = 'lora_adapter'  # where OpenVLA-OFT keeps what belongs to the files beside it
MOST_ENTRIES = 2000  # of a directory that are looked at
_LEROBOT = 'pretrained_model'  # in `checkpoints/005000/` of a run of LeRobot
_WEIGHTS = re.compile(r'model.*\.safetensors|(pytorch_model|adapter_model).*|\w+--.*checkpoint.*')
_CACHED = 'models--'  # how folders of the hub's cache begin; owner and name follow
_COMMIT = re.compile(r'[0-9a-f]{7,64}')


def checkpoint_in(directory: Path) -> Path:
    """Return the directory if it is a checkpoint, or else the only one that lies in it.

    ValueError with one sentence for several. A directory without any is returned as it is:
    whoever reads it says what is missing. What is taken in its place is said in the log.
    """
    if _is_cached(directory):
        return _told(directory, _snapshot(directory))
    if directory.absolute().name == ADAPTER_FOLDER and _has_weights(directory.absolute().parent):
        return _told(directory, directory.absolute().parent)
    if _has_weights(directory) or (directory / ADAPTER_FOLDER).is_dir():
        return directory
    found = _checkpoints_below(directory) or _checkpoints_below(directory / 'checkpoints')
    if len(found) > 1:
        raise ValueError(
            f'{directory} is no checkpoint, but holds {len(found)}: {listed(found)}; name one of '
            'them.')
    return _told(directory, found.popitem()[1]) if found else directory


def _told(directory: Path, found: Path) -> Path:
    logging.getLogger(__name__).warning(
        '%s is no checkpoint itself; taking the one in %s.', directory, found)
    return found


def _has_weights(directory: Path) -> bool:
    """Whether weights lie in it, or in `checkpoints/`, as in releases of CogACT."""
    return any(_WEIGHTS.fullmatch(entry.name) and not entry.name.startswith(_CACHED)
               for entry in _entries(directory)) or any(
        entry.name.endswith('.pt') for entry in _entries(directory / 'checkpoints'))


def _checkpoints_below(directory: Path) -> dict[str, Path]:
    """Checkpoints one level down, by name; those that links make known twice, once.

    In the runs of LeRobot they are in a folder of their own there.
    """
    root = directory.resolve()
    found: dict[Path, tuple[str, Path]] = {}
    for entry in _entries(directory):
        path = Path(entry.path)
        path = path / _LEROBOT if (path / _LEROBOT).is_dir() else path
        with suppress(OSError, RuntimeError, ValueError):  # a link in a circle, a broken cache
            real = path.resolve()
            if not (entry.is_dir() and real.is_relative_to(root)):
                continue
            if _is_cached(path):
                found[real] = entry.name, _snapshot(path)
            elif _has_weights(path) and any(
                    (path / f'{kind}config.json').is_file() for kind in ('', 'adapter_')):
                name = found[real][0] if real in found else entry.name
                found[real] = min(name, entry.name, key=len), path
    return dict(sorted(found.values()))


def _entries(directory: Path) -> Iterator[os.DirEntry]:
    with suppress(OSError), os.scandir(directory) as entries:
        yield from islice(entries, MOST_ENTRIES)


# --- the cache of the hub: models--OWNER--NAME/{refs/main, snapshots/COMMIT, blobs} ---


def _is_cached(directory: Path) -> bool:
    return directory.absolute().name.startswith(_CACHED) and (directory / 'snapshots').is_dir()


def _snapshot(directory: Path) -> Path:
    """Return the snapshot that `refs/main` names, or the only one."""
    main = directory / 'refs' / 'main'
    known = sorted(entry.name for entry in _entries(directory / 'snapshots')
                   if Path(entry.path).is_dir())
    if main.exists():
        regular_file(main, 256)
        commit = main.read_text(errors='replace').strip()
        if not _COMMIT.fullmatch(commit):
            raise ValueError(f'{main} names no commit; download the checkpoint again.')
    elif len(known) == 1:
        commit = known[0]
    else:
        raise ValueError(
            f'{directory} has no refs/main and {len(known)} snapshots; name one of '
            f'snapshots/: {listed(known) or "none"}.')
    if commit not in known:
        raise ValueError(
            f'{directory} has no snapshots/{commit}, which refs/main names; download it again.')
    snapshot = directory / 'snapshots' / commit
    root = directory.resolve()
    for path in (snapshot, *(Path(entry.path) for entry in _entries(snapshot))):
        if not path.resolve().is_relative_to(root):
            raise ValueError(
                f'{path} is a link to something outside of {directory}, which no cache of the hub '
                'holds; download it again.')
    return snapshot
