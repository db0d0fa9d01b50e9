"""SpecPrune-VLA: what stands still goes, what the prompt looks at stays, and when motion is fine.

Expected values follow the arithmetic of the public code, without its mistaken second index.
"""

import numpy as np
import pytest
import torch
from tiny_model import (
    CONFIG,
    assemble,
    hide_all_but,
    prepared,
    run_step,
    shared_inputs,
    shared_model,
    step_of,
)

from vla_policy_node.acceleration import Method, Step, specprune
from vla_policy_node.acceleration.specprune import Motion, control_steps_back, rank_weights
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.lazy_attention import LazyAttention

ALL_STATIC = {'static': 16, 'static_fine': 16, 'similarity': -1.0}


class Note(Method):
    """Which tokens each layer began with."""

    def __init__(self):
        self.left = {}

    def before_layer(self, index, sequence):
        self.left[index] = sequence.visual_tokens
        return sequence


def second_pass(method, first=1, then=0):
    note = Note()
    run_step(shared_model(), method, shared_inputs(first))
    method.begin_step(step_of(shared_inputs(then)))
    actions = shared_model()(shared_inputs(then), ForwardPass([method, note]))
    return actions, {index: set(tokens.tolist()) for index, tokens in note.left.items()}


def best_of(scores, first, other):
    """The best of the tiny model's two cameras, 16 tokens each."""
    return ({*scores[:16].topk(first).indices.tolist()}
            | {16 + place for place in scores[16:].topk(other).indices.tolist()})


@pytest.mark.parametrize(('moved', 'steps'), [
    (0.0, 6), (4.8, 6), (4.9, 5), (6.1, 4), (7.3, 3), (9.3, 3), (9.5, 2), (12.0, 1), (99.0, 1)])
def test_the_farther_the_arm_came_the_younger_is_the_picture_to_compare_with(moved, steps):
    assert control_steps_back(moved) == steps


def test_pictures_come_once_per_inference():
    method = prepared('specprune')
    for length, back in ((8, 1), (16, 1), (4, 2), (3, 2), (2, 3), (1, 6)):
        method.begin_step(step_of(shared_inputs(0), executed=np.zeros((length, 7))))
        assert method._back == back
    far = np.zeros((1, 7))
    far[0, :3] = (0, 0, 9.5)
    method.begin_step(step_of(shared_inputs(0), executed=far))
    assert method._back == 2


def test_of_each_camera_the_most_static_go_and_all_others_stay():
    """Patch k of each camera turns by k degrees: its cosine is known."""
    side = CONFIG.image_px
    before = torch.full((2, 3, side, side), 0.5)
    after = before.clone()
    for token in range(16):
        down, across = divmod(token, 4)
        patch = after[:, :, 14 * down : 14 * down + 14, 14 * across : 14 * across + 14]
        angle = np.pi / 180 * token
        half = torch.ones(14).repeat(14, 1)
        half[:, 7:] = -1
        patch.copy_(0.5 * (np.cos(angle) + np.sin(angle) * half))
    method = prepared('specprune', static=7)
    sequence = assemble(shared_model(), shared_inputs(0))
    for images in (before, after):
        method.begin_step(Step(images, np.zeros(8)))
    assert (~method._not_static(sequence)).nonzero().flatten().tolist() == [
        *range(7), *range(16, 23)]
    method.static = 200  # cos 9 degrees is 0.9877, cos 10 is 0.9848
    assert (~method._not_static(sequence)).nonzero().flatten().tolist() == [
        *range(10), *range(16, 26)]


def test_to_a_first_picture_there_is_no_older_one():
    method = prepared('specprune', **ALL_STATIC, local_share=0.0)
    run_step(shared_model(), method, shared_inputs(0))
    assert method.report().kept.all()


@pytest.mark.parametrize(('fine', 'first', 'other'), [(False, 3, 2), (True, 1, 1)])
def test_of_what_is_static_stays_what_two_layers_look_at(fine, first, other):
    """int(20 r), int(15 r), int(40 r^2), int(30 r^2) with r = 0.15: 3, 2, 0, 0; at least 1."""
    method = prepared('specprune', **ALL_STATIC, local_share=0.15)
    method.motion.follow = lambda actions: None
    method.motion.fine = fine
    _, left = second_pass(method)
    assert left[1] == best_of(method._local[0], 3 * first, 3 * other)
    second = method._local[1].clone()
    second[[place for place in range(32) if place not in left[1]]] = -1
    assert left[2] == best_of(method._local[0], first, other) | best_of(second, first, other)


def test_the_published_local_counts():
    method, sequence = prepared('specprune'), assemble(shared_model(), shared_inputs(0))
    assert method._local_counts(sequence, 3) == (16, [48, 36])
    assert method._local_counts(sequence, 1) == (16, [16, 12])
    method.motion.fine = True
    assert method._local_counts(sequence, 1) == (16, [25, 19])


def test_the_template_does_not_ask():
    asked = []

    class Attend:
        last = False

        def __call__(self, rows):
            asked.append(rows)
            return torch.ones(1, 1, 1, 200)

        def flops(self, rows):
            return rows

    sequence, method = assemble(shared_model(), shared_inputs(0)), prepared('specprune')
    method.select_tokens(sequence)
    method.watch_attention(0, sequence, Attend())
    ids, total = shared_inputs(0)[2].shape[1], sequence.states.shape[1]
    first = 1 + 32 + 1 + min(9, ids - 2)  # BOS, visual, proprio; at least one row asks
    assert asked == [slice(first, total - 57)]
    assert method._flops == total - 57 - first


def test_what_mattered_a_step_ago_stays_if_asked_for():
    method = prepared('specprune', **ALL_STATIC, local_share=0.0, global_count=6)
    run_step(shared_model(), method, shared_inputs(0))
    mattered = torch.stack(method._seen).mean(dim=0).topk(6).indices
    run_step(shared_model(), method, shared_inputs(1))
    kept = method.report().kept
    assert kept[mattered].all()
    assert 6 <= kept.sum() <= 6 + 4  # and the best of each camera by each of two layers


def follow(*actions, fine=False):
    motion = Motion()
    motion.fine = fine
    motion.follow(np.array([[*action, 0] for action in actions], float))
    return motion.fine


@pytest.mark.parametrize(('action', 'fine'), [
    ((0.3, 0.2, 0.1, 9, 0, 0), True),      # slow, whatever it turns
    ((0.3, 0.3, 0.1, 0, 0, 0), False),
    ((0.05, 0, -0.9, 0, 0, 0), True),      # straight down
    ((0.05, 0, -0.9, 0.3, 0, 0), False),   # and turning
    ((0.05, 0, 0.9, 0, 0, 0), False),      # straight up
])
def test_fine_motion_begins(action, fine):
    assert follow(action) == fine


@pytest.mark.parametrize(('actions', 'fine'), [
    ([(0.9, 0.9, 0.1, 0, 0, 0)], True),
    ([(0, 0, 0.3, 0, 0, 0)], False),
    ([(0, 0, 0, 0.4, 0, 0)], False),
    ([(0, 0, 0, 0.4, 0, 0), (0.9, 0, 0, 0, 0, 0)], True),  # turned, but not last
])
def test_fine_motion_ends_upwards_or_turning_at_the_end_of_a_chunk(actions, fine):
    assert follow(*actions, fine=True) == fine


def test_ranks_weigh_from_ten_down_to_a_tenth():
    scores = torch.tensor([0.1, 0.5, 0.3, 0.5])
    torch.testing.assert_close(rank_weights(scores), torch.tensor([0.1, 10.0, 3.4, 6.7]))


def test_of_constant_attention_the_running_score_goes_to_the_weight_of_its_rank():
    sequence = assemble(shared_model(), shared_inputs(0))
    method = prepared('specprune', layer_share=0.5)
    shape, generator = (1, 4, sequence.states.shape[1], 8), torch.Generator().manual_seed(0)
    query, key = (torch.randn(shape, generator=generator) for _ in range(2))
    attention = LazyAttention(lambda rows: query[:, :, rows], key, None, last=False, width=32)
    method.select_tokens(sequence)
    received = attention(slice(33, None))[0].mean(dim=(0, 1))[1:33]
    goal = torch.cat([rank_weights(received[:16]), rank_weights(received[16:])])
    for updates in range(1, 101):
        method.watch_attention(12 * 4 // 32 + 1, sequence, attention)  # layer 12 of 32
        torch.testing.assert_close(method._running, (1 - 0.8**updates) * goal)


def test_later_drops_take_a_share_of_all_rows_and_equal_hiding(monkeypatch):
    class Hide(Method):
        def before_layer(self, index, sequence):
            kept = torch.zeros(32, dtype=torch.bool)
            kept[list(left[index])] = True
            return hide_all_but(sequence, kept)

    settings = {'static': 0, 'static_fine': 0, 'layer_share': 0.8}
    _, left = second_pass(prepared('specprune', **settings))
    assert len(left[3]) == 32  # fewer than 60
    monkeypatch.setattr(specprune, 'FEWEST', 4)
    dropped, left = second_pass(prepared('specprune', **settings))
    rows = assemble(shared_model(), shared_inputs(0)).states.shape[1]
    assert len(left[2]) == 32
    assert len(left[3]) == int(0.8 * rows) - (rows - 32)
    hidden = shared_model()(shared_inputs(0), ForwardPass([Hide()]))
    torch.testing.assert_close(dropped, hidden, rtol=0, atol=2e-5)
