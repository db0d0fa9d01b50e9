"""A family of policies is one file: nothing outside of families/ asks which one it has."""

import ast
from pathlib import Path

import pytest

import vla_policy_node
from vla_policy_node import families

PACKAGE = Path(vla_policy_node.__file__).parent
# Where the same word is something else: a weighting of predictions that is called after its
# authors' policy.
OTHER_MEANINGS = {'control/executors.py'}
FILES = [path for path in sorted(PACKAGE.rglob('*.py')) if 'families' not in path.parts]


def branches_on_families(tree):
    """Lines that compare something with the name of a family."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.MatchValue):
            words = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            if words & set(families.available()):
                yield node.lineno if isinstance(node, ast.Compare) else node.value.lineno


@pytest.mark.parametrize('code', [
    "config.head == 'l1'", "name in ('diffusion', 'autoregressive')", "'cogact' != kind",
    "match kind:\n    case 'cogact':\n        pass"])
def test_a_branch_on_a_family_is_found(code):
    assert list(branches_on_families(ast.parse(code)))


def test_nothing_outside_of_families_branches_on_one():
    assert len(FILES) > 100
    found = {str(path.relative_to(PACKAGE)) for path in FILES
             if any(branches_on_families(ast.parse(path.read_text(encoding='utf-8'))))}
    assert found == OTHER_MEANINGS


def test_every_family_is_found_by_its_file():
    files = {path.stem for path in (PACKAGE / 'families').glob('*.py')}
    assert {'openvla_oft', 'openvla', 'cogact'} <= files
    assert {'l1', 'diffusion', 'discrete', 'autoregressive', 'cogact'} <= set(families.available())
