"""docs/adding_a_method.md is true: with its files the package has two methods and a stage more.

The files go into a copy of the package, in which nothing else changes.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from package_copy import copy_package, run_in

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / 'docs' / 'adding_a_method.md').read_text(encoding='utf-8')
FILES = re.findall(r'`([\w/]+\.(?:py|yaml))`:\n\n```(?:python|yaml)\n(.*?)```', TEXT, re.DOTALL)
CONTRACT = ('test_methods_contract.py', 'test_methods_declare.py', 'test_optimised_forward.py',
            'test_training_stages.py', 'test_largest.py')
STAGE = '''
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, 'test/helpers')
from training_data import CAMERAS, make_demonstrations, small_config
from vla_policy_node.commands.train import stage_config
from vla_policy_node.policy.interface import InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime.small import create_small_checkpoint
from vla_policy_node.training.stage_run import Run, train

start = create_small_checkpoint(Path('start'), config=small_config())
config = stage_config(
    'things', None, ['steps=2', 'batch=4', 'validate_every_steps=2', 'validation_frames=4'])
assert config.objective == {'smoothing': 0.05}
checkpoint = train(Run(config, start, make_demonstrations(Path('demos')), None, Path('run')))
policy = LocalPolicy.load(checkpoint, methods=['thing_tokens'])
gray = np.full((56, 56, 3), 128, np.uint8)
chunk = policy.infer(InferenceRequest(
    Observation(dict.fromkeys(CAMERAS, gray), np.zeros(8), 'pick it up')))
assert chunk.tokens_kept == 8
try:
    LocalPolicy.load(start, methods=['thing_tokens'])
except ValueError as error:
    assert str(error).endswith(': train it with `vla train things`.'), error
'''


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    """A copy of the package, with the files of the text."""
    return copy_package(tmp_path_factory.mktemp('copy'), FILES)


def test_the_text_has_two_methods_a_test_a_stage_and_its_entries():
    assert [Path(name).name for name, _ in FILES] == [
        'largest.py', 'test_largest.py', 'thing_tokens.py', 'thing_tokens_training.py',
        'things.yaml']


def test_what_every_method_must_satisfy_is_tested_for_the_new_ones(copy):
    said = run_in(
        copy, '-m', 'pytest', '-v', '-p', 'no:cacheprovider', '-m', 'not slow',
        '-k', 'largest or thing', *(f'test/unit/{name}' for name in CONTRACT))
    for name in ('largest', 'thing_tokens'):
        for law in ('switched_off_it_changes_no_bit', 'says_what_switches_it_off',
                    'does_what_it_declares', 'offers_less_than_it_needs',
                    'choice_before_layer_0_is_the_same'):
            assert re.search(rf'{law}\w*\[{name}\b.* PASSED', said), (name, law)
    assert re.search(r'test_the_yaml_of_a_stage_has_its_name_and_entries\[things\] PASSED', said)
    assert 'test_dropping_tokens_equals_hiding_them[largest] PASSED' in said
    assert 'test_the_largest_stay PASSED' in said


def test_the_reference_and_the_bench_list_them(copy):
    said = run_in(copy, '-c', (
        'from scripts.reference.methods import page\n'
        'from vla_policy_node.bench.methods_rows import contenders\n'
        'print(page(), [contender.label for contender in contenders()])'))
    for name in ('largest', 'thing_tokens'):
        assert f'## `{name}`' in said
        assert f"'{name}'" in said


def test_the_stage_trains_and_its_checkpoint_runs_the_method(copy):
    run_in(copy, '-c', STAGE)


def test_the_files_pass_the_linter(copy):
    ruff = shutil.which('ruff', path=str(Path(sys.executable).parent))
    if ruff is None:
        pytest.skip('ruff is not installed')
    done = subprocess.run([ruff, 'check', *(name for name, _ in FILES if name.endswith('.py'))],
                          cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_files_that_it_names_exist():
    added = {name for name, _ in FILES}
    for name in re.findall(r'`((?:test|training|config|vla_policy_node)/[\w/.]+)`', TEXT):
        assert name in added or (ROOT / name).exists(), name
