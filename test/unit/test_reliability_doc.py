"""docs/reliability.md links each promise to tests, and they exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = sorted(set(re.findall(
    r'(test_\w+\.py)(?:::(\w+))?', (ROOT / 'docs' / 'reliability.md').read_text())))


def test_promises_are_linked_to_tests():
    assert sum(bool(name) for _, name in NAMED) > 20


@pytest.mark.parametrize(('file', 'name'), NAMED)
def test_what_is_named_exists(file, name):
    (path,) = [*(ROOT / 'test').rglob(file)]
    functions = {node.name for node in ast.parse(path.read_text()).body
                 if isinstance(node, ast.FunctionDef)}
    assert not name or name in functions
