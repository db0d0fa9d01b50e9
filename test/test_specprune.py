"""SpecPrune-VLA: which tokens its three sources bring, and how confidence is carried on."""

import numpy as np
import pytest
import torch
from tiny_model import (
    CASES,
    CONFIG,
    assemble,
    hide_all_but,
    inputs_of,
    load_model,
    prepared,
    run_step,
    step_of,
)

from vla_policy_node.acceleration import Method, specprune
from vla_policy_node.acceleration.specprune import confidence, rank_weights, steps_back
from vla_policy_node.models.language_model import Attention

MODEL = load_model()
INPUTS = [inputs_of(case) for case in CASES[:2]]


def test_rank_weights_sum_to_one_and_fall():
    weights = rank_weights(20, 0.1)
    assert weights.sum().item() == pytest.approx(1)
    assert (weights.diff() < 0).all()


def test_the_best_score_has_the_highest_confidence():
    scores = torch.tensor([0.1, 0.5, 0.3])
    weights, ratio = rank_weights(3, 0.1), scores.mean() / (scores.std(correction=0) + 1e-6)
    torch.testing.assert_close(confidence(scores, 0.1), ratio * weights[[2, 0, 1]])


def test_the_faster_the_younger_is_the_picture_to_compare_with():
    assert [steps_back(v) for v in (0.0, 0.5, 1.0, 1.375, 9.0)] == [11, 8, 6, 4, 1]


def test_the_first_drop_keeps_the_best_of_both_layers_and_later_drops_a_share():
    class Catch(specprune.SpecPrune):
        def before_layer(self, index, sequence):
            changed = super().before_layer(index, sequence)
            left[index] = changed.visual_tokens
            return changed

    left = {}
    method = Catch(global_count=0, dynamic_count=0, fine_count=5, layer_share=0.5)
    method.prepare(None, CONFIG)
    run_step(MODEL, method, INPUTS[0])
    best = {int(t) for layer in (0, 1) for t in method._scores_now[layer].topk(5).indices}
    assert set(left[2].tolist()) == best
    assert len(left[3]) == -(-len(best) // 2)
    assert set(left[3].tolist()) <= best


def test_what_moved_and_what_mattered_a_step_ago_stay():
    quiet = {'fine_count': 1, 'coarse_count': 1, 'layer_share': 1.0}
    method = prepared('specprune', global_count=6, dynamic_count=0, **quiet)
    run_step(MODEL, method, INPUTS[0])
    mattered = torch.stack(list(method._scores_now.values())).mean(0).topk(6).indices
    run_step(MODEL, method, INPUTS[1])
    assert method.report().kept[mattered].all()

    method = prepared('specprune', global_count=0, dynamic_count=5, similarity=2.0, **quiet)
    run_step(MODEL, method, INPUTS[0])
    assert method.report().kept.sum() <= 2
    run_step(MODEL, method, INPUTS[1])
    assert 5 <= method.report().kept.sum() <= 7


def test_fine_is_slow_and_not_upwards():
    method = prepared('specprune')
    for action, fine in (([0.1, 0, -0.1, 0, 0, 0, 0], True), ([0.1, 0, 0.1, 0, 0, 0, 0], False),
                         ([0.9, 0, 0, 0, 0, 0, 0], False), ([0, 0, 0, 0.5, 0, 0, 0], False)):
        method.end_step(np.array([action]), reused=False)
        assert method.is_fine() == fine


def test_of_constant_attention_the_running_confidence_goes_to_its_confidence():
    sequence, method = assemble(MODEL, INPUTS[0]), prepared('specprune')
    shape, generator = (1, 4, sequence.states.shape[1], 8), torch.Generator().manual_seed(0)
    query, key = (torch.randn(shape, generator=generator) for _ in range(2))
    attention = Attention(lambda rows: query[:, :, rows], key, None, last=False)
    method.select_tokens(sequence)
    running = {}
    for updates in range(1, 101):
        method.watch_attention(2, sequence, attention)
        if updates in (1, 2, 100):
            method.before_layer(3, sequence)
            running[updates] = method.report().scores
    confident = running[1] / (1 - specprune.KEEP_MEMORY)
    assert (confident > 0).all()
    for updates, scores in running.items():
        share = 1 - specprune.KEEP_MEMORY**updates
        np.testing.assert_allclose(scores, share * confident, rtol=1e-5)
    np.testing.assert_allclose(running[100], confident, rtol=1e-5)


def test_later_drops_equal_hiding_as_well():
    class Note(Method):
        def before_layer(self, index, sequence):
            left[index] = sequence.visual_tokens
            return sequence

    class Hide(Method):
        def before_layer(self, index, sequence):
            kept = torch.zeros(32, dtype=torch.bool)
            kept[left[index]] = True
            return hide_all_but(sequence, kept)

    left = {}
    method = prepared('specprune', global_count=4, dynamic_count=2, fine_count=5, layer_share=0.5)
    run_step(MODEL, method, INPUTS[1])
    method.begin_step(step_of(INPUTS[0]))
    dropped = MODEL(*INPUTS[0], methods=[method, Note()])
    assert 32 > len(left[2]) > len(left[3])
    hidden = MODEL(*INPUTS[0], methods=[Hide()])
    torch.testing.assert_close(dropped, hidden, rtol=0, atol=2e-5)
