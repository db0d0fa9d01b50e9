"""Reads YAML from untrusted sources: bounded size and depth, no aliases."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import yaml

_LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
_DEEPEST = 32
_OPEN = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_CLOSE = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


def read_plain_yaml(path: Path, most_bytes: int) -> object:
    """Return the plain values of a YAML file.

    Raises ValueError with one sentence for a file that is no regular one or larger, for anchors,
    tags, merged keys and deep nesting, and for what is no YAML.
    """
    data = read_regular(path, most_bytes)
    try:
        text = data.decode()
    except ValueError as error:
        raise ValueError(f"'{path}' is not YAML.") from error
    return parse_plain_yaml(text, f"'{path}'")


def parse_plain_yaml(text: str, name: str, loader: Any = _LOADER) -> object:
    """Return the plain values of a YAML text, which messages call by a name.

    loader: a safe one, which decides what is a number. Raises ValueError as `read_plain_yaml`.
    """
    try:
        problem = _problem(text)
        values = None if problem else yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also of numbers and dates
        where = getattr(error, 'problem_mark', None)
        place = f' in line {where.line + 1}' if where else ''
        raise ValueError(f'{name} is not YAML{place}.') from error
    if problem:
        raise ValueError(f'{name} {problem}.')
    return values


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Return a regular file's bytes. Raises ValueError if it is none, or larger."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"'{path}' is no regular file.")
        with path.open('rb') as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise ValueError(f"'{path}' cannot be read: {error.strerror}.") from error
    if len(data) > most_bytes:
        raise ValueError(f"'{path}' has more than {most_bytes} bytes, which no such file needs.")
    return data


def _problem(text: str) -> str:
    """Return what is not plain about a document, '' if nothing."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        anchored = getattr(event, 'anchor', None) is not None
        tagged = getattr(event, 'tag', None) not in (None, '!')
        merged = isinstance(event, yaml.ScalarEvent) and event.value == '<<'
        if anchored or merged or tagged:
            return 'has anchors, merged keys or tags; only plain values are read from it'
        depth += isinstance(event, _OPEN) - isinstance(event, _CLOSE)
        if depth > _DEEPEST:
            return f'is nested more than {_DEEPEST} deep'
    return ''
