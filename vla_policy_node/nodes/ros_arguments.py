"""Makes the ROS arguments of a process such that rcl takes them, or says in a sentence why not.

rcl refuses a file with `[-1, -1, 0.0]` in anybody's section, and passes over in silence a file
that has no section for the node.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rclpy.node import Node

from vla_policy_node.system.files import NODES
from vla_policy_node.system.parameter_file import (
    PARAMETERS,
    flattened,
    is_for,
    parse_value,
    read_sections,
    usable,
)

# Parameters that a section for all nodes gave this process: they may be meant for other nodes.
_for_all: set[str] = set()


def is_for_all(name: str) -> bool:
    """Return whether a parameter was given to all nodes."""
    return name in _for_all


class RosArguments:
    """The arguments to hand to rclpy, as a context manager: its files exist until it ends.

    given: with the program's name; None: those of this process. Raises ValueError with one
    sentence.
    """

    def __init__(self, given: Sequence[str] | None = None):
        self._files: dict[str, list[str]] = {}  # sections of each parameter file
        self._folder = tempfile.TemporaryDirectory(prefix='vla_parameters_')
        self.usable: list[str] = []
        try:
            self._rewrite(list(sys.argv if given is None else given))
        except ValueError:
            self._folder.cleanup()
            raise

    def __enter__(self) -> RosArguments:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove the files."""
        self._folder.cleanup()

    def warn(self, node: Node) -> None:
        """Warn of files that have nothing for a node: it runs with its defaults."""
        name, namespace = node.get_name(), node.get_namespace()
        for path, sections in self._files.items():
            if not any(is_for(section, name, namespace) for section in sections):
                node.get_logger().warning(
                    f"'{path}' has no parameters for {node.get_fully_qualified_name()}, only for "
                    f'{", ".join(sections)[:200] or "nobody"}; call the section '
                    f'{node.get_fully_qualified_name()}, or /** for any node.')

    def _rewrite(self, given: list[str]) -> None:
        is_ros, before = False, ''
        for argument in given:
            if argument in ('--ros-args', '--'):
                is_ros = argument == '--ros-args'
            elif is_ros and before == '--params-file':
                argument = self._file(argument)
            elif is_ros and before in ('-p', '--param'):
                argument = _rule(argument)
            self.usable.append(argument)
            before = argument

    def _file(self, path: str) -> str:
        sections = read_sections(path)
        self._files[path] = list(sections)
        taken: dict[str, Any] = {}
        for key, section in sections.items():
            is_ours = '*' in key or key.rpartition('/')[2] in NODES
            try:
                if not isinstance(section, dict):
                    raise ValueError(f"The section '{key}' has no '{PARAMETERS}:'.")
                values = {name: usable(name, value) for name, value in flattened(section).items()}
            except ValueError as error:
                if is_ours:
                    raise ValueError(f"In '{path}': {error}") from error
                continue
            if '*' in key:
                _for_all.update(values)
            taken[f'/{key}' if '/' in key[1:] and key[0] != '/' else key] = {PARAMETERS: values}
        if repr(taken) == repr({key: {PARAMETERS: section} for key, section in sections.items()}):
            return path
        file = Path(self._folder.name) / f'{len(self._files)}.yaml'
        file.write_text(json.dumps(taken, ensure_ascii=False), encoding='utf-8')
        return str(file)


def _rule(rule: str) -> str:
    """Return a rule 'name:=value' with a value that rcl can take."""
    name, sign, text = rule.partition(':=')
    try:
        value = parse_value(text)
    except ValueError:
        return rule  # rcl says why
    better = usable(name, value) if value is not None else value
    return rule if repr(better) == repr(value) else f'{name}{sign}{json.dumps(better)}'
