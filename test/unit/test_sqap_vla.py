"""SQAP-VLA: three rules that choose, and four bits behind a rotation."""

import pytest
import torch
from tiny_model import load_model, prepared, run_step, shared_inputs, torchs_flops
from torch import nn

from vla_policy_node.acceleration.sqap_vla import (
    FourBitLinear,
    block_of,
    four_bits,
    hadamard,
    ring,
    spread,
)
from vla_policy_node.families import count_flops
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime.small import create_small_checkpoint

GRID = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))


def outliers(rows=10, width=32):
    torch.manual_seed(0)
    x = torch.randn(rows, width, dtype=torch.float64)
    x[:, 3] *= 50
    return x, torch.randn(24, width, dtype=torch.float64)


def test_the_rotation_changes_no_product():
    x, weight = outliers()
    turn = hadamard(32).double()
    torch.testing.assert_close((x @ turn) @ (turn.T @ weight.T), x @ weight.T)


def test_with_it_four_bits_stand_an_outlier_better():
    x, weight = outliers()
    linear = nn.Linear(32, 24, bias=False)
    linear.weight.data = weight.float()
    rotated = FourBitLinear(linear)(x.float())
    (values, scale), (rounded, by_channel) = four_bits(x), four_bits(weight)
    plain = (values @ rounded.T) * scale * by_channel.T
    exact = x @ weight.T
    assert (rotated - exact).abs().mean() < 0.9 * (plain - exact).abs().mean()


def test_sixteen_levels_are_all_there_are():
    values, scale = four_bits(torch.randn(5, 64))
    assert values.abs().max() == 7 and torch.equal(values, values.round())
    assert scale.shape == (5, 1)
    assert [block_of(width) for width in (192, 512, 11008, 4096)] == [64, 128, 128, 128]


def test_filling_up_takes_the_farthest_and_a_budget_of_all_keeps_all():
    assert spread(torch.tensor([0]), GRID, 2).tolist() == [0, 15]
    assert spread(torch.tensor([0, 15]), GRID, 16).tolist() == list(range(16))
    assert spread(torch.tensor([], dtype=torch.int64), GRID, 3)[0] == 0
    assert spread(torch.tensor([4, 5, 6]), GRID, 2).tolist() == [4, 5, 6]


def test_a_robot_is_what_moved_and_its_neighbours():
    assert ring(torch.tensor([5]), (4, 4)).tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]


def test_the_protected_tokens_are_always_kept():
    method = prepared('sqap_vla', count=12, attended=1 / 6, robot=1, four_bits=False)
    model = load_model()
    run_step(model, method, shared_inputs(0))
    run_step(model, method, shared_inputs(1))
    assert len(method._protected) >= 4
    kept = method.report().kept
    assert kept[method._protected].all()
    assert kept.sum() == 12


def test_the_four_bit_model_answers_nearly_the_same_and_counts_its_rotations():
    model = load_model()
    exact = model(shared_inputs(0))
    method = prepared('sqap_vla', model, count=32, attended=1.0)
    assert (model(shared_inputs(0)) - exact).abs().mean() < 0.7 * exact.abs().mean()
    forward_pass = ForwardPass([method])
    counted = torchs_flops(lambda: model(shared_inputs(0), forward_pass))
    own = sum(count_flops(model.config, forward_pass.layer_rows).values())
    assert own + method.report().flops == counted


@pytest.mark.parametrize('dtype', ['float8', 'int8'])
def test_weights_that_have_few_bits_already_are_refused(tmp_path, dtype):
    checkpoint = create_small_checkpoint(tmp_path)
    with pytest.raises(ValueError, match='has few bits already; choose dtype'):
        LocalPolicy.load(checkpoint, methods=('sqap_vla',), dtype=dtype)
    settings = {'sqap_vla': {'four_bits': False}}
    LocalPolicy.load(checkpoint, methods=('sqap_vla',), method_settings=settings, dtype=dtype)
