"""`.vla_output.json`: lists what was written into a folder, and what of it is still unchanged.

    made_by  'vla_policy_node'; anything else is no list of ours
    format   1
    files    name -> {by: the command, bytes, sha256}, the last two once the file is finished
    folders  name -> command: those that we made, '.' for this one
    outputs  name -> command: folders with a list of their own that belong to this one

Names are relative, with '/'. The list of a folder may come from anybody: a name that leads out of
it counts as none.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from vla_policy_node.outputs.files import draft_name, flush, write_text

LIST = '.vla_output.json'
MADE_BY, FORMAT = 'vla_policy_node', 1
HERE = '.'
_LARGEST_BYTES = 64 * 2**20


@dataclass
class Listing:
    """The list of one folder; change it only within `locked`."""

    folder: Path
    files: dict[str, dict] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Listing:
        """Return the list of a folder, an empty one where there is none of ours."""
        return cls._load(folder) or cls(folder)

    @classmethod
    def is_foreign(cls, folder: Path) -> bool:
        """Whether there is something of the list's name that is no list of ours."""
        return os.path.lexists(folder / LIST) and cls._load(folder) is None

    @classmethod
    def _load(cls, folder: Path) -> Listing | None:
        path = folder / LIST
        try:
            if path.is_symlink() or path.stat().st_size > _LARGEST_BYTES:
                return None
            document = json.loads(path.read_text(encoding='utf-8'))
            if (document['made_by'], document['format']) != (MADE_BY, FORMAT):
                return None
            files = {name: _entry(entry) for name, entry in document['files'].items()
                     if is_inside(name)}
            folders, outputs = (
                {name: str(by) for name, by in document[kind].items()
                 if is_inside(name) or (kind, name) == ('folders', HERE)}
                for kind in ('folders', 'outputs'))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return cls(folder, files, folders, outputs)

    def write(self) -> None:
        """Put the list into its folder."""
        write_text(self.folder / LIST, json.dumps(
            {'made_by': MADE_BY, 'format': FORMAT, 'files': self.files,
             'folders': self.folders, 'outputs': self.outputs}, indent=1, sort_keys=True) + '\n')
        flush(self.folder / LIST)

    def is_ours(self, name: str, by: str) -> bool:
        """Whether a file is there that the command wrote and nobody changed."""
        if not self.is_file(name):
            return False
        entry = self.files.get(name)
        if entry is None:
            return any(draft_of(known) == name and self._is_unfinished(known, by)
                       for known in self.files)
        if entry['by'] != by or 'sha256' not in entry:
            return entry['by'] == by
        path = self.folder / name
        return path.stat().st_size == entry['bytes'] and look(path)['sha256'] == entry['sha256']

    def is_free(self, name: str, by: str) -> bool:
        """Whether the command may write a file: nothing is there, or only what is ours."""
        for parent in parents(name):
            if os.path.lexists(self.folder / parent) and not self.is_folder(parent):
                return False
        if os.path.lexists(self.folder / draft_of(name)) and not self._is_unfinished(name, by):
            return False
        return not os.path.lexists(self.folder / name) or self.is_ours(name, by)

    def _is_unfinished(self, name: str, by: str) -> bool:
        entry = self.files.get(name, {'sha256': ''})
        return 'sha256' not in entry and entry['by'] == by

    def is_folder(self, name: str) -> bool:
        """Whether it is a folder that is reached without a link."""
        here = self.folder
        for part in PurePosixPath(name).parts:
            here = here / part
            if here.is_symlink() or not here.is_dir():
                return False
        return True

    def is_file(self, name: str) -> bool:
        """Whether it is a regular file that is reached without a link."""
        path = self.folder / name
        return (all(map(self.is_folder, parents(name)))
                and not path.is_symlink() and path.is_file())


@contextmanager
def locked(folder: Path) -> Iterator[Listing]:
    """Give the list of a folder to one process at a time."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield Listing.read(folder)
    finally:
        os.close(handle)


def look(path: Path) -> dict:
    """Return the size and the sha256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open('rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {'bytes': size, 'sha256': digest.hexdigest()}


def parents(name: str) -> list[str]:
    """Return the folders on the way to a name, the nearest first."""
    return [str(parent) for parent in PurePosixPath(name).parents if str(parent) != HERE]


def draft_of(name: str) -> str:
    """Return the name of a listed file while it is written."""
    path = PurePosixPath(name)
    return str(path.with_name(draft_name(path.name)))


def is_inside(name: str) -> bool:
    """Whether a name stays inside of the folder, and is the shortest that does."""
    path = PurePosixPath(name)
    return (bool(path.parts) and '..' not in path.parts and not path.is_absolute()
            and '\0' not in name and str(path) == name)


def _entry(entry: dict) -> dict:
    known = {'by': str(entry['by'])}
    if 'sha256' in entry:
        known |= {'bytes': int(entry['bytes']), 'sha256': str(entry['sha256'])}
    return known
