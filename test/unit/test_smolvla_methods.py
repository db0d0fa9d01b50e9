"""Acceleration methods on SmolVLA: they work on the prefix, and each layer of the expert reads
what its layer of the language model has left, whether it joins or crosses.
"""

from functools import cache

import numpy as np
import pytest
import torch
from smol_models import CHUNK, CONFIG, inputs_of, random_network, shared_network
from tiny_model import HideInstead, runs_here, torchs_flops

from vla_policy_node import acceleration
from vla_policy_node.acceleration import Step
from vla_policy_node.families import count_flops
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.runtime.fusing import fuse

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
PREFIX = 32 + 4 + 1


def prepared(name, network, **settings):
    method = acceleration.create(name, **settings)
    acceleration.prepare([method], None, network.config)
    acceleration.change_network([method], network)
    return method


@torch.inference_mode()
def answer(network, methods=(), steps=2):
    """Actions of the last of several steps, and its pass."""
    for seed in reversed(range(steps)):
        inputs = inputs_of(seed)
        for method in methods:
            method.begin_step(Step(inputs[0][0] / 2 + 0.5, np.zeros(8)))
        dtype = network.state_proj.weight.dtype
        inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
        actions = network(inputs, forward_pass := ForwardPass(methods))
    return actions, forward_pass


@cache
def plain():
    """Actions of the shared network without methods, which no earlier step changes."""
    return answer(shared_network(), steps=1)[0]


@pytest.mark.parametrize('name', OFF)
def test_switched_off_a_method_changes_no_bit(name):
    network = random_network()
    method = prepared(name, network, **acceleration.named(name).off)
    assert torch.equal(answer(network, [method])[0], plain())


@pytest.mark.parametrize('name', DROPPING)
def test_dropping_tokens_equals_hiding_them_from_language_and_actions(name):
    network = shared_network()
    dropped, forward_pass = answer(
        network, [method := prepared(name, network, **DROPPING[name])])
    hidden, _ = answer(network, [HideInstead(prepared(name, network, **DROPPING[name]))])
    torch.testing.assert_close(dropped, hidden, rtol=0, atol=2e-5)
    assert (dropped - plain()).abs().max() > 1e-4
    kept = method.report().kept.sum()
    assert 1 <= kept < 32
    assert forward_pass.layer_rows[-1].seen == PREFIX - 32 + kept


def test_what_is_dropped_before_layer_2_is_read_by_the_layers_below():
    """One that joins and one that crosses on either side."""
    network = shared_network()
    _, forward_pass = answer(network, [prepared('fastv', network, count=10)])
    assert [rows.seen for rows in forward_pass.layer_rows] == [PREFIX, PREFIX, 15, 15]
    assert [layer.crosses for layer in network.action_head.expert.layers] == [
        False, True, False, True]


@pytest.mark.parametrize('keep', [1.0, 0.75])
@pytest.mark.parametrize('name', [*DROPPING, 'ttf_vla', 'vla_cache', None])
def test_what_it_costs_is_what_torch_counts(name, keep):
    network = random_network() if keep < 1 else shared_network()
    prepared('depth_cut', network, keep=keep)
    methods = [prepared(name, network, **DROPPING.get(name, {}))] if name else []
    answer(network, methods)
    inputs, forward_pass = inputs_of(0), ForwardPass(methods)
    for method in methods:
        method.begin_step(Step(inputs[0][0] / 2 + 0.5, np.zeros(8)))
    with torch.inference_mode():
        counted = torchs_flops(lambda: network(inputs, forward_pass))
    choosing = sum(method.report().flops for method in methods if name != 'flashvla')
    assert len(forward_pass.layer_rows) == 4 * keep
    assert sum(count_flops(CONFIG, forward_pass.layer_rows).values()) + choosing == counted


@pytest.mark.parametrize('spread', [False, True])
def test_layers_go_from_language_and_expert_together(spread):
    """What is left still joins or crosses as in the files, and costs what torch counts."""
    network = random_network()
    kept = [0, 2] if spread else [0, 1]
    whole = [[decoder.layers[index] for index in kept] for decoder in network.decoders()]
    prepared('depth_cut', network, keep=0.5, spread=spread)
    assert [[*decoder.layers] for decoder in network.decoders()] == whole
    inputs, forward_pass = inputs_of(0), ForwardPass()
    with torch.inference_mode():
        counted = torchs_flops(lambda: network(inputs, forward_pass))
    assert [rows.layer for rows in forward_pass.layer_rows] == kept
    assert sum(count_flops(CONFIG, forward_pass.layer_rows).values()) == counted


@pytest.mark.parametrize('interval', [2, 3])
def test_steps_of_the_flow_may_reuse_what_the_layers_added(interval):
    network = shared_network()
    method = prepared('efficientvla_cache', network, interval=interval)
    reused, forward_pass = answer(network, [method])
    steps = 4 - -(-4 // interval)
    assert method.report().denoising_reused == steps
    assert (reused - plain()).abs().max() > 1e-4
    with torch.inference_mode():
        counted = torchs_flops(lambda: network(inputs_of(0), ForwardPass([method])))
    assert sum(count_flops(CONFIG, forward_pass.layer_rows, steps).values()) == counted


def test_reuse_needs_no_layer_where_none_adds_anything():
    network = random_network()
    for layer in network.action_head.expert.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    method = prepared('efficientvla_cache', network, interval=2)
    torch.testing.assert_close(answer(network, [method])[0], answer(network)[0])


@pytest.mark.parametrize('name', ['', 'fastv', 'lightvla', 'vla_cache'])
def test_fused_weights_answer_the_same_to_1e_9_in_float64(name):
    actions = []
    for change in (lambda network: network, fuse):
        network = change(random_network().double())
        methods = [prepared(name, network, **DROPPING.get(name, {}))] if name else []
        actions.append(answer(network, methods)[0])
    torch.testing.assert_close(*actions, rtol=0, atol=1e-9)
    assert actions[0].shape == (1, CHUNK, 7)


def test_a_method_that_asks_the_head_behind_a_layer_is_refused():
    with pytest.raises(ValueError, match=r'^deer asks the action head at every exit.*\.$'):
        acceleration.prepare([acceleration.create('deer')], None, CONFIG)
