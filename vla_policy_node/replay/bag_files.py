"""Finds the files of a recording: a folder with or without metadata, or one file.

The first bytes of a file decide what it is; names and metadata are trusted only for which files
belong together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vla_policy_node.common.plain_yaml import read_plain_yaml
from vla_policy_node.replay.storage import (
    LONGEST_NAME_BYTES,
    ZSTD,
    BoundsError,
    OtherFormError,
    regular_size,
)

METADATA = 'metadata.yaml'
_MOST_METADATA_BYTES = 4 * 2**20  # enough for days of recording in files of a minute
_MOST_FILES = 10_000
_SHOWN = 6  # names in a sentence
_BAG_NAME = re.compile(r'(.+?)\.(mcap|db3)(\.zstd|\.zst)?')
_STORAGES = ('mcap', 'sqlite3')
_FORMS = {
    b'\x89MCAP0\r\n': 'mcap', b'SQLite format 3\0': 'sqlite3', ZSTD: 'zstd'}
_NOT_READ = {
    b'#ROSBAG V': 'it is a bag of ROS 1; `rosbags-convert --src FILE.bag --dst FOLDER` makes one '
                  'of ROS 2 of it',
    b'\x1f\x8b': 'it is packed with gzip; unpack it first',
    b'PK\x03\x04': 'it is a zip archive; unpack it first',
    b'\x04\x22\x4d\x18': 'it is packed with lz4 as a whole; unpack it first',
    b'version https://git-lfs': 'it is the pointer of Git LFS in place of the file; get the file '
                                'with `git lfs pull`',
}


@dataclass(frozen=True)
class BagFiles:
    """The files of one recording.

    files: as they lie on the disk, each once, in any order. packed_messages: whether each message
    is packed with zstd, None if only its bytes can say. counted: messages by topic as metadata
    counts them. notes: sentences for the report.
    """

    files: Sequence[Path]
    packed_messages: bool | None = None
    counted: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()


def find_files(path: Path) -> BagFiles:
    """Return the files of a recording. Raises StorageError."""
    if not path.is_dir():
        return BagFiles([path])
    if (path / METADATA).exists():
        return _as_told(path)
    return _without_metadata(path)


def form_of(file: Path) -> str:
    """Return 'mcap', 'sqlite3' or 'zstd' for a file.

    A file that begins as none of them is what its name says, so that it is refused as a damaged
    one of that kind. Raises StorageError.
    """
    regular_size(file)
    with file.open('rb') as stream:
        head = stream.read(32)
    for magic, form in _FORMS.items():
        if head.startswith(magic):
            return form
    for magic, sentence in _NOT_READ.items():
        if head.startswith(magic):
            raise OtherFormError(sentence)
    named = _BAG_NAME.fullmatch(file.name)
    if not named:
        raise OtherFormError('it is neither a folder of rosbag2 nor an .mcap or .db3 file')
    return 'zstd' if named[3] else {'mcap': 'mcap', 'db3': 'sqlite3'}[named[2]]


def bag_name(path: Path) -> str:
    """Return what to call a bag: its folder, or its file without endings."""
    path = path.resolve()
    if path.name == METADATA:
        return path.parent.name
    found = None if path.is_dir() else _BAG_NAME.fullmatch(path.name)
    return found[1] if found else path.name


def _as_told(folder: Path) -> BagFiles:
    """Return the files that metadata.yaml names."""
    try:
        document: Any = read_plain_yaml(folder / METADATA, _MOST_METADATA_BYTES)
    except ValueError as error:
        raise OtherFormError(
            f"{str(error).rstrip('.')}; without it, the files themselves are read") from error
    try:
        about = document['rosbag2_bagfile_information']
        int(about['version'])
        storage = str(about.get('storage_identifier') or '')
        names = [str(name) for name in _listed(about['relative_file_paths'])]
        mode = str(about.get('compression_mode') or '').lower()
        form = str(about.get('compression_format') or '')
    except (TypeError, KeyError, AttributeError, ValueError):
        raise OtherFormError(
            f'its {METADATA} does not say what its files are; without it, the files themselves '
            'are read') from None
    if storage and storage not in _STORAGES:
        raise OtherFormError(f'its storage {storage[:20]!r} is not known')
    if mode not in ('', 'none', 'file', 'message') or (mode in ('file', 'message')
                                                       and form != 'zstd'):
        raise OtherFormError(f'its compression {form[:20]!r} by {mode[:20]!r} is not known')
    if len(names) > _MOST_FILES:
        raise BoundsError(f'it has {len(names)} files')
    if not names:
        return _without_metadata(folder)
    files = [*dict.fromkeys(_inside(folder, name) for name in names)]
    forgotten = sorted(file.name for file in recorded(folder) if file not in files)
    notes = [f'{METADATA} does not name {_some(forgotten)}, which was not read.'] * bool(forgotten)
    return BagFiles(files, mode == 'message' or None, _counted(about), notes)


def _listed(value: object) -> list:
    """Return what is a list; a text would be read letter by letter. Raises TypeError."""
    if not isinstance(value, list):
        raise TypeError
    return value


def _inside(folder: Path, name: str) -> Path:
    """Return a file of the folder; before version 4 its name begins with the folder's."""
    path = PurePosixPath(name)
    if path.is_absolute() or '..' in path.parts or not path.parts:
        raise BoundsError(f'{METADATA} names a file outside of it: {name[:80]!r}')
    for candidate in (folder / path, folder / path.name, folder / f'{path.name}.zstd'):
        if candidate.exists():
            return candidate
    raise OtherFormError(
        f'{path.name[:80]}, which its {METADATA} names, is missing; bring it back, or move '
        f'{METADATA} away to read the files that are there')


def _counted(about: Mapping) -> dict[str, int]:
    """Return the number of messages of each topic, as far as that can be understood."""
    counted: dict[str, int] = {}
    rows = about.get('topics_with_message_count')
    for row in rows if isinstance(rows, list) else ():
        try:
            name, count = str(row['topic_metadata']['name']), row['message_count']
        except (TypeError, KeyError):
            continue
        if isinstance(count, int) and 0 <= count < 2**63 and len(name) <= LONGEST_NAME_BYTES:
            counted[name] = counted.get(name, 0) + count
    return counted


def recorded(folder: Path) -> list[Path]:
    """Return what looks like a recording in a folder; one that is also there unpacked counts once.

    Links, devices and folders are among them: whoever opens them refuses.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        named = _BAG_NAME.fullmatch(file.name)
        if named and not (named[3] and (folder / f'{named[1]}.{named[2]}').exists()):
            found[file.name] = file
        if len(found) > _MOST_FILES:
            raise BoundsError(f'it has more than {_MOST_FILES} files')
    return [*found.values()]


def _without_metadata(folder: Path) -> BagFiles:
    files = recorded(folder)
    # A recording that was split is numbered: name_0.mcap, name_1.mcap.
    names = sorted({re.sub(r'_\d+$', '', bag_name(file)) for file in files})
    if len(names) == 1:
        return BagFiles(files)
    if not files:
        inner = sorted(below.name for below in folder.iterdir() if below.is_dir()
                       and ((below / METADATA).is_file() or recorded(below)))
        if not inner:
            raise OtherFormError('it is no folder of rosbag2: it has neither a metadata.yaml nor '
                                 'an .mcap or .db3 file')
        raise OtherFormError(f'it is a folder of bags ({_some(inner)}); name them, or all of '
                             f'them: {folder}/*')
    raise OtherFormError(f'it has no {METADATA} and holds recordings of {len(names)} names '
                         f'({_some(names)}); name the files')


def _some(names: Sequence[str]) -> str:
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(name[:80] for name in names[:_SHOWN]) + more
