"""Batched forward passes with gradients agree with the public fine-tuning code.

Reference data: train_*.npz in test/data/oft_tiny and test/data/lightvla_tiny.
"""

import numpy as np
import pytest
import torch
from tiny_model import DATA, assemble, batch_of, load_model

from vla_policy_node.acceleration.lightvla_training import LightVlaTraining
from vla_policy_node.nn.forward_pass import ForwardPass

# The release lets the rows that fill up a batch take part in the scores.
METHODS = {'oft_tiny': [], 'lightvla_tiny': [LightVlaTraining(padding_votes=True)]}


@pytest.fixture
def model():
    return load_model().requires_grad_(True)


def inputs_of(golden):
    cases = [np.load(DATA / 'oft_tiny' / f'case{index}.npz') for index in golden['case_index']]
    pixels, _, prompts = batch_of(cases)
    return pixels, torch.from_numpy(golden['proprio_norm']), prompts


def assert_close(value, reference, relative=5e-5):
    tolerance = relative * np.abs(reference).max()
    np.testing.assert_allclose(
        value.detach().reshape(reference.shape), reference, rtol=0, atol=tolerance
    )


@pytest.mark.parametrize('pack', METHODS)
@pytest.mark.parametrize('name', ['train_single', 'train_batch2'])
def test_predicted_actions(model, pack, name):
    golden = np.load(DATA / pack / f'{name}.npz')
    actions = model(inputs_of(golden), ForwardPass(METHODS[pack]))
    assert_close(actions, golden['pred_actions'])


@pytest.mark.parametrize('pack', METHODS)
def test_loss_and_gradients(model, pack):
    golden = np.load(DATA / pack / 'train_batch2.npz')
    actions = model(inputs_of(golden), ForwardPass(METHODS[pack]))
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
    """The reference repeats a token for each of its votes; here it is once, with its count."""
    golden = np.load(DATA / 'lightvla_tiny' / 'train_batch2.npz')
    method = LightVlaTraining(padding_votes=True)
    sequence = method.select_tokens(assemble(model, inputs_of(golden)))
    bias = sequence.key_bias[:, sequence.span('visual')]
    for index, selected in enumerate(golden['selected']):
        tokens, first, votes = np.unique(selected, return_index=True, return_counts=True)
        rows = slice(1, 1 + len(tokens))
        np.testing.assert_array_equal(sequence.positions[index, rows], 1 + tokens)
        reference = golden['selected_visual'][index, first]
        assert_close(sequence.states[index, rows], reference)
        np.testing.assert_allclose(bias[index, : len(tokens)].exp(), votes, rtol=1e-6)
        assert bias[index, len(tokens) :].isneginf().all()
        np.testing.assert_array_equal(method.votes[index], np.bincount(selected, minlength=32))
        assert method.kept_counts[index] == len(tokens)
