"""What the tests owe each other: nothing is computed before the first of them runs."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest
from torch import nn

from vla_policy_node.models import checkpoint
from vla_policy_node.models.openvla_oft import OpenVlaOft

FILES = sorted(Path(__file__).parent.glob('*.py'))
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
