"""VLA-Cache: what stands still is not computed again, and what it is replaced by is right."""

from dataclasses import replace
from pathlib import Path

import checkpoint_variants as variants
import numpy as np
import pytest
import torch
from tiny_model import (
    CONFIG,
    plain_actions,
    prepared,
    run_step,
    shared,
    shared_inputs,
    shared_model,
    step_of,
    torchs_flops,
)

from vla_policy_node.acceleration import Step, create
from vla_policy_node.acceleration.vla_cache import damp, reuse_rates
from vla_policy_node.families import config_of, count_flops
from vla_policy_node.nn.forward_pass import ForwardPass

EAGER = {'relevant': 4, 'static': 12}


def test_of_an_identical_frame_the_answer_is_the_same_and_less_is_computed():
    method = prepared('vla_cache', **EAGER)
    first, _ = run_step(shared_model(), method, shared_inputs(0))
    method.begin_step(step_of(shared_inputs(0)))
    second, forward_pass = [], ForwardPass([method])
    counted = torchs_flops(
        lambda: second.append(shared_model()(shared_inputs(0), forward_pass)))
    torch.testing.assert_close(second[0], first, rtol=0, atol=2e-5)
    own = sum(count_flops(CONFIG, forward_pass.layer_rows).values())
    assert own + method.report().flops == counted
    reused = int((~method.report().kept).sum())
    assert reused > 0
    full = forward_pass.layer_rows[0]
    assert full.new == full.seen
    for layer in forward_pass.layer_rows[1:]:
        assert layer.new == full.new - reused
        assert layer.seen == full.seen


def test_of_another_state_reuse_is_an_approximation():
    method = prepared('vla_cache', **EAGER)
    run_step(shared_model(), method, shared_inputs(0))
    changed = shared_inputs(0)[0], shared_inputs(0)[1] + 0.5, shared_inputs(0)[2]
    reused, _ = run_step(shared_model(), method, changed)
    exact = shared_model()(changed)
    assert 1e-6 < (reused - exact).abs().max() < (plain_actions(0) - exact).abs().max() + 1


def test_another_picture_reuses_nothing():
    method = prepared('vla_cache', similarity=0.99999, **EAGER)
    run_step(shared_model(), method, shared_inputs(0))
    second, _ = run_step(shared_model(), method, shared_inputs(1))
    assert torch.equal(second, plain_actions(1))
    assert method.report().kept.all()


def test_what_the_prompt_looks_at_is_computed_again():
    method = prepared('vla_cache', static=16, relevant=16)
    run_step(shared_model(), method, shared_inputs(0))
    run_step(shared_model(), method, shared_inputs(0))
    assert method.report().kept.all()
    method = prepared('vla_cache', static=16, relevant=0)
    run_step(shared_model(), method, shared_inputs(0))
    relevant = method._relevance
    run_step(shared_model(), method, shared_inputs(0))
    assert relevant.shape == (32,) and relevant.sum() > 0
    assert not method.report().kept.all()


def test_low_entropy_reuses_much_and_rises_are_damped():
    rates = reuse_rates({0: 2.0, 1: 1.0, 2: 3.0, 3: 1.0})
    assert rates == {0: 0.5, 1: 1.0, 2: 0.0, 3: 1.0}
    assert damp(rates, 1.0) == rates
    damped = damp(rates, 0.55)
    assert damped[1] == pytest.approx(0.775)
    assert all(damped[index] <= rates[index] + 1e-12 for index in rates)
    assert reuse_rates({}) == {}


# A causal language model, for which the method was made; float64, so that exact means exact.

CAUSAL_CONFIG = config_of({
    **variants.CONFIG, **variants.COGACT, 'head': 'cogact', 'cameras': 2, 'proprio': True,
    'text_config': {**variants.CONFIG['text_config'], 'num_hidden_layers': 4}})

@shared
def causal_model():
    return variants.random_model(CAUSAL_CONFIG).requires_grad_(False).double()


# Rows of its sequence: BOS, visual tokens 0 to 31, proprio, prompt.
LAST_VISUAL, PROPRIO, WORD = 32, 33, 35
EXACT = {'rtol': 0, 'atol': 1e-12}


def causal_inputs(seed=0):
    """Pictures as methods see them, and the sequence as it enters the language model."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, 56, 56, generator=generator)
    ids = torch.tensor([[1, 7, 9, 11, 3]])
    pixels = torch.cat([images, images], dim=1)[None].double()
    proprio = torch.zeros(1, 8, dtype=torch.float64)
    return images, causal_model().assemble(causal_model().visual(pixels, ids), proprio, ids)


def with_changed_row(images, sequence, row):
    """The next frame: one row differs, and where it is a visual token its pixels do."""
    states, images = sequence.states.clone(), images.clone()
    states[:, row] += torch.linspace(-1, 1, states.shape[2], dtype=states.dtype)
    if row <= LAST_VISUAL:
        camera, (down, across) = (row - 1) // 16, divmod((row - 1) % 16, 4)
        patch = images[camera, :, 14 * down : 14 * down + 14, 14 * across : 14 * across + 14]
        patch.copy_(1 - patch)
    return images, replace(sequence, states=states)


def causal_method():
    method = create('vla_cache', static=16, relevant=2)
    method.prepare(Path(), CAUSAL_CONFIG)
    return method


def feature(method, images, sequence, forward_pass=None):
    method.begin_step(Step(images, np.zeros(8)))
    forward_pass = forward_pass or ForwardPass([method])
    forward_pass.begin()
    return causal_model().prefill(sequence, forward_pass)


@pytest.mark.parametrize('row', [LAST_VISUAL, PROPRIO, WORD])
def test_causal_reuse_of_what_lies_before_the_change_is_exact(row):
    images, sequence = causal_inputs()
    method = causal_method()
    feature(method, images, sequence)
    images, changed = with_changed_row(images, sequence, row)
    reused = feature(method, images, changed)
    assert 0 < (~method.report().kept[: row - 1]).sum() == (~method.report().kept).sum()
    torch.testing.assert_close(reused, causal_model().prefill(changed, ForwardPass()), **EXACT)
    assert (reused - causal_model().prefill(sequence, ForwardPass())).abs().max() > 1e-3


def test_causal_reuse_of_what_lies_behind_the_change_is_an_approximation():
    images, sequence = causal_inputs()
    method = causal_method()
    feature(method, images, sequence)
    images, changed = with_changed_row(images, sequence, 1)
    reused = feature(method, images, changed)
    assert method.report().kept[0] and not method.report().kept[1:].all()
    assert (reused - causal_model().prefill(changed, ForwardPass())).abs().max() > 1e-6


def test_of_an_identical_frame_a_causal_model_computes_less_and_says_the_same():
    method = causal_method()
    first = feature(method, *causal_inputs())
    for _ in range(2):
        forward_pass = ForwardPass([method])
        again = feature(method, *causal_inputs(), forward_pass)
        torch.testing.assert_close(again, first, **EXACT)
        reused = int((~method.report().kept).sum())
        assert reused > 0
        assert forward_pass.layer_rows[-1].new == forward_pass.layer_rows[0].new - reused
        assert forward_pass.layer_rows[-1].seen == forward_pass.layer_rows[0].seen


def test_the_first_causal_frame_and_the_first_after_a_reset_are_the_plain_models():
    method = causal_method()
    images, sequence = causal_inputs()
    for _ in range(2):
        plain = causal_model().prefill(sequence, ForwardPass())
        assert torch.equal(feature(method, images, sequence), plain)
        assert method.report().kept.all()
        feature(method, images, sequence)
        assert not method.report().kept.all()
        method.reset()


def test_of_equally_static_patches_and_relevant_tokens_the_first_are_taken():
    """Most patches of a real picture stand still to the last bit; who wins must not be luck."""
    method = prepared('vla_cache', static=5, relevant=2)
    method._similarity, method._relevance = torch.ones(32), torch.zeros(32)
    method._cache = {0: ()}
    assert method._find_reusable().tolist() == [2, 3, 4, 18, 19, 20]
