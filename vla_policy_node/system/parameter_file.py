"""Reads ROS 2 parameter files: all that rcl reads, and what it refuses although it is clear.

Lists of both whole and other numbers, and `$(find-pkg-share ...)` and `$(env ...)` in values, as
launch files have them. Sections may be anybody's; only those that a node needs must be right.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from vla_policy_node.common.plain_yaml import parse_plain_yaml, read_regular

PARAMETERS = 'ros__parameters'
_MOST_BYTES = 2**20
_SUBSTITUTION = re.compile(r'\$\(([^()]*)\)')
# Numbers as rcl reads them: 1e-3 is one, a date, 1:30 and 1_000 are none.
_NUMBERS = {
    'int': r'^[-+]?(0|[1-9][0-9]*|0x[0-9a-fA-F]+)$',
    'float': r'^([-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)'
             r'|\.(nan|NaN|NAN))$',
}


_SAFE_LOADER: Any = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


class _Loader(_SAFE_LOADER):
    pass


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers
            if tag.rpartition(':')[2] not in (*_NUMBERS, 'timestamp')]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()}
for _kind, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(
        f'tag:yaml.org,2002:{_kind}', re.compile(_pattern), list('-+.0123456789'))


def read_sections(path: Path | str) -> dict[str, Any]:
    """Return what is below `ros__parameters:` of each section, by its name as in the file.

    A section of nested namespaces is called by all of them: 'r1/policy'. Raises ValueError with
    one sentence for what is no parameter file.
    """
    path = Path(path).expanduser()
    text = read_regular(path, _MOST_BYTES).decode(errors='replace')
    document = parse_plain_yaml(text, f"'{path}'", _Loader)
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ValueError(f"'{path}' has no sections; write names of nodes, each with "
                         f"'{PARAMETERS}:' and the parameters below it.")
    return dict(_sections('', document))


def parse_value(text: str) -> object:
    """Return the value that a text of YAML means to rcl. Raises ValueError."""
    return parse_plain_yaml(text, 'The value', _Loader)


def is_for(section: str, node: str, namespace: str = '') -> bool:
    """Return whether a section is for a node, as rcl decides: '/**', '/*/policy', '/r1/policy'."""
    pattern = ''.join(
        '(/[^/]+)*' if token == '**' else '/' + re.escape(token).replace(r'\*', '[^/]*')
        for token in section.strip('/').split('/'))
    return re.fullmatch(pattern, f'{namespace.rstrip("/")}/{node}') is not None


def flattened(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Return the values of nested parameters under their names, with dots."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            result |= flattened(value, f'{prefix}{name}.')
        else:
            result[f'{prefix}{name}'] = value
    return result


def usable(name: str, value: Any) -> Any:
    """Return a value as rcl can take it. Raises ValueError with a sentence for what it cannot."""
    if isinstance(value, str):
        return _SUBSTITUTION.sub(lambda match: _substituted(name, match.group(1)), value)
    if isinstance(value, list):
        kinds = {type(element) for element in value}
        if kinds == {int, float}:
            return [float(element) for element in value]
        if len(kinds) > 1 or kinds & {list, dict, type(None)}:
            raise ValueError(f'{name} is {str(value)[:60]}; a list holds values of one kind.')
        return [usable(name, element) for element in value]
    if value is None:
        raise ValueError(f"{name} has no value; write '' for an empty string.")
    return value


def _sections(prefix: str, document: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, section in document.items():
        name = f'{prefix}/{str(key).strip("/")}' if prefix else str(key)
        if isinstance(section, dict) and PARAMETERS not in section and section and all(
                isinstance(inner, dict) for inner in section.values()):
            yield from _sections(name, section)
        else:
            yield name, section.get(PARAMETERS) if isinstance(section, dict) else None


def _substituted(name: str, text: str) -> str:
    kind, *words = text.split() or ['']
    if kind == 'find-pkg-share' and len(words) == 1:
        return str(_share(name, words[0]))
    if kind == 'env' and len(words) in (1, 2):
        found = os.environ.get(*words)
        if found is None:
            raise ValueError(f'{name} names $(env {words[0]}), which is not set.')
        return found
    raise ValueError(f"{name} has '$({text})'; only $(find-pkg-share PACKAGE) and $(env NAME) are "
                     'replaced in parameter files.')


def _share(name: str, package: str) -> Path:
    from vla_policy_node.system.files import PACKAGE, share_directory

    if package == PACKAGE:
        return share_directory()
    try:
        from ament_index_python.packages import get_package_share_directory

        return Path(get_package_share_directory(package))
    except (ImportError, LookupError, ValueError, OSError) as error:
        raise ValueError(
            f"{name} names the package '{package}', which is not installed here; source its "
            'workspace, or write the path.') from error
