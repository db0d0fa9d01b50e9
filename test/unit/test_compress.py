"""`vla compress`: the smaller checkpoint is one like any other, and what was removed is said."""

import json

import checkpoint_variants as variants
import numpy as np
import pytest
import torch
from training_data import CAMERAS, make_demonstrations, small_config
from typer.testing import CliRunner

from vla_policy_node.checkpoints.statistics import Statistics
from vla_policy_node.checks.report import check_checkpoint
from vla_policy_node.cli import app
from vla_policy_node.families import read_model_config
from vla_policy_node.policy.interface import (
    InferenceRequest,
    Observation,
    PolicySpec,
    Quantity,
)
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime.small import create_small_checkpoint
from vla_policy_node.training.compress import (
    Compression,
    CompressionRecipe,
    _compare,
    compress,
)


@pytest.fixture(scope='module')
def demonstrations(tmp_path_factory):
    return make_demonstrations(tmp_path_factory.mktemp('compress') / 'demos', episodes=3)


def small_checkpoint(directory, **entries):
    config = {**small_config(), **entries}
    config['text_config'] |= {'num_hidden_layers': 4}
    return create_small_checkpoint(directory, config=config)


def request():
    image = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    return InferenceRequest(
        Observation(dict.fromkeys(CAMERAS, image), np.zeros(8), 'pick up the bowl'))


def cogact(directory):
    return small_checkpoint(directory, head='cogact', chunk_length=16,
                            dit={'blocks': 1, 'width': 24, 'heads': 2})


def released(directory):
    ours = variants.make(directory.with_name('ours'), 'cogact', **variants.COGACT)
    return variants.to_cogact_release(ours, directory)


@pytest.mark.parametrize(('make', 'layers'), [
    (small_checkpoint, 4), (cogact, 4), (released, 2)])
def test_a_smaller_policy_needs_no_settings(make, layers, demonstrations, tmp_path):
    large, out = make(tmp_path / 'large'), tmp_path / 'small'
    result = compress(str(large), out, CompressionRecipe(1, 0.75, demonstrations, samples=5))
    config = read_model_config(out)
    assert config.language_model.layers == layers - 1
    assert config.language_model.mlp_width == 36
    assert len(result.importance) == layers
    assert result.removed == (int(np.argmin(result.importance)),)
    policies = [LocalPolicy.load(directory, methods=()) for directory in (large, out)]
    parameters = tuple(policy.description.parameters for policy in policies)
    assert result.parameters == parameters
    assert parameters[1] < parameters[0]
    assert result.flops[1] < result.flops[0]
    assert 0 < result.action_change[0] <= result.action_change[1]
    chunk = policies[1].infer(request())
    assert np.isfinite(chunk.actions).all()
    assert chunk.flops < policies[0].infer(request()).flops
    assert not [finding for finding in check_checkpoint(out) if finding.verdict == 'FAIL']
    document = json.loads((out / 'config.json').read_text())
    assert document['compressed']['removed_layers'] == list(result.removed)
    assert document['compressed']['from_sha256'] == policies[0].description.sha256


def test_each_half_works_alone_and_what_stays_is_unchanged(demonstrations, tmp_path):
    large = small_checkpoint(tmp_path / 'large')
    result = compress(
        str(large), tmp_path / 'fewer', CompressionRecipe(2, demonstrations=demonstrations))
    before, fewer = variants.load(large), variants.load(tmp_path / 'fewer')
    kept = [index for index in range(4) if index not in result.removed]
    for layer, source in zip(fewer.language_model.layers, kept, strict=True):
        for name, tensor in layer.state_dict().items():
            assert torch.equal(tensor, before.language_model.layers[source].state_dict()[name])
    result = compress(str(large), tmp_path / 'narrower', CompressionRecipe(mlp_share=0.5))
    assert (result.removed, result.importance, result.flops) == ((), (), None)
    assert variants.load(tmp_path / 'narrower').language_model.layers[3].mlp.up_proj.weight.shape \
        == (24, 32)


def test_rows_known_by_the_name_of_a_public_checkpoint_are_written_down(tmp_path):
    large = variants.make(tmp_path / 'LightVLA-libero-10')
    compress(str(large), tmp_path / 'small', CompressionRecipe(mlp_share=0.5))
    assert LocalPolicy.load(tmp_path / 'small', methods=()).description.action_rows == 'last56'


def test_pictures_of_data_of_its_own_are_not_turned_by_the_name_of_a_folder(tmp_path):
    large = variants.make(tmp_path / 'LightVLA-libero-10')
    path = large / 'dataset_statistics.json'
    (statistics,) = json.loads(path.read_text()).values()
    path.write_text(json.dumps({'my_robot': statistics}))
    compress(str(large), tmp_path / 'small', CompressionRecipe(mlp_share=0.5))
    assert 'camera_transforms' not in json.loads((tmp_path / 'small/config.json').read_text())


@pytest.mark.parametrize(('head', 'recipe', 'sentence'), [
    ('diffusion', CompressionRecipe(mlp_share=0.5), 'has a diffusion head; only'),
    ('autoregressive', CompressionRecipe(mlp_share=0.5), 'has an autoregressive head; only'),
    ('l1', CompressionRecipe(layers=1), 'name a folder made by vla demos'),
    ('l1', CompressionRecipe(), 'Nothing is to be removed'),
    ('l1', CompressionRecipe(layers=2, demonstrations='x'), 'at least one must stay'),
    ('l1', CompressionRecipe(mlp_share=1.5), r'in \(0, 1\]'),
])
def test_what_cannot_be_made_smaller_says_why(head, recipe, sentence, tmp_path):
    large = variants.make(tmp_path / 'large', head)
    with pytest.raises(ValueError, match=sentence):
        compress(str(large), tmp_path / 'small', recipe)
    assert not (tmp_path / 'small').exists()


def test_the_command_prints_what_it_removed(demonstrations, tmp_path):
    large = small_checkpoint(tmp_path / 'large')
    arguments = ['compress', str(large), '--out', str(tmp_path / 'small'), '--samples', '2',
                 '--demos', str(demonstrations), '--remove-layers', '1']
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.count('removed') == 1
    assert 'actions change by' in result.output
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert 'is not empty' in again.output


def test_motion_and_grippers_are_told_apart_by_their_names():
    spec = PolicySpec(actions=tuple(Quantity(name) for name in (
        'left_waist', 'left_gripper', 'right_waist', 'right_gripper')))
    ones = np.ones(4)
    statistics = Statistics('aloha', -ones, ones, np.array([True, True, True, False]), *2 * [ones])
    before = torch.tensor([[[0.0, -0.1, 0.0, 0.4]]])
    after = torch.tensor([[[0.1, 0.1, 0.3, 0.6]]])
    result = _compare(
        Compression((), (), (9, 8)), statistics, spec.grippers, (9, 7, before), (8, 6, after))
    assert result.action_change == pytest.approx((0.2, 0.3))
    assert result.gripper_flips == 1
    still = torch.tensor([[[0.1, -0.9, 0.3, 0.1]]])
    result = _compare(result, statistics, spec.grippers, (9, 7, before), (8, 6, still))
    assert result.gripper_flips == 0
    result = _compare(result, statistics, (), (9, 7, before), (8, 6, after))
    assert result.gripper_flips is None
