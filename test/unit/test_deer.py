"""DeeR: where a pass ends, what that saves, and thresholds from demonstrations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_model import (
    CHECKPOINT,
    CONFIG,
    assemble,
    load_model,
    plain_actions,
    prepared,
    shared_inputs,
    shared_model,
    torchs_flops,
)

from vla_policy_node.acceleration import deer
from vla_policy_node.acceleration.deer_training import EarlyExits
from vla_policy_node.families import count_flops
from vla_policy_node.nn.forward_pass import ForwardPass

EARLIEST, NEVER = 1e9, -1.0


def layers_run(threshold, **settings):
    forward_pass = ForwardPass([prepared('deer', threshold=threshold, **settings)])
    shared_model()(shared_inputs(0), forward_pass)
    return len(forward_pass.layer_rows)


def test_below_zero_it_never_stops_and_changes_no_bit():
    method = prepared('deer', threshold=NEVER)
    assert torch.equal(shared_model()(shared_inputs(0), ForwardPass([method])), plain_actions(0))


def test_a_large_threshold_takes_the_first_exit_and_larger_never_runs_longer():
    assert layers_run(EARLIEST) == 2
    assert layers_run(EARLIEST, every=3) == 3
    runs = [layers_run(threshold, every=1) for threshold in (-1.0, 0.01, 0.1, 0.3, 1.0, 1e9)]
    assert runs == sorted(runs, reverse=True)
    assert (runs[0], runs[-1]) == (4, 2)


def test_an_early_answer_is_that_of_the_head_at_the_exit():
    lesson = EarlyExits(CONFIG, every=2, ratio=1.0)
    shared_model().prefill(assemble(shared_model(), shared_inputs(0)), ForwardPass([lesson]))
    early = shared_model()(shared_inputs(0), ForwardPass([prepared('deer', threshold=EARLIEST)]))
    torch.testing.assert_close(early, lesson._answers(shared_model())[2], rtol=0, atol=2e-5)


@pytest.mark.parametrize('threshold', [EARLIEST, NEVER])
def test_layers_left_out_are_not_computed_and_asking_is_counted(threshold):
    method = prepared('deer', threshold=threshold)
    forward_pass = ForwardPass([method])
    counted = torchs_flops(lambda: shared_model()(shared_inputs(0), forward_pass))
    own = sum(count_flops(CONFIG, forward_pass.layer_rows).values())
    assert own + method.report().flops == counted


def test_what_the_layers_left_out_would_have_dropped_is_not_reported():
    pruning = prepared('fastv', layer=2, count=10)
    shared_model()(shared_inputs(0), ForwardPass([prepared('deer', threshold=EARLIEST), pruning]))
    assert pruning.report() is None


def test_the_gripper_is_no_part_of_the_distance():
    first, second = torch.zeros(1, 8, 7), torch.zeros(1, 8, 7)
    second[..., 6] = 1
    assert deer.distance(first, second) == 0
    second[..., 0] = 6**0.5
    assert deer.distance(first, second).item() == pytest.approx(1)


@pytest.mark.parametrize('ratio', [0.5, 1.0, 2.0])
def test_calibrated_exits_are_taken_by_the_wanted_fractions(ratio):
    deltas = np.random.default_rng(0).random((400, 3))
    thresholds = deer.calibrate(deltas, ratio)
    left, taken = np.ones(400, bool), []
    for index in range(3):
        leaves = left & (deltas[:, index] <= thresholds[index])
        taken.append(leaves.sum() / 400)
        left &= ~leaves
    wanted = ratio ** np.arange(1, 5) / (ratio ** np.arange(1, 5)).sum()
    np.testing.assert_allclose([*taken, left.mean()], wanted, atol=0.01)


def test_of_a_fraction_of_a_sample_none_leaves():
    """5 samples and 3 ways out at equal shares: 1.67 of them, of which the code takes 1."""
    deltas = np.arange(1.0, 6.0)[:, None].repeat(2, axis=1)
    assert deer.calibrate(deltas, 1.0).tolist() == [1.0, 2.0]


def test_thresholds_belong_to_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match='was not trained for early exits'):
        deer.Deer().prepare(tmp_path, CONFIG)
    deer.save_thresholds(tmp_path, [2], np.array([EARLIEST]))
    method = deer.Deer()
    method.prepare(tmp_path, CONFIG)
    forward_pass = ForwardPass([method])
    shared_model()(shared_inputs(0), forward_pass)
    assert len(forward_pass.layer_rows) == 2
    deer.save_thresholds(tmp_path, [9], np.array([1.0]))
    with pytest.raises(ValueError, match='for another model'):
        method.prepare(tmp_path, CONFIG)
    (tmp_path / deer.FILE_NAME).write_bytes(b'half')
    with pytest.raises(ValueError, match='cannot be read'):
        method.prepare(tmp_path, CONFIG)
    assert not (CHECKPOINT / deer.FILE_NAME).exists()


def test_the_lesson_teaches_the_head_at_all_exits():
    model, lesson = load_model().requires_grad_(True), EarlyExits(CONFIG, every=2, ratio=1.0)
    model.prefill(assemble(model, shared_inputs(0)), ForwardPass([lesson]))
    batch = SimpleNamespace(actions=torch.zeros(1, 8, 7), has_actions=torch.tensor([True]))
    loss = lesson.state_losses(model, None, batch)['exits']
    answer = lesson._answers(model)[2]
    torch.testing.assert_close(loss, answer.abs().mean())
    loss.backward()
    assert model.action_head.fc2.weight.grad.abs().sum() > 0
    assert model.language_model.layers[3].mlp.up_proj.weight.grad is None
