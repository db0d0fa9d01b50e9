"""A folder that is there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What a folder of ours holds, whole or (of many bags) unfinished; others are never replaced.
MARK = 'report.json'
_MARKS = (MARK, 'plan.json')


class OutputError(ValueError):
    """The results cannot be written; one sentence says why and what to do."""


def check_target(target: Path) -> None:
    """Raise OutputError for a folder that holds something else than an earlier report."""
    if target.exists() and not target.is_dir():
        raise OutputError(f"'{target}' is a file; name a folder with --out.")
    is_ours = any((target / mark).is_file() for mark in _MARKS)
    if target.is_dir() and any(target.iterdir()) and not is_ours:
        raise OutputError(f"'{target}' holds other files; name a new folder with --out.")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder that becomes `target` at the end, or vanishes if anything fails.

    An earlier report of that name is replaced. A full disk is an OutputError.
    """
    check_target(target)
    partial = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f'.{target.name}-', dir=target.parent))
        yield partial
        for file in partial.rglob('*'):
            _flush(file)  # a full disk may tell only now
        partial.chmod(0o755)
        if target.exists():
            old = partial.with_name(f'{partial.name}-old')
            target.rename(old)
            partial.rename(target)
            shutil.rmtree(old)
        else:
            partial.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"The disk is full, so nothing was written to '{target}'; make room, or name a "
                'folder elsewhere with --out.') from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise OutputError(f"'{target}' cannot be written ({error.strerror}); name another "
                              'folder with --out.') from error
        raise
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, document: object) -> None:
    """Write a document of plain values, sorted, so that the same values are the same bytes."""
    write_text(path, json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + '\n')


def write_text(path: Path, text: str) -> None:
    """Write a file that has its name only when it is whole."""
    partial = path.with_name(f'.{path.name}.partial')
    try:
        partial.write_text(text, encoding='utf-8')
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _flush(file: Path) -> None:
    if file.is_file():
        with file.open('rb') as handle:
            os.fsync(handle.fileno())
