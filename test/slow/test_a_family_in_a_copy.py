"""docs/adding_a_family.md is true: a copy of the package in which nothing else changes runs it."""

import re
from pathlib import Path

import pytest
from package_copy import copy_package, run_in

ROOT = Path(__file__).parents[2]


def read_files(page):
    text = (ROOT / 'docs' / page).read_text(encoding='utf-8')
    return re.findall(r'`([\w/]+\.py)`[^`]*?\n\n```python\n(.*?)```', text, re.DOTALL)


FILES = [*read_files('adding_a_family.md'), *read_files('adding_a_method.md')]


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    """A copy of the package, with the files of both pages."""
    return copy_package(tmp_path_factory.mktemp('copy'), FILES)


def test_the_pages_have_a_family_and_its_test_and_a_method():
    names = [Path(name).name for name, _ in FILES]
    assert names[:2] == ['tern.py', 'test_tern.py']
    assert 'largest.py' in names


def test_its_test_and_what_is_tested_of_all_families_pass(copy):
    said = run_in(
        copy, '-m', 'pytest', '-v', '-p', 'no:cacheprovider', *(
            f'test/unit/test_{name}.py' for name in ('tern', 'families', 'layers')))
    assert 'test_it_answers_with_the_joints_of_the_robot PASSED' in said


def test_commands_and_a_new_method_take_its_checkpoint(copy):
    made = run_in(copy, '-c', (
        'import sys; sys.path.insert(0, "test/unit"); import test_tern\n'
        'from pathlib import Path\n'
        'class Here:\n'
        '    def mktemp(self, name): return Path(name).absolute()\n'
        'directory = test_tern.checkpoint.__wrapped__(Here())\n'
        'policy, chunk = test_tern.answer(directory, methods=["largest"])\n'
        'print(policy.description.architecture, chunk.tokens_kept)'))
    assert made.startswith('Tern: ViT 2x24')
    assert made.split()[-1] == '8'  # a quarter of two cameras' 32
    assert 'All checks passed.' in run_in(copy, '-m', 'vla_policy_node', 'check', 'tern')
