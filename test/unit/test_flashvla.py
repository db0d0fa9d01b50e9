"""FlashVLA: the information contribution score, and when an answer is given again."""

import numpy as np
import pytest
import torch
from tiny_model import DESCRIPTION, chunk_of, execution_of, prepared

from vla_policy_node.acceleration.flashvla import angle, contribution, svd_flops
from vla_policy_node.policy.interface import InferenceRequest, Observation


def test_the_score_is_that_of_the_principal_axes():
    torch.manual_seed(0)
    tokens = torch.randn(20, 12)
    _, _, axes = torch.linalg.svd(tokens, full_matrices=False)
    expected = (tokens @ axes.T).abs().sum(dim=1)
    torch.testing.assert_close(contribution(tokens), expected, rtol=1e-4, atol=1e-4)


def test_the_score_does_not_know_which_way_features_are_turned():
    torch.manual_seed(0)
    tokens = torch.randn(20, 12)
    turn = torch.linalg.qr(torch.randn(12, 12)).Q
    torch.testing.assert_close(
        contribution(tokens @ turn), contribution(tokens), rtol=1e-4, atol=1e-4)


def test_of_rank_one_the_score_is_the_length():
    torch.manual_seed(0)
    tokens = torch.randn(9, 1) @ torch.randn(1, 7)
    torch.testing.assert_close(
        contribution(tokens), tokens.norm(dim=1), rtol=1e-4, atol=1e-4)


def test_equal_answers_are_at_no_angle():
    chunk = np.random.default_rng(0).normal(size=(8, 7))
    assert angle(chunk, chunk) == 0
    assert angle(chunk, -chunk) == pytest.approx(np.pi)
    assert angle(np.zeros((8, 7)), np.zeros((8, 7))) == 0
    assert angle(np.eye(2)[:1], np.eye(2)[1:]) == pytest.approx(np.pi / 2)


def asked_after(actions, kept, **settings):
    """What it answers after steps with these actions and kept tokens."""
    answers = prepared('flashvla', **settings).answers
    for action, mask in zip(actions, kept, strict=True):
        answers.record(chunk_of(np.full((1, 2), 1.0) * action, np.array(mask)))
    return answers.answer(CARRIED_OUT, DESCRIPTION)


CARRIED_OUT = InferenceRequest(Observation({}, np.zeros(8), 'go'), execution_of(np.ones(7)))
SAME, OTHER = [True, True, False], [False, False, True]


def test_it_answers_again_if_answers_and_tokens_stay():
    assert asked_after([[1, 0], [1, 0]], [SAME, SAME]) is not None
    assert asked_after([[1, 0]], [SAME]) is None
    assert asked_after([[1, 0], [0, 1]], [SAME, SAME]) is None
    assert asked_after([[1, 0], [1, 0]], [SAME, OTHER]) is None
    assert asked_after([[1, 0], [1, 0]], [SAME, SAME], max_angle=0.0) is None


def test_after_an_answer_given_again_the_network_runs():
    answers = prepared('flashvla').answers
    for _ in range(2):
        answers.record(chunk_of(np.ones((1, 2)), np.array(SAME)))
    again = answers.answer(CARRIED_OUT, DESCRIPTION)
    answers.record(chunk_of(again, np.array(SAME), 'flashvla'))
    assert answers.answer(CARRIED_OUT, DESCRIPTION) is None


def test_an_answer_that_nobody_carried_out_is_not_given_again():
    answers = prepared('flashvla').answers
    for _ in range(2):
        answers.record(chunk_of(np.ones((1, 2)), np.array(SAME)))
    assert answers.answer(InferenceRequest(CARRIED_OUT.observation), DESCRIPTION) is None
    assert answers.answer(CARRIED_OUT, DESCRIPTION) is not None


def test_the_decomposition_costs_the_same_both_ways_round():
    assert svd_flops(10, 4) == svd_flops(4, 10) == 6 * 10 * 16 + 20 * 64
