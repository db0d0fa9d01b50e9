"""A folder that appears complete or not at all."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vla_policy_node.outputs.files import allow_umask, flush
from vla_policy_node.outputs.folder import OutputError, clear, foreign
from vla_policy_node.outputs.listing import HERE, Listing, look

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EROFS, errno.EPERM, errno.EBUSY, errno.ENOTDIR)
_SHOWN = 3  # names in a sentence
_PARTIAL = '.partial'


def check_target(target: Path, by: str, option: str = '--out') -> None:
    """Raise OutputError for a folder that holds more than what the command wrote earlier."""
    if target.exists() and not target.is_dir():
        raise OutputError(f"'{target}' is a file; name a folder with {option}.")
    others = foreign(target, by) if target.is_dir() else []
    if others:
        more = f' and {len(others) - _SHOWN} more' if len(others) > _SHOWN else ''
        raise OutputError(
            f"'{target}' holds other files than those that {by} wrote, or changed ones "
            f'({", ".join(others[:_SHOWN])}{more}); move them away or name a new folder with '
            f'{option}.')


def check_place(target: Path, option: str = '--out') -> None:
    """Raise OutputError if no folder can be made there: before the work, not after it.

    Nothing but making one tells: rights, file systems and the length of names differ.
    """
    try:
        place = target.resolve()
        parent = place.parent
        while not parent.exists():
            parent = parent.parent
        with tempfile.TemporaryDirectory(
                prefix=f'.{place.name}-', suffix=_PARTIAL, dir=parent):
            pass
    except (OSError, RuntimeError) as error:  # also a circle of links
        reason = getattr(error, 'strerror', None) or str(error)
        raise OutputError(f"'{target}' cannot be written ({reason}); name another folder with "
                          f'{option}.') from error


@contextmanager
def whole_folder(target: Path, by: str, option: str = '--out') -> Iterator[Path]:
    """Give an empty folder that becomes `target` at the end, or vanishes if anything fails.

    What the command wrote there earlier is replaced; if there is anything else, that is an
    OutputError, and so is a full disk.
    """
    check_target(target, by, option)
    partial = None
    try:
        place = target.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(
            prefix=f'.{place.name}-', suffix=_PARTIAL, dir=place.parent))
        yield partial
        _list_all(partial, by)
        for made in (partial, *partial.rglob('*')):
            allow_umask(made)
        _put_in_place(partial, place, by, option)
    except OSError as error:
        if error.errno in _FULL:
            raise OutputError(
                f"The disk is full, so nothing was written to '{target}'; make room, or name a "
                f'folder elsewhere with {option}.') from error
        if error.errno in _FORBIDDEN:
            raise OutputError(f"'{target}' cannot be written ({error.strerror}); name another "
                              f'folder with {option}.') from error
        raise
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)  # made here, under a name of its own


def _list_all(folder: Path, by: str) -> None:
    """List, and bring to the disk, all that is in a folder that we made."""
    listed = Listing(folder, folders={HERE: by})
    for path in sorted(folder.rglob('*')):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            listed.folders[name] = by
        else:
            listed.files[name] = {'by': by, **look(path)}
            flush(path)
    listed.write()


def _put_in_place(partial: Path, target: Path, by: str, option: str) -> None:
    if not target.exists():
        partial.rename(target)
        return
    old = partial.with_name(f'{partial.name}-old')
    target.rename(old)
    try:
        check_target(old, by, option)  # somebody may have come meanwhile
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    clear(old, by)
    with suppress(OSError):
        old.rmdir()
