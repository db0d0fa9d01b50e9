"""Directories that are built once, atomically, and shared by all processes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from vla_policy_node.outputs.files import allow_umask


def cache_root() -> Path:
    """Return `$VLA_CACHE` where it is set, else `~/.cache/vla_policy_node`."""
    configured = os.environ.get('VLA_CACHE')
    return Path(configured) if configured else Path.home() / '.cache' / 'vla_policy_node'


def digest(parts: Iterable[bytes]) -> str:
    """Return 16 hex digits that change whenever any of `parts` does."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(len(part).to_bytes(8, 'little') + part)
    return hasher.hexdigest()[:16]


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return `target`, calling `build(directory)` to fill it if it does not exist yet.

    The work is done in a temporary sibling that is renamed into place, so that a reader never
    sees half a directory. Processes that race each build their own; the first rename wins and
    the others throw theirs away. Any thread may call this.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f'.{target.name}.', dir=target.parent))
    try:
        build(draft)
        allow_umask(draft)
        draft.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target
