"""Atomic file writing: a file gets its name only once it is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def draft_name(name: str) -> str:
    """Return the name of a file while it is written."""
    return f'.{name}.partial'


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """Give a name to write under; the file gets its own when it is whole."""
    partial = path.with_name(draft_name(path.name))
    partial.unlink(missing_ok=True)  # of a run that was killed; never written through a link
    try:
        yield partial
        allow_umask(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file that has its name only when it is whole."""
    with draft(path) as partial:
        # Names of files may be no UTF-8.
        partial.write_text(text, encoding='utf-8', errors='backslashreplace')


def write_json(path: Path, document: object) -> None:
    """Write a document of plain values, sorted, so that the same values are the same bytes."""
    write_text(path, json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + '\n')


def allow_umask(path: Path) -> None:
    """Give a file or folder the mode of ordinary ones: libraries make private ones for safety."""
    mask = os.umask(0o077)  # there is no other way to read it; strict meanwhile
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def flush(file: Path) -> None:
    """Make sure that the disk has a file; a full one may tell only now."""
    with file.open('rb') as handle:
        os.fsync(handle.fileno())
