"""Batched forward passes with gradients agree with the public fine-tuning code.

Reference data: train_*.npz in test/data/oft_tiny and test/data/lightvla_tiny.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from vla_policy_node.acceleration.lightvla_training import LightVlaTraining
from vla_policy_node.models import checkpoint
from vla_policy_node.models.config import read_config
from vla_policy_node.models.preprocess import ImagePreprocessor
from vla_policy_node.models.prompt import end_with_empty

DATA = Path(__file__).parent / 'data'
CHECKPOINT = DATA / 'oft_tiny' / 'checkpoint'
METHODS = {'oft_tiny': [], 'lightvla_tiny': [LightVlaTraining()]}


@pytest.fixture
def model():
    config = read_config(checkpoint.read_json(CHECKPOINT, 'config.json'))
    model = checkpoint.load_model(CHECKPOINT, config, 'cpu', 'float32')
    return model.requires_grad_(True)


def batch_of(golden, ids):
    """Pixels, proprio and prompts, the shorter one filled up right after BOS."""
    cases = [np.load(DATA / 'oft_tiny' / f'case{index}.npz') for index in golden['case_index']]
    document = checkpoint.read_json(CHECKPOINT, 'preprocessor_config.json')
    preprocessor = ImagePreprocessor(document, 56, center_crop=False)
    pixels = [torch.stack([preprocessor(image) for image in c['images_u8']]) for c in cases]
    prompts = [end_with_empty(case['prompt_ids'].tolist(), ids.empty) for case in cases]
    length = max(map(len, prompts))
    filled = [[p[0], *[ids.pad] * (length - len(p)), *p[1:]] for p in prompts]
    return torch.stack(pixels), torch.from_numpy(golden['proprio_norm']), torch.tensor(filled)


def assert_close(value, reference, relative=5e-5):
    tolerance = relative * np.abs(reference).max()
    np.testing.assert_allclose(
        value.detach().reshape(reference.shape), reference, rtol=0, atol=tolerance
    )


@pytest.mark.parametrize('pack', METHODS)
@pytest.mark.parametrize('name', ['train_single', 'train_batch2'])
def test_predicted_actions(model, pack, name):
    golden = np.load(DATA / pack / f'{name}.npz')
    actions = model(*batch_of(golden, model.config.token_ids), methods=METHODS[pack])
    assert_close(actions, golden['pred_actions'])


@pytest.mark.parametrize('pack', METHODS)
def test_loss_and_gradients(model, pack):
    golden = np.load(DATA / pack / 'train_batch2.npz')
    actions = model(*batch_of(golden, model.config.token_ids), methods=METHODS[pack])
    loss = (actions - torch.from_numpy(golden['gt_actions'])).abs().mean()
    assert_close(loss, golden['l1_loss'])
    loss.backward()
    parameters = dict(model.named_parameters())
    names = [name for name in golden if name.startswith('grad__')]
    assert names
    for name in names:
        own = name.removeprefix('grad__').replace('language_model.model.', 'language_model.')
        own = own.replace('action_head.model.', 'action_head.')
        assert_close(parameters[own].grad, golden[name], relative=1e-3)


def test_chosen_tokens_and_their_positions(model):
    golden = np.load(DATA / 'lightvla_tiny' / 'train_batch2.npz')
    pixels, proprio, prompts = batch_of(golden, model.config.token_ids)
    visual = model.projector(model.visual_features(pixels))
    sequence = LightVlaTraining().select_tokens(model.assemble(visual, proprio, prompts))
    assert_close(sequence.visual, golden['selected_visual'])
    np.testing.assert_array_equal(
        sequence.positions[:, 1 : 1 + sequence.visual_rows], 1 + golden['selected']
    )


def test_noise_changes_the_choice(model):
    golden = np.load(DATA / 'lightvla_tiny' / 'train_single.npz')
    pixels, proprio, prompts = batch_of(golden, model.config.token_ids)
    sequence = model.assemble(model.projector(model.visual_features(pixels)), proprio, prompts)
    quiet, noisy = (
        LightVlaTraining(noise_scale=scale).select_tokens(sequence).positions
        for scale in (0.0, 50.0)
    )
    assert not torch.equal(quiet, noisy)
