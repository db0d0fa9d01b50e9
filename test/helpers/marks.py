"""Which part of the suite a test belongs to: the folder of its file; and what files import."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
# In this order they run: what fails soon, fails first.
PARTS = ('unit', 'ros', 'sim', 'gpu', 'slow')
# What the tests of the part `unit` do without, and with them whoever has neither.
NOT_IN_UNIT = ('rclpy', 'mujoco')
# Whoever imports it talks over DDS, where what is late is lost.
_LIVE = 'ros_testing'


def part_of(path: Path) -> str:
    """Return the part whose folder a test file is in.

    Raises:
        ValueError: it is in none of them.
    """
    part = path.relative_to(TESTS).parts[0]
    if part not in PARTS:
        raise ValueError(f'{path.name} is in none of the folders {", ".join(PARTS)} of {TESTS}.')
    return part


@cache
def is_live(path: Path) -> bool:
    """Whether a test file runs nodes, which have deadlines of a real clock."""
    return _LIVE in imports_of(path)


def imports_of(path: Path) -> Iterator[str]:
    """Yield what a file imports anywhere in it; of `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)
