"""Acceleration methods on pi0 and pi0.5: they work on the prefix, and the expert sees the rest.

A method that drops tokens before layer k leaves a cache in which the layers below k hold more rows
than those from k on; each layer of the expert reads its own.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pi_models import CHUNK, KINDS, inputs_of, random_network, shared_network, small_config
from tiny_model import HideInstead, runs_here, torchs_flops

from vla_policy_node import acceleration
from vla_policy_node.acceleration import Step
from vla_policy_node.families import count_flops
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.runtime.fusing import fuse

CONFIG = small_config('pi0')
OFF = [name for name in acceleration.available()
       if runs_here(name, CONFIG) and (method := acceleration.named(name)).off is not None
       and not method.weights_file]
DROPPING = {
    'adp': {'keep': 0.5, 'rule': 'always'},
    'efficientvla_tokens': {'count': 10},
    'fastv': {'count': 10},
    'flashvla': {'count': 10, 'max_angle': 0.0},
    'lightvla': {},
    'random_tokens': {'count': 10},
    'sp_vla': {'slow': -1.0, 'fast': -0.5, 'min_keep': 0.3, 'network_share': 1.0,
               'edge_low': 2.0, 'edge_high': 2.0},
    'specprune': {'static': 14, 'static_fine': 14, 'similarity': -1.0, 'local_share': 0.1},
    'sqap_vla': {'count': 10, 'attended': 0.4, 'robot': 1, 'four_bits': False},
}


def prepared(name, network, **settings):
    method = acceleration.create(name, **settings)
    acceleration.prepare([method], None, network.config)
    acceleration.change_network([method], network)
    return method


@torch.inference_mode()
def answer(network, methods=(), steps=2):
    """Actions of the last of several steps, and its pass."""
    forward_pass = ForwardPass(methods)
    for seed in reversed(range(steps)):
        inputs = inputs_of(seed)
        for method in methods:
            method.begin_step(Step(inputs[0][0] / 2 + 0.5, np.zeros(8)))
        actions = network(inputs, forward_pass := ForwardPass(methods))
    return actions, forward_pass


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', OFF)
def test_switched_off_a_method_changes_no_bit(name, kind):
    network = random_network(kind)
    method = prepared(name, network, **acceleration.named(name).off)
    assert torch.equal(answer(network, [method])[0], answer(shared_network(kind))[0])


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', DROPPING)
def test_dropping_tokens_equals_hiding_them_from_language_and_actions(name, kind):
    network = shared_network(kind)
    dropped, forward_pass = answer(
        network, [method := prepared(name, network, **DROPPING[name])])
    hidden, _ = answer(network, [HideInstead(prepared(name, network, **DROPPING[name]))])
    torch.testing.assert_close(dropped, hidden, rtol=0, atol=2e-5)
    assert (dropped - answer(network)[0]).abs().max() > 1e-4
    kept = method.report().kept.sum()
    assert 1 <= kept < 32
    assert forward_pass.layer_rows[-1].seen == kept + 7


def test_what_is_dropped_before_layer_2_is_in_the_cache_of_the_layers_below():
    network = shared_network('pi0')
    method = prepared('fastv', network, count=10)
    _, forward_pass = answer(network, [method])
    assert [rows.seen for rows in forward_pass.layer_rows] == [39, 39, 17, 17]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', [*DROPPING, 'ttf_vla', 'vla_cache', 'depth_cut'])
def test_what_it_costs_is_what_torch_counts(name, kind):
    network = random_network(kind) if name == 'depth_cut' else shared_network(kind)
    settings = {'keep': 0.5} if name == 'depth_cut' else DROPPING.get(name, {})
    method = prepared(name, network, **settings)
    answer(network, [method])
    inputs, forward_pass = inputs_of(0), ForwardPass([method])
    method.begin_step(Step(inputs[0][0] / 2 + 0.5, np.zeros(8)))
    with torch.inference_mode():
        counted = torchs_flops(lambda: network(inputs, forward_pass))
    report = method.report()
    choosing = 0 if name == 'flashvla' or report is None else report.flops
    config = method.changed_config(network.config)
    assert sum(count_flops(config, forward_pass.layer_rows).values()) + choosing == counted


@pytest.mark.parametrize('kind', KINDS)
def test_layers_go_from_language_and_expert_together(kind):
    network = random_network(kind)
    whole = [decoder.layers[2] for decoder in network.decoders()]
    prepared('depth_cut', network, keep=0.5, spread=True)
    assert [len(decoder.layers) for decoder in network.decoders()] == [2, 2]
    assert [decoder.layers[1] for decoder in network.decoders()] == whole
    actions, forward_pass = answer(network)
    assert actions.shape == (1, CHUNK, 7)
    assert len(forward_pass.layer_rows) == 2


@pytest.mark.parametrize('kind', KINDS)
def test_steps_of_the_flow_may_reuse_what_the_layers_added(kind):
    network = shared_network(kind)
    method = prepared('efficientvla_cache', network, interval=2)
    reused, forward_pass = answer(network, [method])
    assert method.report().denoising_reused == 2
    assert (reused - answer(network)[0]).abs().max() > 1e-4
    inputs = inputs_of(0)
    with torch.inference_mode():
        counted = torchs_flops(lambda: network(inputs, ForwardPass([method])))
    flops = count_flops(network.config, forward_pass.layer_rows, 2)
    assert sum(flops.values()) == counted


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', ['', 'fastv', 'lightvla', 'vla_cache'])
def test_fused_weights_answer_the_same_to_1e_9_in_float64(name, kind):
    actions = []
    for change in (lambda network: network, fuse):
        network = change(random_network(kind).double())
        methods = [prepared(name, network, **DROPPING.get(name, {}))] if name else []
        with torch.inference_mode():
            for seed in (1, 0):
                inputs = [x.double() if x.is_floating_point() else x for x in inputs_of(seed)]
                for method in methods:
                    method.begin_step(Step(inputs[0][0].float() / 2 + 0.5, np.zeros(8)))
                made = network(tuple(inputs), ForwardPass(methods))
        actions.append(made)
    torch.testing.assert_close(*actions, rtol=0, atol=1e-9)


@pytest.mark.parametrize('kind', KINDS)
def test_a_method_that_asks_the_head_behind_a_layer_is_refused(kind):
    """The expert needs keys and values of all layers that it has."""
    refusal = r'for a head that denoises costs more than the layers.*\.$'
    with pytest.raises(ValueError, match=refusal):
        acceleration.prepare(
            [acceleration.create('deer')], None, replace(small_config(kind)))
