"""Opens files that anybody may have written: regular, of bounded size, and refused by a sentence.

Whatever such a file holds, reading it ends in a value or in a ValueError that names the file; it
neither waits for a pipe, nor needs more than its size allows, nor ends the process.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MB = 1 << 20
# Of public checkpoints, the largest config.json has 150 kB and the largest index 100 kB.
JSON_BYTES = 4 * MB
JSON_DEPTH = 32  # of arrays and objects in each other; no file of ours has more than eight
SHOWN_CHARACTERS = 80
SHOWN_NAMES = 20

_KINDS = (
    (stat.S_ISDIR, 'a directory'),
    (stat.S_ISFIFO, 'a named pipe'),
    (stat.S_ISSOCK, 'a socket'),
    (stat.S_ISCHR, 'a device'),
    (stat.S_ISBLK, 'a device'),
)


# How files begin that stand in the place of others, and what to do then.
_STAND_INS = (
    (b'version https://git-lfs.github.com/spec/', 'a Git LFS pointer',
     'run `git lfs pull` in its folder'),
    (b'version https://hawser.github.com/spec/', 'a Git LFS pointer',
     'run `git lfs pull` in its folder'),
    (b'/annex/objects/', 'a pointer of git-annex', 'run `git annex get` in its folder'),
    (b'<!doctype html', 'a web page', 'download it again, from its address with /resolve/'),
    (b'<html', 'a web page', 'download it again, from its address with /resolve/'),
)


class _RefusedError(ValueError):
    """What is said already, and passes through."""


def shown(value: object) -> str:
    """A value of a file as a sentence can carry it: one line, and a short one."""
    if isinstance(value, Mapping):
        return f'an object of {len(value)} entries'
    if isinstance(value, list) and (
        len(value) > 16 or any(isinstance(item, (list, Mapping)) for item in value)
    ):
        return f'a list of {len(value)}'
    if isinstance(value, str):
        value = value[: SHOWN_CHARACTERS + 1]
    elif isinstance(value, int) and value.bit_length() > 200:
        return 'a number of more than 60 digits'
    text = ascii(value)  # what a terminal would obey becomes visible
    if len(text) > SHOWN_CHARACTERS:
        return f'{text[: SHOWN_CHARACTERS - 3]}...'
    return text


def plain(name: object) -> str:
    """A name from a file, without quotes if it has nothing strange in it."""
    text = shown(str(name))
    return text[1:-1] if text == f"'{name}'" else text


def listed(names: Iterable[object]) -> str:
    """Names from a file, the first few of them."""
    names = [*names]
    text = ', '.join(plain(name) for name in names[:SHOWN_NAMES])
    more = len(names) - SHOWN_NAMES
    return f'{text} and {more} more' if more > 0 else text


def regular_file(path: Path, largest_bytes: int | None = None) -> int:
    """Return the size in bytes of a file, or of what a link points to.

    Opening a pipe would wait for ever, and a device has no end: ValueError for whatever is no
    file, cannot be looked at, is larger than such a file ever is, or stands for another one.
    """
    if not str(path).isprintable():
        raise ValueError(f'{plain(path)} has a name that cannot be printed; rename it.')
    try:
        found = path.stat()
    except (OSError, RuntimeError) as error:  # also a link to itself
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            raise ValueError(
                f'{path} is a link to a file that is not there; copy the files themselves '
                "(`cp -rL` out of the hub's cache), or download it again.") from error
        reason = getattr(error, 'strerror', None) or error
        raise ValueError(f'{path} cannot be read ({reason}); download it again.') from error
    for is_kind, name in _KINDS:
        if is_kind(found.st_mode):
            raise ValueError(f'{path} is {name} instead of a file; put the real file there.')
    if largest_bytes is not None and found.st_size > largest_bytes:
        raise ValueError(
            f'{path} has {found.st_size:,} bytes, and such a file never has more than '
            f'{largest_bytes:,}; put the real file there.'
        )
    with suppress(OSError), path.open('rb') as stream:  # whoever reads it says what is wrong
        start = stream.read(64).lstrip().lower()
        for begins, name, remedy in _STAND_INS:
            if start.startswith(begins):
                raise ValueError(f'{path} is {name} and not the file itself; {remedy}.')
    return found.st_size


@contextmanager
def foreign(path: Path, sentence: str = 'cannot be read; the download may be incomplete') -> (
    Iterator[None]
):
    """Turn whatever a library raises about a file into a ValueError with one sentence.

    The libraries document no exceptions of their own, damaged bytes make them raise anything, and
    a panic of one that is written in Rust is not even an Exception. sentence: follows the path.
    """
    try:
        yield
    except BaseException as error:
        panicked = type(error).__name__ == 'PanicException'  # cannot be imported from anywhere
        if not isinstance(error, Exception) and not panicked:
            raise
        raise ValueError(f'{path} {sentence}.') from error


def read_json(path: Path, largest_bytes: int = JSON_BYTES, kind: type = dict) -> Any:
    """Parse a JSON file whose outermost value is of this kind, dict or list.

    In the objects of the file, an entry that is looked up and not there is a ValueError, too.
    NaN and infinity are left to whoever reads the number: in public files some stand where nobody
    looks.
    """
    regular_file(path, largest_bytes)

    class Document(dict):
        __slots__ = ()

        def __missing__(self, key: str):
            raise ValueError(f'{path} has no entry {key!r}; put the right file there.')

    def document(pairs: list[tuple[str, object]]) -> Document:
        made = Document(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in made if names.count(name) > 1)
            raise _RefusedError(
                f'{path} has two entries {shown(twice)} in one object; leave the right one.'
            )
        return made

    try:
        with path.open('rb') as stream:
            content = stream.read(largest_bytes + 1)
        value = json.loads(content.decode('utf-8'), object_pairs_hook=document)
    except _RefusedError:
        raise
    except RecursionError as error:
        raise ValueError(_too_deep(path)) from error
    except (OSError, ValueError, MemoryError) as error:
        raise ValueError(f'{path} is not valid JSON: {plain(error)}.') from error
    if _depth(value) > JSON_DEPTH:
        raise ValueError(_too_deep(path))
    if not isinstance(value, kind):
        wanted = 'an object' if kind is dict else 'a list'
        raise ValueError(
            f'{path} must hold {wanted}, not {shown(value)}; put the real file there.'
        )
    return value


def _too_deep(path: Path) -> str:
    return (
        f'{path} is not valid JSON of a checkpoint: it is nested more than {JSON_DEPTH} deep; put '
        'the real file there.'
    )


def _depth(value: object) -> int:
    """Depth of lists and objects in each other, level by level because stacks are finite."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, (list, dict))]:
        depth += 1
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth
