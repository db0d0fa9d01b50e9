"""Writes into folders that may also hold other people's files."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vla_policy_node.outputs.files import draft_name
from vla_policy_node.outputs.listing import (
    HERE,
    LIST,
    Listing,
    draft_of,
    is_inside,
    locked,
    look,
    parents,
)

LOCK = '.lock'  # empty; what `alone` holds


class OutputError(ValueError):
    """The results cannot be written; one sentence says why and what to do."""


def claim(
    folder: Path, names: Sequence[str], by: str, outputs: Sequence[str] = (), anew: bool = False
) -> None:
    """List files that a command is about to write; make the folder.

    names: relative to the folder, with '/'. by: the command. outputs: folders in it that get a
    list of their own, see `whole.whole_folder`. anew: remove what the command wrote there earlier,
    whatever its name. Raises OutputError, and changes nothing, if there is something of one of the
    names that is not ours.
    """
    try:
        _claim(folder, names, by, outputs, anew)
    except OSError as error:
        raise OutputError(f"'{folder}' cannot be written ({error.strerror}); write elsewhere."
                          ) from error


def _claim(
    folder: Path, names: Sequence[str], by: str, outputs: Sequence[str], anew: bool
) -> None:
    made = not folder.exists()
    for name in filter(is_inside, names):
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(folder / draft_of(name))  # too long a name
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as listed:
        taken = [LIST] if Listing.is_foreign(folder) else []
        taken += [name for name in names if not is_inside(name) or not listed.is_free(name, by)]
        if taken:
            raise OutputError(
                f"'{folder / taken[0]}' is there already and was not written by {by}, or was "
                'changed since; move it away or write elsewhere.')
        if anew:
            _remove(listed, by, lambda name: True)
        listed.files.update({name: {'by': by} for name in names})
        listed.outputs.update(dict.fromkeys(outputs, by))
        listed.folders.update({
            parent: by for name in (*names, *outputs) for parent in parents(name)
            if not os.path.lexists(folder / parent)})
        if made:
            listed.folders[HERE] = by
        listed.write()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for it out of a folder in which LOCK is claimed.

    Raises OutputError if one is there. The kernel ends it with the process, however that ends.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"Another process writes into '{folder}'; wait for it, or take another --out."
            ) from error
        yield
    finally:
        os.close(handle)


def claim_file(path: Path, by: str) -> None:
    """As `claim`, for one file."""
    claim(path.parent, [path.name], by)


@contextmanager
def claimed(
    folder: Path, names: Sequence[str], by: str, outputs: Sequence[str] = ()
) -> Iterator[None]:
    """Claim files; what is not there if it fails in here is not listed, and no list stays for it.

    The files are still to be sealed where it succeeds.
    """
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    claim(folder, names, by, outputs)
    try:
        yield
    except BaseException:
        with suppress(OSError), locked(folder) as listed:
            _settle(listed, by, names)
            for known in (listed.outputs, listed.folders):
                for name in [*known]:
                    if name != HERE and not listed.is_folder(name):
                        del known[name]
            _write_or_vanish(listed)
        for parent in missing:
            with suppress(OSError):  # there is something in it
                parent.rmdir()
        raise


def seal(folder: Path, by: str, names: Sequence[str] | None = None) -> None:
    """Note what the files of a command look like, now that it has finished.

    names: those that it finished; None for all. What is not there is no longer listed. A file
    that is changed from here on is somebody else's work.
    """
    with locked(folder) as listed:
        _settle(listed, by, names)
        _write_or_vanish(listed)


def _settle(listed: Listing, by: str, names: Sequence[str] | None) -> None:
    for name, entry in [*listed.files.items()]:
        if entry['by'] == by and 'sha256' not in entry and (names is None or name in names):
            if listed.is_file(name):
                listed.files[name] = {'by': by, **look(listed.folder / name)}
            else:
                del listed.files[name]


def clear(folder: Path, by: str, below: str = '') -> None:
    """Remove what a command wrote into the folder, or `below` a folder in it; nothing else.

    Folders that it made go with their last file, the folder itself included.
    """
    if not folder.is_dir() or Listing.is_foreign(folder):
        return
    with locked(folder) as listed:
        _remove(listed, by, lambda name: not below or f'{name}/'.startswith(f'{below}/'))
        _write_or_vanish(listed)


def _write_or_vanish(listed: Listing) -> None:
    """Write the list; if nothing is on it, remove it, and the folder if we made it."""
    if listed.files or listed.outputs or listed.folders.keys() - {HERE}:
        listed.write()
        return
    (listed.folder / LIST).unlink(missing_ok=True)
    if HERE in listed.folders:
        with suppress(OSError):  # not empty: the rest is not ours
            listed.folder.rmdir()


def foreign(folder: Path, by: str) -> list[str]:
    """Return the names of all in a folder that a command did not write, in order."""
    listed = Listing.read(folder)
    found: list[str] = []

    def walk(at: Path, prefix: str) -> None:
        for path in sorted(at.iterdir()):
            name = f'{prefix}{path.name}'
            if path.is_dir() and not path.is_symlink():
                if listed.outputs.get(name) == by:
                    found.extend(f'{name}/{inner}' for inner in foreign(path, by))
                elif listed.folders.get(name) == by:
                    walk(path, f'{name}/')
                elif not _is_left_over(path.name, listed):
                    found.append(name)
            elif name in (LIST, draft_name(LIST)):
                if Listing.is_foreign(folder):
                    found.append(name)
            elif not listed.is_ours(name, by):
                found.append(name)

    walk(folder, '')
    return found


def _remove(listed: Listing, by: str, chosen: Callable[[str], bool]) -> None:
    """Remove what is ours and chosen from the disk; what is left of it is no longer listed."""
    folder = listed.folder
    for name, entry in [*listed.files.items()]:
        if entry['by'] == by and chosen(name):
            for part in (draft_of(name), name):
                if listed.is_ours(part, by):
                    (folder / part).unlink()
            del listed.files[name]
    for name, owner in [*listed.outputs.items()]:
        if owner == by and chosen(name):
            if listed.is_folder(name):
                clear(folder / name, by)
            del listed.outputs[name]
    for name in sorted(listed.folders, key=lambda name: -name.count('/')):
        if name != HERE and listed.folders[name] == by and chosen(name):
            if listed.is_folder(name):
                with suppress(OSError):  # not empty
                    (folder / name).rmdir()
            del listed.folders[name]


def _is_left_over(name: str, listed: Listing) -> bool:
    """Whether it is the unfinished folder of an output whose process was killed."""
    found = re.fullmatch(r'\.(.+)-\w{8}\.partial(-old)?', name)
    return bool(found) and found[1] in listed.outputs
