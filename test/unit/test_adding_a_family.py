"""The worked example of docs/adding_a_family.md is true: its family and its test run."""

import dataclasses
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils import flop_counter

from vla_policy_node import acceleration, families
from vla_policy_node.bench.pictures import seen_by
from vla_policy_node.bench.policy import load_rows, run_rows
from vla_policy_node.bench.policy_variants import PolicyCache, list_variants
from vla_policy_node.checks.findings import FAIL, PASS
from vla_policy_node.checks.report import check_checkpoint
from vla_policy_node.commands.train import stage_config
from vla_policy_node.policy import load_policy
from vla_policy_node.policy.interface import (
    InferenceRequest,
    Observation,
    PolicySpec,
    Quantity,
)
from vla_policy_node.policy.warm_up import grey_observation
from vla_policy_node.runtime import compiling
from vla_policy_node.runtime.loading import load_model
from vla_policy_node.runtime.static_forward import OTHERS_BUCKET, VISUAL_BUCKET
from vla_policy_node.training.compress import CompressionRecipe, compress
from vla_policy_node.training.stage_run import Run, train

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / 'docs' / 'adding_a_family.md').read_text(encoding='utf-8')
FAMILY, TEST = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)


@pytest.fixture(scope='module')
def family():
    """The family as if its file lay in families/, while these tests run."""
    with pytest.MonkeyPatch.context() as patch:
        module = types.ModuleType('vla_policy_node.families.tern')
        patch.setitem(sys.modules, module.__name__, module)
        exec(compile(FAMILY, 'tern.py', 'exec'), module.__dict__)
        (made,) = families.families_in(module).items()
        patch.setitem(families._FAMILIES, *made)
        yield made[1]


@pytest.fixture(scope='module')
def example(family):
    """What the page's test defines, with its fixture as a function."""
    module = types.ModuleType('test_tern')
    source = TEST.replace("@pytest.fixture(scope='module')\ndef checkpoint", 'def checkpoint')
    exec(compile(source, 'test_tern.py', 'exec'), module.__dict__)
    return module


@pytest.fixture(scope='module')
def checkpoint(example, tmp_path_factory):
    return example.checkpoint(tmp_path_factory)


@pytest.mark.parametrize(('name', 'code'), [('tern.py', FAMILY), ('test_tern.py', TEST)])
def test_its_files_keep_to_the_style_of_the_package(name, code, tmp_path):
    (tmp_path / name).write_text(code)
    command = [sys.executable, '-m', 'ruff', 'check', '--extend-ignore', 'D103',
               '--config', ROOT / 'pyproject.toml']
    checked = subprocess.run(
        [*command, tmp_path / name], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_its_test_passes(example, checkpoint):
    tests = [name for name in vars(example) if name.startswith('test_')]
    assert len(tests) == 2
    for name in tests:
        getattr(example, name)(checkpoint)


@pytest.fixture
def policy(checkpoint):
    return load_policy(checkpoint, methods=())


def test_vla_check_finds_nothing_wrong(checkpoint):
    findings = {finding.name: finding for finding in check_checkpoint(checkpoint)}
    assert not [finding for finding in findings.values() if finding.verdict == FAIL]
    assert findings['images'].verdict == findings['files'].verdict == PASS


def test_what_it_says_it_costs_is_what_torch_counts(policy):
    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            lambda query, key, value, *_, **__: flop_counter.sdpa_flop_count(query, key, value)}
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping=attention)
    with counter:
        chunk = policy.infer(InferenceRequest(grey_observation(policy.description)))
    assert chunk.flops == counter.get_total_flops()


def test_rows_without_methods_are_those_that_are_counted_ahead(policy):
    request = InferenceRequest(grey_observation(policy.description))
    policy.infer(request)
    ids = policy.inputs.encode_prompt(request.observation.instruction)
    rows = families.sequence_rows(policy.config, len(ids))
    ahead = families.count_flops(policy.config, [rows] * policy.config.language_model.layers)
    assert ahead == families.count_flops(policy.config, policy.layer_rows)


def test_the_bench_times_it_in_every_way_that_it_runs(checkpoint, policy):
    cache = PolicyCache(checkpoint, 'cpu', 1, load_model, {})
    ways = [way for way in list_variants('cpu', compiled=False) if way.dtype == 'float32']
    console = Console(quiet=True)
    rows = run_rows(load_rows(cache, ways, console), [grey_observation(policy.description)], 1, 1,
                    console)
    assert {row.variant.name for row in rows} == {
        f'{method}, {way}' for method in ('dense', 'lightvla')
        for way in ('plain', 'fused', 'fixed shapes')}
    assert all(row.stored[stage] > 0 for row in rows for stage in ('vision', 'head', 'all'))


def test_the_bench_shows_its_cameras_pictures_of_others():
    pictures = {'a': np.zeros((2, 2, 3), np.uint8), 'b': np.ones((2, 2, 3), np.uint8)}
    spec = PolicySpec(('x', 'y', 'z'), (Quantity('q'),))
    seen = seen_by(Observation(pictures, np.ones(8), 'go'), spec)
    assert [int(seen.images[camera].max()) for camera in spec.cameras] == [0, 1, 0]
    assert seen.proprio.tolist() == [0.0]


def test_fused_it_answers_the_same_up_to_rounding(checkpoint, policy):
    request = InferenceRequest(grey_observation(policy.description))
    fused = load_policy(checkpoint, methods=(), optimisation='fused').infer(request).normalised
    plain = policy.infer(request).normalised
    np.testing.assert_allclose(fused, plain, atol=1e-5)
    assert not np.array_equal(fused, plain)


@pytest.mark.parametrize('methods', [[], ['lightvla'], ['random_tokens']], ids=str)
@pytest.mark.parametrize('instruction', ['push', 'pick up the red bowl and put it on the plate'])
def test_in_fixed_shapes_it_answers_the_same_up_to_rounding(checkpoint, methods, instruction):
    plain, static = (load_policy(checkpoint, methods=methods, optimisation=optimisation)
                     for optimisation in ('fused', 'graphs'))
    grey = grey_observation(plain.description)
    request = InferenceRequest(dataclasses.replace(grey, instruction=instruction))
    expected, chunk = plain.infer(request), static.infer(request)
    np.testing.assert_allclose(chunk.normalised, expected.normalised, atol=1e-5)
    assert chunk.tokens_kept == expected.tokens_kept
    for padded, needed in zip(static.layer_rows, plain.layer_rows, strict=True):
        assert padded.new % OTHERS_BUCKET == 0
        assert 0 <= padded.new - needed.new < OTHERS_BUCKET + VISUAL_BUCKET
    assert static.layer_rows[-1].asking == plain.layer_rows[-1].asking


@pytest.mark.slow
def test_what_is_handed_to_the_compiler_is_the_same_network(checkpoint, policy, monkeypatch):
    """Traced, and run as it was written."""
    monkeypatch.setattr(compiling, 'OPTIONS', {'dynamic': False, 'backend': 'eager'})
    request = InferenceRequest(grey_observation(policy.description))
    compiled = load_policy(checkpoint, methods=(), optimisation='compiled').infer(request)
    np.testing.assert_allclose(
        compiled.normalised, policy.infer(request).normalised, atol=1e-5)


def test_without_an_id_that_fills_up_prompts_fixed_shapes_are_refused(
    checkpoint, policy, monkeypatch
):
    monkeypatch.setattr(type(policy.config), 'pad_id', None)
    with pytest.raises(ValueError, match='Fixed shapes are not for the tern head'):
        load_policy(checkpoint, methods=(), optimisation='graphs')


@pytest.mark.parametrize(('method', 'read'), [
    ('adp', 'state x, y, z; those of this policy begin with joint_1'),
    ('sp_vla', 'actions dx, dy, dz; those of this policy begin with panda_joint1'),
    ('specprune', 'actions dx, .* begin with panda_joint1'),
])
def test_methods_that_go_by_a_hand_are_refused_where_joints_move(checkpoint, method, read):
    with pytest.raises(ValueError, match=f'{method} goes by the {read}'):
        load_policy(checkpoint, methods=[method])


@pytest.mark.parametrize('method', acceleration.available())
def test_every_method_runs_on_it_or_says_in_a_sentence_why_not(checkpoint, method):
    try:
        policy = load_policy(checkpoint, methods=[method])
    except ValueError as error:
        assert str(error).endswith('.')
        return
    request = InferenceRequest(grey_observation(policy.description))
    chunk = policy.infer(request)
    chunk = policy.infer(InferenceRequest.after(request.observation, chunk))
    assert chunk.actions.shape == (10, 8)
    assert np.isfinite(chunk.actions).all()


@pytest.mark.parametrize('key', ['model_type', 'type'])
def test_files_of_an_unknown_kind_are_refused_with_a_sentence(tmp_path, key):
    (tmp_path / 'config.json').write_text(f'{{"{key}": "penguin"}}')
    with pytest.raises(ValueError, match=r"'penguin', which no family here knows; .*\.$"):
        families.read_model_config(tmp_path)


def test_training_says_which_policies_it_knows(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r'needs a policy whose actions come at once.* is Tern'):
        train(Run(stage_config('clone', None, {}), checkpoint, tmp_path, None, tmp_path / 'out'))


def test_compressing_says_which_policies_it_knows(checkpoint, tmp_path):
    with pytest.raises(ValueError, match='of the family Tern; vla compress knows how'):
        compress(str(checkpoint), tmp_path / 'out', CompressionRecipe(mlp_share=0.5))


def test_statistics_without_a_data_set_end_the_check_with_a_sentence(checkpoint, tmp_path):
    directory = shutil.copytree(checkpoint, tmp_path / 'empty')
    (directory / 'dataset_statistics.json').write_text('{}')
    findings = [*check_checkpoint(directory)]
    assert all('holds no data set' in finding.text
               for finding in findings if finding.verdict == FAIL)
    assert {finding.name for finding in findings if finding.verdict == FAIL} == {
        'statistics', 'loading'}


def test_the_page_names_files_that_exist():
    for name in re.findall(r'`((?:test|training|config|nn|runtime|families)/[\w/.]+)`', TEXT):
        if 'tern' not in name:
            assert (ROOT / name).exists() or (ROOT / 'vla_policy_node' / name).exists(), name
