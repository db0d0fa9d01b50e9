"""What every method owes: off is exact, dropping is hiding, it costs what it says, it forgets.

A new method is among those tested by being there; if it needs other settings than its defaults to
drop tokens of the tiny model, these belong into _PRUNING.
"""

from itertools import permutations

import numpy as np
import pytest
import torch
from tiny_model import (
    CONFIG,
    HideInstead,
    assemble,
    load_model,
    plain_actions,
    prepared,
    run_step,
    runs_here,
    shared_inputs,
    shared_model,
    step_of,
    torchs_flops,
)

from vla_policy_node import acceleration
from vla_policy_node.acceleration import check_together, create
from vla_policy_node.acceleration.declarations import DROPS
from vla_policy_node.evaluation.contenders import parse_contender
from vla_policy_node.families import count_flops
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.policy import load_policy
from vla_policy_node.policy.interface import CAMERAS, InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime.small import create_small_checkpoint

# Methods that the tiny model runs and that their own settings switch off.
OFF = [name for name in acceleration.available()
       if runs_here(name) and acceleration.named(name).off is not None]
# Settings with which some drop tokens of the tiny model in the second step; others do by default.
_PRUNING = {
    'adp': {'keep': 0.5, 'rule': 'always'},
    'efficientvla_tokens': {'count': 10},
    'fastv': {'count': 10},
    'flashvla': {'count': 10, 'max_angle': 0.0},
    'random_tokens': {'count': 10},
    'sp_vla': {'slow': -1.0, 'fast': -0.5, 'min_keep': 0.3, 'network_share': 1.0,
               'edge_low': 2.0, 'edge_high': 2.0},
    'specprune': {'static': 14, 'static_fine': 14, 'similarity': -1.0, 'local_share': 0.1},
    'sqap_vla': {'count': 10, 'attended': 0.4, 'robot': 1, 'four_bits': False},
}
# All that drop tokens. What those with weights of their own learn, their own tests say.
DROPPING = {
    name: _PRUNING.get(name, {}) for name in acceleration.available()
    if runs_here(name) and acceleration.named(name).does & DROPS
    and not acceleration.named(name).weights_file}


def two_steps(method):
    """Another picture first, for what it may leave behind."""
    run_step(shared_model(), method, shared_inputs(1))
    return run_step(shared_model(), method, shared_inputs(0))[0]


@pytest.mark.parametrize('name', acceleration.available())
def test_every_method_says_what_switches_it_off(name):
    method = acceleration.named(name)
    assert method.off is None or create(name, **method.off).off == method.off


@pytest.mark.parametrize('name', OFF)
def test_switched_off_it_changes_no_bit(name):
    method = prepared(name, load_model(), **acceleration.named(name).off)
    assert torch.equal(two_steps(method), plain_actions(0))


@pytest.mark.parametrize('name', DROPPING)
def test_dropping_tokens_equals_hiding_them(name):
    dropped = two_steps(method := prepared(name, shared_model(), **DROPPING[name]))
    hidden = two_steps(HideInstead(prepared(name, shared_model(), **DROPPING[name])))
    torch.testing.assert_close(dropped, hidden, rtol=0, atol=2e-5)
    assert (dropped - plain_actions(0)).abs().max() > 1e-4
    assert 1 <= method.report().kept.sum() < 32


@pytest.mark.parametrize('names', permutations(DROPPING, 2), ids='+'.join)
def test_two_methods_that_drop_tokens_drop_one_after_the_other(names):
    """What one has ranked, the other may have dropped by the time it counts."""
    model = load_model()
    methods = [prepared(name, model, **DROPPING[name]) for name in names]
    for inputs in (shared_inputs(1), shared_inputs(0)):
        for method in methods:
            method.begin_step(step_of(inputs))
        model(inputs, forward_pass := ForwardPass(methods))
    # Of a method that drops twice, the other may have dropped in between.
    more, fewer = sorted((m.report().kept for m in methods), key=lambda kept: -kept.sum())
    assert (fewer <= more).all()
    others = assemble(model, shared_inputs(0)).context.shape[1] + 1
    assert forward_pass.layer_rows[-1].new == others + fewer.sum()


@pytest.mark.parametrize('keep', [1.0, 0.75])
@pytest.mark.parametrize('name', sorted({*DROPPING, 'ttf_vla', 'vla_cache'}))
def test_the_counter_counts_what_torch_counts(name, keep):
    """Also if a depth cut has made another layer the last one, in which few rows ask."""
    prepared('depth_cut', model := load_model(), keep=keep)
    method = prepared(name, model, **DROPPING.get(name, {}))
    run_step(model, method, shared_inputs(0))
    method.begin_step(step_of(shared_inputs(0)))
    forward_pass = ForwardPass([method])
    counted = torchs_flops(lambda: model(shared_inputs(0), forward_pass))
    choosing = method.report().flops
    if name == 'flashvla':  # torch has no count for a singular value decomposition
        choosing = 0
    assert len(forward_pass.layer_rows) == 4 * keep
    assert sum(count_flops(CONFIG, forward_pass.layer_rows).values()) + choosing == counted


@pytest.mark.parametrize('name', OFF)
def test_reset_forgets_everything(name):
    settings = DROPPING.get(name, {})
    used, fresh = (prepared(name, **settings) for _ in range(2))
    acceleration.change_network([used], model := load_model())
    if name == 'adp':
        acceleration.change_network([fresh], model)
    for inputs in map(shared_inputs, range(1, 4)):
        run_step(model, used, inputs)
    used.reset()
    assert used.report() is None
    for inputs in map(shared_inputs, range(2)):
        mine, ran = run_step(model, used, inputs)
        other, fresh_ran = run_step(model, fresh, inputs)
        assert torch.equal(mine, other)
        assert ran == fresh_ran


def test_pruning_under_a_cross_frame_cache_is_refused():
    for name in DROPPING:
        with pytest.raises(ValueError, match=f'among which those of the tokens that {name} drops'):
            check_together([create(name), create('vla_cache')])
    check_together([create('ttf_vla'), create('vla_cache')])
    check_together([create('depth_cut'), create('fastv')])
    with pytest.raises(ValueError, match='which are missing where deer left out layers'):
        check_together([create('deer'), create('vla_cache')])
    with pytest.raises(ValueError, match='mole skips layers that fastv looks at'):
        check_together([create('fastv'), create('mole')])
    with pytest.raises(ValueError, match='vla_cache reuses keys'):
        parse_contender('fastv:count=60+vla_cache')


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    return create_small_checkpoint(tmp_path_factory.mktemp('small'))


def request(seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    return InferenceRequest(
        Observation(dict.fromkeys(CAMERAS, image), np.zeros(8), 'pick up the milk'))


def test_a_policy_refuses_what_does_not_go_together(small):
    with pytest.raises(ValueError, match='vla_cache reuses keys'):
        LocalPolicy.load(small, methods=('lightvla', 'vla_cache'))


def test_a_policy_says_that_an_answer_was_given_again(small):
    settings = {'flashvla': {'count': 32, 'max_angle': 4.0, 'min_overlap': -1.0}}
    policy = load_policy(small, methods=('flashvla',), method_settings=settings)
    chunks = [None]
    for seed in range(4):
        chunks.append(policy.infer(InferenceRequest.after(request(seed).observation, chunks[-1])))
    first, second, again, after = chunks[1:]
    assert [chunk.reused_by for chunk in (first, second, again, after)] == ['', '', 'flashvla', '']
    np.testing.assert_array_equal(again.actions, second.actions)
    assert (again.tokens_kept, again.flops, again.layers_run) == (0, 0, 0)
    assert not any(selection.kept.any() for selection in again.selections)
    assert list(again.stage_ms) == ['reuse']
    assert second.layers_run == second.layers_total == 6
    assert second.tokens_kept == 32 and second.flops > 0
    policy.reset()
    assert policy.infer(request(5)).reused_by == ''


def test_a_plain_network_is_beside_those_that_leave_the_weights_alone(small):
    four_bits = {'sqap_vla': {'four_bits': False}}
    for names, settings in ((('adp',), {}), (('sqap_vla',), four_bits)):
        plain = LocalPolicy.load(small, methods=names, method_settings=settings).plain()
        np.testing.assert_array_equal(
            plain.infer(request()).actions,
            LocalPolicy.load(small, methods=()).infer(request()).actions)
    for name in ('depth_cut', 'sqap_vla'):
        with pytest.raises(ValueError, match=f'{name} changes the weights'):
            LocalPolicy.load(small, methods=(name,)).plain()


def test_layers_that_are_not_there_are_not_counted(small):
    whole = LocalPolicy.load(small, methods=()).infer(request())
    half = LocalPolicy.load(small, methods=('depth_cut',)).infer(request())
    assert (half.layers_run, half.layers_total) == (3, 6)
    assert whole.layers_run == 6
    assert half.flops < whole.flops
