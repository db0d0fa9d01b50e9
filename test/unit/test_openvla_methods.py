"""Acceleration methods on OpenVLA: they work on the prompt, and the tokens see what is left."""

from __future__ import annotations

import copy
from dataclasses import replace

import checkpoint_variants as variants
import numpy as np
import pytest
import torch
from tiny_model import HideInstead, runs_here, torchs_flops

from vla_policy_node import acceleration, families
from vla_policy_node.acceleration import Step
from vla_policy_node.families import config_of, count_flops
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.policy.interface import InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime.fusing import fuse

DOCUMENT = {**variants.CONFIG, 'text_config': {
    **variants.CONFIG['text_config'], 'num_hidden_layers': 4}}
CONFIG = replace(
    variants.with_inputs(
        families.named('autoregressive').configure(config_of(DOCUMENT)), 1, proprio=False),
    chunk_length=1)
OFF = [name for name in acceleration.available()
       if runs_here(name, CONFIG) and (method := acceleration.named(name)).off is not None
       and not method.weights_file]
DROPPING = {
    'adp': {'keep': 0.5, 'rule': 'always'},
    'efficientvla_tokens': {'count': 7, 'attention_from': 'words'},
    'fastv': {'count': 5},
    'flashvla': {'count': 5, 'max_angle': 0.0},
    'lightvla': {'count': 6},
    'random_tokens': {'count': 5},
    'sp_vla': {'slow': -1.0, 'fast': -0.5, 'min_keep': 0.3, 'network_share': 1.0,
               'edge_low': 2.0, 'edge_high': 2.0},
    'specprune': {'static': 14, 'static_fine': 14, 'similarity': -1.0, 'local_share': 0.1},
    'sqap_vla': {'count': 8, 'attended': 0.4, 'robot': 1, 'four_bits': False},
}
REUSING = {'static': 10, 'relevant': 2, 'similarity': -1.0}


def make_model():
    """A model of one's own, to change."""
    return variants.random_model(CONFIG)


def inputs_of(seed):
    side = CONFIG.image_px
    pixels = torch.randn(1, 1, 6, side, side, generator=torch.Generator().manual_seed(seed))
    return pixels, torch.zeros(1, 8), torch.tensor([[1, 40, 41, 42, 3]])


def step_of(inputs):
    pixels = 0.5 + 0.2 * inputs[0][0, :, :3]
    return Step(pixels, np.zeros(8))


@torch.inference_mode()
def read(model, methods=(), steps=2):
    """States of which the seven tokens of the last step are read, [7, width].

    Tokens are given, so that a small difference of states does not become one of words.
    """
    states = []

    def token_ids(state):
        states.append(state[0])
        return torch.tensor([500 - len(states) % model.config.action_size])

    model.action_head.token_ids = token_ids
    for seed in reversed(range(steps)):
        states.clear()
        pixels, proprio, prompt_ids = inputs_of(seed)
        for method in methods:
            method.begin_step(step_of((pixels,)))
        dtype = model.language_model.embed_tokens.weight.dtype
        model((pixels.to(dtype), proprio.to(dtype), prompt_ids), ForwardPass(methods))
    del model.action_head.token_ids
    return torch.stack(states)


def prepared(name, model, **settings):
    method = acceleration.create(name, **settings)
    acceleration.prepare([method], None, CONFIG)
    acceleration.change_network([method], model)
    return method


@pytest.mark.parametrize('name', OFF)
def test_switched_off_a_method_changes_no_bit(name):
    method = prepared(
        name, model := make_model(), **acceleration.named(name).off)
    assert torch.equal(read(model, [method]), read(make_model()))


@pytest.mark.parametrize('name', [None, 'fastv', 'lightvla', 'specprune', 'vla_cache'])
def test_fused_weights_answer_the_same_to_1e_9_in_float64(name):
    """Prompt and tokens: all that a number is read from, whatever a method dropped or reused."""
    plain = make_model().double()
    fused = fuse(copy.deepcopy(plain))
    states = []
    for model in (plain, fused):
        settings = REUSING if name == 'vla_cache' else DROPPING.get(name, {})
        states.append(read(model, [prepared(name, model, **settings)] if name else []))
    torch.testing.assert_close(*states, rtol=0, atol=1e-9)


@pytest.mark.parametrize('name', DROPPING)
def test_dropping_tokens_equals_hiding_them_from_all_seven(name):
    model = make_model()
    dropped = read(model, [method := prepared(name, model, **DROPPING[name])])
    hidden = read(model, [HideInstead(prepared(name, model, **DROPPING[name]))])
    torch.testing.assert_close(dropped, hidden, rtol=0, atol=1e-4)
    assert (dropped - read(model)).abs().max() > 1e-3
    assert 1 <= method.report().kept.sum() < 16


@pytest.mark.parametrize('name', [*DROPPING, 'vla_cache', 'ttf_vla', 'depth_cut'])
def test_the_counter_counts_what_torch_counts_decoding_included(name):
    """Rows dropped before a layer are saved there by each token that follows, too."""
    model = make_model()
    settings = {'vla_cache': REUSING, 'depth_cut': {'keep': 0.5}}.get(name, DROPPING.get(name, {}))
    method = prepared(name, model, **settings)
    read(model, [method], steps=1)
    method.begin_step(step_of(inputs_of(0)))
    model.action_head.decode = lambda ids: ids
    forward_pass = ForwardPass([method])
    with torch.inference_mode():
        expected = torchs_flops(lambda: model(inputs_of(0), forward_pass))
    report = method.report()
    choosing = report.flops if report and name != 'flashvla' else 0
    counted = count_flops(CONFIG, forward_pass.layer_rows)
    assert sum(counted.values()) + choosing == expected
    dense = count_flops(CONFIG, [16 + 5] * 4)
    if name in DROPPING or name == 'depth_cut':
        assert counted['language_model'] < dense['language_model']
    else:
        assert counted['language_model'] <= dense['language_model']


def test_reused_keys_and_values_of_an_equal_picture_are_exact():
    """Also for the tokens that follow: they find those keys in the layers' caches."""
    model = make_model()
    method = prepared('vla_cache', model, **REUSING)
    read(model, [method], steps=1)
    states = read(model, [method], steps=1)
    assert method.report().kept.sum() < 16
    torch.testing.assert_close(states, read(model, steps=1), rtol=0, atol=1e-4)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Not to be changed."""
    return variants.make(
        tmp_path_factory.mktemp('openvla') / 'checkpoint', 'autoregressive',
        text_config=DOCUMENT['text_config'])


def request(seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (56, 56, 3), np.uint8)
    return InferenceRequest(Observation({'third_person': image}, np.zeros(8), 'pick up the bowl'))


def test_a_fused_policy_says_the_same_tokens(checkpoint):
    plain, fused = (
        LocalPolicy.load(checkpoint, methods=(), optimisation=optimisation).infer(request())
        for optimisation in ('none', 'fused'))
    np.testing.assert_array_equal(fused.actions, plain.actions)
    assert (fused.flops, fused.layers_run) == (plain.flops, plain.layers_run)


@pytest.mark.parametrize('name', DROPPING)
def test_a_policy_reports_what_it_saved(checkpoint, name):
    dense = LocalPolicy.load(checkpoint, methods=()).infer(request())
    policy = LocalPolicy.load(
        checkpoint, methods=[name], method_settings={name: DROPPING[name]})
    chunks = [policy.infer(request(seed)) for seed in (1, 0)]
    assert chunks[1].method == name
    assert chunks[1].actions.shape == (1, 7)
    assert 1 <= chunks[1].tokens_kept < chunks[1].tokens_total == 16
    assert chunks[1].flops < dense.flops or name == 'efficientvla_tokens'


@pytest.mark.parametrize(('name', 'sentence'), [
    ('deer', 'deer needs a policy whose action head may be asked behind any layer'),
    ('efficientvla_cache', 'efficientvla_cache needs a policy whose action head denoises, such as '
     'CogACT or pi0'),
])
def test_what_needs_another_head_is_refused_with_a_sentence(checkpoint, name, sentence):
    with pytest.raises(ValueError, match=f'{sentence}; this one is OpenVLA: '):
        LocalPolicy.load(checkpoint, methods=[name])
