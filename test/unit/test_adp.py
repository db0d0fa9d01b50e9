"""ADP: tokens close to the prompt, and a gate that the motion opens."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import (
    CASES,
    CONFIG,
    inputs_of,
    load_model,
    prepared,
    shared_model,
    shared_sequence,
)
from torch.utils.flop_counter import FlopCounterMode

from vla_policy_node import families
from vla_policy_node.acceleration.adp import MotionGate, importance
from vla_policy_node.compression.float8 import Float8Linear
from vla_policy_node.nn.sequence import TokenSequence, lay_out
from vla_policy_node.runtime.fusing import fuse


def test_importance_is_the_mean_product_of_queries_and_keys():
    layer, text = shared_model().language_model.layers[0], shared_sequence().span('prompt')
    x = layer.input_layernorm(shared_sequence().states)[0]
    heads = CONFIG.language_model.heads
    query = layer.self_attn.q_proj(x[text]).unflatten(1, (heads, -1))
    key = layer.self_attn.k_proj(x[1:33]).unflatten(1, (heads, -1))
    products = torch.einsum('jhd,ihd->ijh', query, key) / query.shape[-1] ** 0.5
    torch.testing.assert_close(
        importance(layer, shared_sequence().visual[0], shared_sequence().states[0, text]),
        products.mean(dim=(1, 2)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('layer', [0, -1])
def test_importance_of_fused_weights_is_the_same(layer):
    text = shared_sequence().states[0, shared_sequence().span('prompt')]
    plain = importance(
        shared_model().language_model.layers[layer], shared_sequence().visual[0], text)
    fused = fuse(load_model()).language_model.layers[layer]
    with FlopCounterMode(display=False) as counter:
        again = importance(fused, shared_sequence().visual[0], text)
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)
    with FlopCounterMode(display=False) as expected:
        importance(shared_model().language_model.layers[layer], shared_sequence().visual[0], text)
    assert counter.get_total_flops() == expected.get_total_flops()  # what `report` counts


def test_importance_in_8_bit_floats_is_about_the_same():
    layer = copy.deepcopy(shared_model().language_model.layers[0])
    text = shared_sequence().states[0, shared_sequence().span('prompt')]
    plain = importance(layer, shared_sequence().visual[0], text)
    layer.self_attn.q_proj, layer.self_attn.k_proj = map(
        Float8Linear, (layer.self_attn.q_proj, layer.self_attn.k_proj))
    rounded = importance(layer, shared_sequence().visual[0], text)
    assert 0 < ((rounded - plain) / plain).abs().max() < 0.05


def test_start_prompt_and_stop_ask():
    prompt = inputs_of(CASES[0])[2]
    method = prepared('adp', shared_model())
    ids = torch.cat([prompt[0], torch.tensor([CONFIG.token_ids.stop])])
    embed = shared_model().language_model.embed_tokens
    assert torch.equal(method._query_rows(shared_sequence()), embed(ids))
    method.prepare(None, families.named('cogact').configure(CONFIG))
    states = shared_sequence().states[:, :-57]
    causal = replace(shared_sequence(), states=states, spans=shared_sequence().spans[:-2])
    assert torch.equal(method._query_rows(causal), embed(prompt[0]))


def test_of_the_published_sizes_the_published_numbers_of_tokens_stay():
    """184 + 256 of 512 with keep 0.9: what the wrist camera cannot use, nobody gets."""
    method = prepared('adp', shared_model(), keep=0.9)
    method.prepare(None, replace(CONFIG, **{
        name: replace(getattr(CONFIG, name), image_px=224) for name in ('dino', 'siglip')}))
    positions = torch.arange(1 + 512 + 2)[None]
    spans = lay_out({'bos': 1, 'visual': 512, 'prompt': 2})
    sequence = TokenSequence(torch.zeros(1, 515, 4), positions, spans)
    kept = method._choose(sequence, torch.arange(512.0)) // 256
    assert kept.bincount().tolist() == [184, 256]


def test_each_camera_gets_its_share_and_at_least_one_token():
    for keep, cameras in ((0.5, (6, 10)), (0.75, (10, 14)), (0.9, (12, 16)), (1.0, (16, 16)),
                          (0.01, (1, 1))):
        method = prepared('adp', shared_model(), keep=keep, rule='always')
        method.select_tokens(shared_sequence())
        kept = method.report().kept.reshape(2, 16).sum(axis=1)
        assert tuple(kept) == cameras


def decisions(distances, **settings):
    gate = MotionGate(**{'rule': 'extrema', 'windows': 3, 'max_pruned': 3, 'hold': False,
                         **settings})
    made = []
    for position in np.concatenate([[0.0], np.cumsum(distances)]):
        gate.update(np.array([position, 0, 0]))
        made.append(gate.open)
    return made


def test_at_constant_speed_three_of_four_windows_are_pruned_after_a_cold_start():
    made = decisions([1.0] * 11)
    assert made == [False] * 3 + [True, True, True, False] * 2 + [True]


def test_the_gate_opens_at_the_farthest_and_closes_at_the_nearest():
    assert decisions([2, 2, 3])[-1]
    assert not decisions([2, 3, 1])[-1]
    assert decisions([1, 3, 2])[-1]
    assert not decisions([1, 3, 2], hold=True)[-1]
    assert decisions([1, 3, 4, 3.5], hold=True)[-1]


def by_the_published_rule(distances):
    """Running mean from the first window on, at most three pruned in a row; nothing at first."""
    made, mean, pruned = [False], None, 0
    for distance in distances:
        mean = distance if mean is None else 0.5 * mean + 0.5 * distance
        opened = distance >= mean and pruned < 3
        pruned = pruned + 1 if opened else 0
        made.append(opened)
    return made


def test_the_running_mean_decides_from_the_first_window_on():
    assert decisions([1.0] * 8, rule='average') == [
        False, True, True, True, False, True, True, True, False]
    distances = np.random.default_rng(0).random(20)
    assert decisions(distances, rule='average') == by_the_published_rule(distances)


def test_fewer_than_three_windows_are_refused():
    with pytest.raises(ValueError, match='at least 3 windows'):
        prepared('adp', windows=2)


def test_against_the_running_mean():
    assert decisions([2, 2, 3], rule='average')[-1]
    assert not decisions([2, 2, 1], rule='average')[-1]


def test_forced_shut_nothing_is_dropped():
    method = prepared('adp', shared_model(), keep=0.3, rule='never')
    assert method.select_tokens(shared_sequence()) is shared_sequence()
    assert method.report().kept.all()
