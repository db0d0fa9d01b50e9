"""SP-VLA: extrapolation where the motion is simple, tokens with edges where it is fast."""

import numpy as np
import pytest
import torch
from tiny_model import (
    DESCRIPTION,
    chunk_of,
    execution_of,
    load_model,
    prepared,
    shared_inputs,
    step_of,
)

from vla_policy_node.acceleration.sp_vla import canny, extrapolate, tokens_with_edges
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.policy.interface import InferenceRequest, Observation

UNSEEN = Observation({}, np.zeros(8), 'go')
RAMP = np.linspace(0.1, 0.35, 6)[:, None] * np.ones(7)


def test_without_a_ridge_a_linear_motion_goes_on_exactly():
    np.testing.assert_allclose(
        extrapolate(RAMP, 3, 0.0), np.array([0.4, 0.45, 0.5])[:, None] * np.ones(7))


def test_an_endless_ridge_stands_still():
    assert np.abs(extrapolate(RAMP, 3, 1e12)).max() < 1e-6


def answer_after(past, networks=True, **settings):
    answers = prepared('sp_vla', ridge=0.0, **settings).answers
    answers.record(chunk_of(np.array(past), np.ones(32, bool), '' if networks else 'sp_vla'))
    request = InferenceRequest(UNSEEN, execution_of(past))
    return answers.answer(request, DESCRIPTION)


def test_a_simple_motion_is_extrapolated_and_reported_as_such():
    np.testing.assert_allclose(answer_after(RAMP)[0], 0.4)


@pytest.mark.parametrize('why', [
    {'past': RAMP[:3]},                                # too few actions
    {'past': RAMP, 'networks': False},                 # none of them the network's
    {'past': RAMP, 'min_speed': 0.5},                  # too slow
    {'past': RAMP * [1, 1, 0, 1, 1, 1, 1]},            # not along all axes
    {'past': RAMP, 'max_speed': 0.3},                  # too fast
    {'past': RAMP * 2.5},                              # would leave the range
])
def test_otherwise_the_network_runs(why):
    assert answer_after(**why) is None


def test_what_was_not_executed_does_not_go_on():
    answers = prepared('sp_vla', ridge=0.0).answers
    answers.record(chunk_of(RAMP, np.ones(32, bool)))
    for executed in (RAMP, ()):  # interrupted: the arm stands
        given = answers.answer(InferenceRequest(UNSEEN, execution_of(executed)), DESCRIPTION)
        assert (given is None) == (not len(executed))
    assert answers.answer(InferenceRequest(UNSEEN, execution_of(RAMP[:3])), DESCRIPTION) is None


def test_the_gripper_at_its_bound_stays_there():
    past = np.concatenate([RAMP[:, :6], np.ones((6, 1))], axis=1)
    np.testing.assert_allclose(answer_after(past)[:, 6], 1.0)


def test_the_rate_falls_with_the_speed():
    method = prepared('sp_vla', slow=0.2, fast=1.2, min_keep=0.25)
    assert [method.retention(v) for v in (0.0, 0.19, 0.2)] == [1, 1, 1]
    assert method.retention(0.7) == pytest.approx(0.5)
    assert method.retention(5.0) == 0.25


def test_canny_draws_the_outline_of_a_square_and_nothing_on_a_plain():
    picture = np.zeros((40, 40))
    picture[10:30, 10:30] = 1
    edges = canny(picture, 0.1, 0.3)
    rows, columns = edges.nonzero()
    outline = np.minimum.reduce([abs(v - e) for v in (rows, columns) for e in (9.5, 29.5)])
    assert len(rows) > 60
    assert outline.max() <= 1.5
    assert not canny(np.full((40, 40), 0.5), 0.1, 0.3).any()


def test_kept_are_all_edges_and_what_the_attention_wants():
    model = load_model()
    method = prepared('sp_vla', slow=-1.0, fast=-0.5, min_keep=0.2, network_share=1.0)
    method.begin_step(step_of(shared_inputs(0)))
    images = step_of(shared_inputs(0)).images.numpy()
    edges = torch.from_numpy(tokens_with_edges(images, (4, 4), 0.1, 0.3))
    method._edges = np.arange(32) % 5 == 0
    model(shared_inputs(0), ForwardPass([method]))
    kept = method.report().kept
    assert kept[::5].all()
    assert 7 <= kept.sum() <= 7 + 6
    assert edges.shape == (32,)
