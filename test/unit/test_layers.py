"""The order of the layers, which the README's section on architecture holds, and nothing else."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / 'vla_policy_node'
ROS = re.compile(r'rclpy|\w+_msgs|\w+_interfaces|\w+_srvs|rosidl_\w+|rpyutils|launch(_\w+)?')
WATCHED = {'torch', 'mujoco', 'rosbags', 'rclpy'}
# The command line's entry points lie beside the folders.
ENTRIES = {'__init__', '__main__'}


def read_layers() -> list[tuple[list[str], set[str]]]:
    """Return the lines of the README's table, lowest first: modules, and what they need."""
    section = (ROOT / 'README.md').read_text().split('\n## Architecture\n')[1].split('\n## ')[0]
    rows = [line.strip('|').split('|') for line in section.splitlines() if line.startswith('|')]
    return [([name.rstrip('/').removesuffix('.py').replace('/', '.')
              for name in re.findall(r'`([\w/.]+)`', folders)],
             set(re.findall(r'`(\w+)`', needs)))
            for folders, _, needs in rows[2:]]


LAYERS = read_layers()
PLACE = {name: place for place, (names, _) in enumerate(LAYERS) for name in names}


def layer_of(module: str) -> str:
    """Return the entry of the table that a module (below the package) belongs to."""
    parts = module.split('.')
    return next(name for length in range(len(parts), 0, -1)
                if (name := '.'.join(parts[:length])) in PLACE)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and name of all that is imported, in functions too.

    Left out is what only a type checker imports: it is never executed, and a network may say what
    kind of method changes it while the method imports the network.
    """
    tree = ast.parse(path.read_text())
    only_types = {id(inner) for node in ast.walk(tree)
                  if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test)
                  for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path}:{node.lineno}: write imports out'
            for alias in node.names:
                yield node.lineno, f'{node.module}.{alias.name}'


MODULES = {
    '.'.join(path.relative_to(PACKAGE).with_suffix('').parts).removesuffix('.__init__'): path
    for path in sorted(PACKAGE.rglob('*.py'))}
FOLDERS = sorted({module.partition('.')[0] for module in MODULES} - ENTRIES)


def test_every_folder_has_its_place_and_every_place_a_folder():
    assert {name.partition('.')[0] for name in PLACE} == set(FOLDERS)
    assert not set(PLACE) - {*FOLDERS, *MODULES}


@pytest.mark.parametrize('folder', FOLDERS)
def test_no_folder_imports_one_above_it(folder):
    wrong = []
    for module, path in MODULES.items():
        if module.partition('.')[0] != folder:
            continue
        here = layer_of(module)
        for line, name in imports(path):
            if not name.startswith('vla_policy_node.'):
                continue
            there = layer_of(name.removeprefix('vla_policy_node.'))
            if there != here and PLACE[there] >= PLACE[here]:
                wrong.append(f'{path.relative_to(ROOT)}:{line} imports {name}')
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('folder', FOLDERS)
def test_a_folder_needs_what_the_table_says(folder):
    found, declared = set(), set()
    for module, path in MODULES.items():
        if module.partition('.')[0] != folder:
            continue
        _, needs = LAYERS[PLACE[layer_of(module)]]
        declared |= needs
        for line, name in imports(path):
            top = name.partition('.')[0]
            top = 'rclpy' if ROS.fullmatch(top) else top
            if top in WATCHED and top not in needs:
                found.add(f'{path.relative_to(ROOT)}:{line} imports {name}')
    assert declared <= WATCHED
    assert not found, '\n'.join(sorted(found))
