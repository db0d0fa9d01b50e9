"""Which part of the suite a test file belongs to: by what it imports, so that nobody lists files.

`ros` talks over DDS or needs rclpy; `sim` opens the simulated world; `slow` starts whole systems,
trains or benches. A file without any of these is in the part `unit`, unless a test in it bears
`slow` itself. What a file imports inside of a function counts as well.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
# A file that imports one of these modules, or one below it, has the mark.
IMPORTS = {
    'ros': ('rclpy',),
    'sim': ('vla_policy_node.world', 'vla_policy_node.training.recording'),
    'slow': (
        'vla_policy_node.bringup', 'vla_policy_node.bench', 'vla_policy_node.demo',
        'vla_policy_node.evaluation.evaluate', 'vla_policy_node.evaluation.run',
        'vla_policy_node.training.run', 'vla_policy_node.training.trainer', 'colcon',
    ),
}
# In this order they run: what fails soon, fails first.
PARTS = ('unit', 'ros', 'sim', 'slow')


def part_of(path: Path) -> str:
    """Return the last of PARTS that something in the file asks for."""
    names = imported_by(path)
    parts = [part for part in PARTS if any(
        name == module or name.startswith(f'{module}.')
        for name in names for module in IMPORTS.get(part, ()))]
    return parts[-1] if parts else 'unit'


def imports_of(path: Path) -> Iterator[str]:
    """Yield what a file imports anywhere in it; of `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


@cache
def imported_by(path: Path) -> frozenset[str]:
    """Return the modules that a file imports, itself or through others of this folder."""
    names = set(imports_of(path))
    for name in tuple(names):
        helper = FOLDER / f'{name}.py'
        if helper.is_file() and helper != path:
            names |= imported_by(helper)
    return frozenset(names)
