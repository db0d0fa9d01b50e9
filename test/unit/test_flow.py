"""Flow matching: times as both public implementations have them, and the laws of its steps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra import numpy as arrays

from vla_policy_node.nn.flow import (
    FlowStep,
    between,
    draw_times,
    embed_time,
    flow_times,
    integrate,
)

RECORDED = np.load(Path(__file__).parents[1] / 'data' / 'pi05_tiny' / 'case1.npz')


def test_times_and_their_waves_are_those_of_lerobot():
    times = flow_times(10)
    np.testing.assert_array_equal(np.float32(times), RECORDED['time'])
    waves = embed_time(torch.tensor(times), RECORDED['time_emb'].shape[1])
    assert waves.dtype == torch.float64
    np.testing.assert_allclose(waves, RECORDED['time_emb'], atol=1e-9)


def test_accumulated_times_are_those_of_openpi():
    """In units of the last place, as recorded of its PyTorch model."""
    times = np.float32(flow_times(10, accumulated=True))
    assert times.tolist() != flow_times(10)
    np.testing.assert_array_equal(
        times.view(np.int32) - np.float32(flow_times(10)).view(np.int32),
        [0, 0, -1, -1, -2, -3, -3, -3, -5, -10])


@pytest.mark.parametrize('accumulated', [False, True])
@pytest.mark.parametrize('steps', [1, 2, 3, 7, 10, 16, 50, 100])
def test_there_are_as_many_times_as_steps(steps, accumulated):
    times = flow_times(steps, accumulated)
    assert len(times) == steps
    assert times[0] == 1
    np.testing.assert_allclose(np.diff(times), -1 / steps, atol=1e-5)


@given(some.integers(1, 30), some.floats(-3, 3))
def test_a_linear_field_is_followed_as_by_hand(steps, slope):
    """X' = slope X: each step multiplies with 1 - slope / steps."""
    x = integrate(lambda index, time, x: slope * x, torch.ones(1, 2, 3, dtype=torch.float64),
                  flow_times(steps))
    torch.testing.assert_close(x, torch.full_like(x, (1 - slope / steps) ** steps))


@given(arrays.arrays(np.float64, (2, 3, 4), elements=some.floats(-2, 2)), some.integers(1, 20))
def test_the_true_velocity_leads_to_the_actions_in_any_number_of_steps(actions, steps):
    actions = torch.from_numpy(actions)
    noise = torch.full_like(actions, 0.5)
    made = integrate(lambda *_: noise - actions, noise, flow_times(steps))
    torch.testing.assert_close(made, actions)


def test_between_actions_and_noise_the_velocity_is_the_same_at_all_times():
    actions, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    early, velocity = between(actions, noise, torch.tensor([0.2, 0.0]))
    late, again = between(actions, noise, torch.tensor([0.7, 1.0]))
    torch.testing.assert_close(early[1], actions[1])
    torch.testing.assert_close(late[1], noise[1])
    torch.testing.assert_close(late[0] - early[0], 0.5 * velocity[0])
    assert torch.equal(velocity, again)


def test_times_of_training_are_drawn_as_public_code_draws_them():
    times = draw_times(20000, torch.Generator().manual_seed(0))
    assert times.min() >= 0.001
    assert times.max() <= 1
    # Mean and mean square of Beta(1.5, 1): 3/5 and 3/7.
    beta = (times - 0.001) / 0.999
    assert beta.mean().item() == pytest.approx(0.6, abs=0.01)
    assert beta.square().mean().item() == pytest.approx(3 / 7, abs=0.01)


def test_a_step_may_reuse_what_the_layers_added():
    step = FlowStep(0, torch.ones(1, 2, 3), lambda x: 2 * x, lambda rows: rows + 5,
                    lambda rows: rows * 10)
    velocity, added = step.run()
    assert velocity.unique().tolist() == [70]
    assert torch.equal(step.reuse(added), velocity)
    assert step.reuse(added + 1).unique().tolist() == [80]
