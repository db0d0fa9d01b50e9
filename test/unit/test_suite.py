"""What the tests owe each other: none depends on which ran before it, and quick ones run first."""

import ast
import importlib
import subprocess
import sys

import marks
import pytest

FILES = sorted(marks.TESTS.rglob('*.py'))
# Runs pytest where these modules are not installed.
WITHOUT = '''
import sys
for name in {hidden!r}:
    sys.modules[name] = None
import pytest
sys.exit(pytest.main(sys.argv[1:]))
'''


@pytest.mark.parametrize('path', FILES, ids=lambda path: f'{path.parent.name}-{path.stem}')
def test_mujoco_comes_through_the_package_that_chooses_its_renderer(path):
    """MuJoCo reads MUJOCO_GL when it is first imported, see vla_policy_node.world."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    names = [alias.name for node in tree.body if isinstance(node, ast.Import)
             for alias in node.names]
    names += [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not {name.split('.')[0] for name in names} & {'mujoco', 'libero', 'robosuite'}


@pytest.mark.parametrize('part', marks.PARTS)
def test_the_folder_of_a_file_says_its_part(part):
    assert marks.part_of(marks.TESTS / part / 'test_something.py') == part
    assert marks.part_of(marks.TESTS / part / 'deeper' / 'test_something.py') == part


@pytest.mark.parametrize('place', ['test_something.py', 'helpers/test_something.py'])
def test_a_test_outside_of_these_folders_is_refused_with_a_sentence(place):
    with pytest.raises(ValueError, match='is in none of the folders unit, ros'):
        marks.part_of(marks.TESTS / place)


@pytest.mark.slow
def test_the_quick_part_is_collected_without_what_the_others_need():
    """While its tests run, conftest.py of their folder hides the same."""
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT.format(hidden=marks.NOT_IN_UNIT), '--collect-only', '-q',
         str(marks.TESTS / 'unit')], cwd=marks.TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize('name', ['rclpy', 'rclpy.node', 'mujoco'])
def test_quick_tests_cannot_import_what_the_others_need(name):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


def test_every_test_is_in_one_part_and_the_parts_run_in_their_order(request):
    items = request.session.items
    parts = [[mark.name for mark in item.iter_markers() if mark.name in marks.PARTS]
             for item in items]
    # A test that is marked by hand bears the mark twice.
    assert all(len(set(names)) == 1 for names in parts)
    side_by_side = hasattr(request.config, 'workerinput')
    order = [(side_by_side and item.get_closest_marker('alone') is not None,
              marks.PARTS.index(names[0])) for item, names in zip(items, parts, strict=True)]
    assert order == sorted(order)
