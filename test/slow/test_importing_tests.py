"""No file of the tests computes anything when it is imported, as all are before the first test."""

import importlib.util
import sys

import marks
import pytest
from torch import nn

from vla_policy_node.families.prismatic import PrismaticVla
from vla_policy_node.runtime import loading

MODULES = [path for path in sorted(marks.TESTS.rglob('*.py'))
           if path.name != 'conftest.py' and marks.TESTS / 'data' not in path.parents]


@pytest.mark.parametrize('path', MODULES, ids=lambda path: path.stem)
def test_importing_it_runs_no_network(path, monkeypatch):
    """What a module computes when it is imported depends on what was imported before it."""
    def refuse(*_, **__):
        raise AssertionError(f'{path.name} computes while it is imported; use a fixture.')

    for owner, name in (
        (nn.Module, '__call__'), (PrismaticVla, '__init__'), (loading, 'load_model'),
    ):
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.syspath_prepend(str(path.parent))
    name = f'{path.stem}_again'
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
