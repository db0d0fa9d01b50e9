"""Random tokens and FastV: what they keep, and that dropping equals hiding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import (
    CASES,
    CONFIG,
    assemble,
    hide_all_but,
    inputs_of,
    prepared,
    shared_model,
    shared_sequence,
)
from torch.utils.flop_counter import FlopCounterMode

from vla_policy_node import families
from vla_policy_node.acceleration import Method
from vla_policy_node.acceleration.fastv import FastV
from vla_policy_node.acceleration.random_tokens import RandomTokens
from vla_policy_node.acceleration.selection import Budget, top_of_cameras
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.transformer import Rope
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime.small import create_small_checkpoint


@pytest.fixture(params=range(4), ids='case{}'.format)
def case(request):
    return CASES[request.param]


def sequence_of(case):
    return assemble(shared_model(), inputs_of(case))




@pytest.mark.parametrize('count', [32, 1000])
@pytest.mark.parametrize('name', ['random_tokens', 'fastv'])
def test_keeping_every_token_changes_no_bit(case, name, count):
    inputs, method = inputs_of(case), prepared(name, count=count)
    assert torch.equal(shared_model()(inputs, ForwardPass([method])), shared_model()(inputs))
    assert method.report().kept.all()


@given(st.integers(1, 40), st.integers(0, 2**31))
def test_random_tokens_are_so_many_in_order_at_their_positions(count, seed):
    method = RandomTokens(count=count, seed=seed)
    pruned = method.select_tokens(shared_sequence())
    kept = method.report().kept
    assert kept.sum() == pruned.visual_rows == min(count, 32)
    assert torch.equal(pruned.visual_tokens, torch.from_numpy(kept.nonzero()[0]))
    assert torch.equal(pruned.visual, shared_sequence().visual[:, kept])


def test_random_tokens_equal_hiding_the_others(case):
    sequence, method = sequence_of(case), RandomTokens(count=9)
    rows = shared_model().action_rows('oft')
    dropped = shared_model().language_model(method.select_tokens(sequence), rows)
    hidden = shared_model().language_model(hide_all_but(sequence, method.report().kept), rows)
    torch.testing.assert_close(dropped, hidden, rtol=0, atol=2e-5)


def test_random_tokens_vary_and_repeat_themselves_after_reset(case):
    sequence, method = sequence_of(case), RandomTokens(count=9, seed=4)

    def episode():
        method.reset()
        assert method.report() is None
        return [method.select_tokens(sequence).visual_tokens.tolist() for _ in range(5)]

    first = episode()
    assert len(set(map(tuple, first))) == 5
    assert episode() == first


def test_random_tokens_choose_every_token_equally_often():
    method = RandomTokens(count=8)
    times = np.zeros(32)
    for _ in range(2000):
        method.select_tokens(shared_sequence())
        times += method.report().kept
    assert np.abs(times / 2000 - 0.25).max() < 0.05


def attention_of_layer(index, sequence):
    """Attention of a layer, averaged over heads, worked out from its weights; [T, T]."""
    config = CONFIG.language_model
    width = config.width // config.heads
    for layer in shared_model().language_model.layers[:index]:
        rope = Rope(sequence.positions, width, config.rope_theta, torch.float32)
        states = layer(sequence.states, rope, None, slice(None))
        sequence = replace(sequence, states=states)
    layer = shared_model().language_model.layers[index]
    rope = Rope(sequence.positions, width, config.rope_theta, torch.float32)
    x = layer.input_layernorm(sequence.states)
    query = rope(layer.self_attn._heads(layer.self_attn.q_proj(x)))
    key = rope(layer.self_attn._heads(layer.self_attn.k_proj(x)))
    return torch.softmax(query @ key.mT / width**0.5, dim=-1)[0].mean(dim=0)


# Rows of the sequence: BOS, visual tokens 0 to 31, proprio, prompt, 56 action slots, stop.
ASKING = {
    'prompt_end': slice(-58, -57), 'prefill': slice(0, -57), 'behind': slice(33, None)}


@pytest.mark.parametrize('rows', ASKING)
@pytest.mark.parametrize('layer', [1, 2])
def test_fastv_keeps_the_tokens_with_the_most_attention(case, layer, rows):
    sequence, method = sequence_of(case), prepared('fastv', layer=layer, count=10, rows=rows)
    shared_model()(inputs_of(case), ForwardPass([method]))
    attention = attention_of_layer(layer - 1, sequence)
    expected = attention[ASKING[rows], 1:33].mean(dim=0)
    report = method.report()
    np.testing.assert_allclose(report.scores, expected, rtol=1e-4, atol=1e-7)
    if rows == 'prefill':
        best = torch.cat([expected[:16].topk(5).indices, 16 + expected[16:].topk(5).indices])
    else:
        best = expected.topk(10).indices
    np.testing.assert_array_equal(np.sort(best), report.kept.nonzero()[0])
    assert report.layer == layer


def test_the_last_row_of_the_prompt_is_the_one_before_the_action_slots(case):
    """Of a causal model it is the last row of all, as published."""
    sequence, config = sequence_of(case), families.named('cogact').configure(CONFIG)
    method = prepared('fastv')
    ids = inputs_of(case)[2]
    row = method._queries(sequence)
    assert torch.equal(
        sequence.states[:, row], shared_model().language_model.embed_words(ids[:, -1:]))
    method.prepare(None, config)
    causal = replace(
        sequence, states=sequence.states[:, :-57], positions=sequence.positions[:, :-57],
        spans=sequence.spans[:-2])
    assert method._queries(causal) == slice(causal.states.shape[1] - 1, causal.states.shape[1])


def test_by_default_one_camera_loses_as_large_a_share_as_two():
    for name, kept in (('random_tokens', (78, 39)), ('fastv', (256, 128)),
                       ('flashvla', (256, 128)), ('efficientvla_tokens', (113, 56)),
                       ('sqap_vla', (128, 64))):
        budget = prepared(name).budget
        assert (budget.of(512), budget.of(256)) == kept


def test_a_budget_is_a_share_or_a_count_and_never_nothing():
    assert Budget('x', 0.5, 0).of(7) == 4
    assert Budget('x', 0.001, 0).of(32) == 1
    assert Budget('x', 0.5, 9).of(32) == 9
    assert Budget('x', 0.5, 1000).of(32) == 32
    assert Budget('x', 1.0, 0).of(32) == 32


@given(st.lists(st.integers(0, 3), min_size=8, max_size=8), st.integers(0, 5), st.integers(0, 5))
def test_of_equal_scores_the_first_of_each_camera_win(scores, first, second):
    chosen = top_of_cameras(
        torch.tensor(scores), torch.arange(8), 4, (first, second)).tolist()
    for camera, count in ((range(4), first), (range(4, 8), second)):
        ranked = sorted(camera, key=lambda place: (-scores[place], place))
        assert [place for place in chosen if place in camera] == sorted(ranked[:count])


def test_the_attention_shown_is_the_one_that_is_paid(case):
    """Applied to the layer's own values it gives the layer's own output."""
    seen = []

    class Look(Method):
        def watch_attention(self, index, sequence, attention):
            layer = shared_model().language_model.layers[index].self_attn
            rows = slice(-5, None)
            x = shared_model().language_model.layers[index].input_layernorm(sequence.states)
            mixed = attention(rows) @ layer._heads(layer.v_proj(x))
            config = CONFIG.language_model
            rope = Rope(
                sequence.positions, config.width // config.heads, config.rope_theta, x.dtype
            )
            expected = layer(x, rope, None, rows)
            own = layer.o_proj(mixed.transpose(1, 2).flatten(2))
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
            assert attention(rows).sum(dim=-1).allclose(torch.ones(()))
            seen.append(index)

    shared_model()(inputs_of(case), ForwardPass([Look()]))
    assert seen == list(range(CONFIG.language_model.layers))


def test_hidden_rows_get_no_attention():
    sequence = hide_all_but(shared_sequence(), np.arange(32) % 2 == 0)
    seen = []

    class Look(Method):
        def watch_attention(self, index, sequence, attention):
            seen.append(attention(slice(-3, None))[..., 2:33:2])

    shared_model().prefill(sequence, ForwardPass([Look()]))
    assert seen and all((weights == 0).all() for weights in seen)


@pytest.mark.parametrize('layer', [1, 2])
def test_fastv_equals_hiding_the_others_from_that_layer_on(case, layer):
    class Hide(FastV):
        def before_layer(self, index, sequence):
            changed = super().before_layer(index, sequence)
            return hide_all_but(sequence, self._kept) if changed is not sequence else sequence

    inputs = inputs_of(case)
    dropped = shared_model()(inputs, ForwardPass([prepared('fastv', layer=layer, count=10)]))
    hide = Hide(layer=layer, count=10)
    hide.prepare(None, CONFIG)
    hidden = shared_model()(inputs, ForwardPass([hide]))
    torch.testing.assert_close(dropped, hidden, rtol=0, atol=2e-5)
    assert (dropped - shared_model()(inputs)).abs().max() > 1e-4


def test_renumbered_positions_would_be_another_network(case):
    class Renumber(FastV):
        def before_layer(self, index, sequence):
            changed = super().before_layer(index, sequence)
            if changed is sequence:
                return sequence
            return replace(changed, positions=torch.arange(changed.positions.shape[1])[None])

    inputs = inputs_of(case)
    own = shared_model()(inputs, ForwardPass([prepared('fastv', layer=1, count=10)]))
    renumber = Renumber(layer=1, count=10)
    renumber.prepare(None, CONFIG)
    renumbered = shared_model()(inputs, ForwardPass([renumber]))
    assert (own - renumbered).abs().max() > 1e-4


def test_after_another_method_the_reports_are_still_about_all_tokens(case):
    first, then = RandomTokens(count=20), prepared('fastv', count=10)
    shared_model()(inputs_of(case), ForwardPass([first, then]))
    assert len(then.report().kept) == len(then.report().scores) == 32
    assert then.report().kept.sum() == 10
    assert not (then.report().kept & ~first.report().kept).any()


def test_the_reported_flops_of_fastv_are_those_of_its_attention(case):
    def flops(methods):
        with FlopCounterMode(display=False) as counter:
            shared_model()(inputs_of(case), ForwardPass(methods))
        return counter.get_total_flops()

    method = prepared('fastv', count=32)
    assert flops([method]) - flops([]) == method.report().flops


def test_reset_and_a_past_observation_leave_no_trace():
    used, fresh = (prepared('fastv', count=10) for _ in range(2))
    shared_model()(inputs_of(CASES[0]), ForwardPass([used]))
    used.reset()
    assert used.report() is None
    inputs = inputs_of(CASES[1])
    answers = [shared_model()(inputs, ForwardPass([method])) for method in (used, fresh)]
    assert torch.equal(*answers)


def test_a_layer_the_model_does_not_have_is_refused_at_load(tmp_path):
    create_small_checkpoint(tmp_path)
    layers = LocalPolicy.load(tmp_path, methods=())._model.config.language_model.layers
    with pytest.raises(ValueError, match=f'before layer {layers}: the last one is {layers - 1}'):
        LocalPolicy.load(
            tmp_path, methods=('fastv',), method_settings={'fastv': {'layer': layers}})


def test_what_fastv_drops_has_no_say_from_that_layer_on(case):
    class Disturb(Method):
        def __init__(self, rows):
            self.rows = rows

        def before_layer(self, index, sequence):
            if index != 2:
                return sequence
            visual = sequence.visual.clone()
            visual[:, self.rows] += 10
            return sequence.with_visual(visual)

    inputs, method = inputs_of(case), prepared('fastv', layer=2, count=10)
    expected = shared_model()(inputs, ForwardPass([method]))
    kept = torch.from_numpy(method.report().kept)
    assert torch.equal(shared_model()(inputs, ForwardPass([Disturb(~kept), method])), expected)
    changed = shared_model()(inputs, ForwardPass([Disturb(kept), method]))
    assert (changed - expected).abs().max() > 1e-4
