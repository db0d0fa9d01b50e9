"""What the tests owe each other: none depends on which ran before it, and quick ones run first."""

import ast
import importlib.util
import sys
from pathlib import Path

import marks
import pytest
from torch import nn

from vla_policy_node.models import checkpoint
from vla_policy_node.models.openvla_oft import OpenVlaOft

FILES = sorted(Path(__file__).parent.rglob('*.py'))
MODULES = [path for path in FILES if path.name != 'conftest.py']


@pytest.mark.parametrize('path', MODULES, ids=lambda path: path.stem)
def test_importing_it_runs_no_network(path, monkeypatch):
    """What a module computes when it is imported depends on what was imported before it."""
    def refuse(*_, **__):
        raise AssertionError(f'{path.name} computes while it is imported; use a fixture.')

    for owner, name in (
        (nn.Module, '__call__'), (OpenVlaOft, '__init__'), (checkpoint, 'load_model'),
    ):
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.syspath_prepend(str(path.parent))
    name = f'{path.stem}_again'
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_mujoco_comes_through_the_package_that_chooses_its_renderer(path):
    """MuJoCo reads MUJOCO_GL when it is first imported, see vla_policy_node.world."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    names = [alias.name for node in tree.body if isinstance(node, ast.Import)
             for alias in node.names]
    names += [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not {name.split('.')[0] for name in names} & {'mujoco', 'libero', 'robosuite'}


@pytest.mark.parametrize(('line', 'part'), [
    ('import numpy as np', 'unit'),
    ('from vla_policy_node.control.limits import Limits', 'unit'),
    ('from rclpy.node import Node', 'ros'),
    ('from ros_testing import spin_until', 'ros'),
    ('def test_it():\n    import rclpy', 'ros'),
    ('from vla_policy_node.world.layouts import shuffle', 'sim'),
    ('from vla_policy_node import bringup', 'slow'),
    ('from vla_policy_node.training import (\n    run,\n)', 'slow'),
    ('from ros_testing import ros\nfrom vla_policy_node.training.run import train', 'slow'),
])
def test_what_a_file_imports_says_its_part(tmp_path, line, part):
    path = tmp_path / 'test_something.py'
    path.write_text(f'"""A test."""\n\n{line}\n')
    assert marks.part_of(path) == part


def test_every_test_is_in_one_part_and_the_parts_run_in_their_order(request):
    parts = [[mark.name for mark in item.iter_markers() if mark.name in marks.PARTS]
             for item in request.session.items]
    # A test that is marked by hand bears the mark twice.
    assert all(len(set(names)) == 1 for names in parts)
    order = [marks.PARTS.index(names[0]) for names in parts]
    assert order == sorted(order)
