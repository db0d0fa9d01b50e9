"""Graphs, kernels and 8-bit products of a GPU compute what the plain network does."""

import checkpoint_variants as variants
import pytest
import torch
from tiny_model import CASES, assert_close, inputs_of, shared_fused_model, shared_model

from vla_policy_node.acceleration.lightvla import LightVla
from vla_policy_node.compression.float8 import Float8Linear
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.transformer import Rope
from vla_policy_node.runtime.fusing import LongProduct
from vla_policy_node.runtime.static_forward import StaticForward


@torch.inference_mode()
def test_graphs_replay_what_the_plain_network_computes():
    """Other pictures, prompts and kept counts than those a graph was captured with."""
    plain, model = shared_model().to('cuda'), shared_fused_model().to('cuda')
    method = LightVla()
    forward = StaticForward(model, [method])
    try:
        for case in [*CASES, *CASES]:
            inputs = [value.to('cuda') for value in inputs_of(case)]
            expected = plain(inputs, ForwardPass([LightVla()], 'last56'))
            assert_close(forward(inputs, ForwardPass(action_rows='last56')), expected, 1e-3)
    finally:
        shared_model().to('cpu'), shared_fused_model().to('cpu')


@torch.inference_mode()
def test_graphs_replay_bit_for_bit_what_the_same_stages_compute_without():
    model = shared_fused_model().to('cuda')
    graphs, eager = StaticForward(model, [LightVla()]), StaticForward(model, [LightVla()])
    eager._pool = None  # as on the CPU, where stages just run
    try:
        for case in [*CASES, *CASES]:
            inputs = [value.to('cuda') for value in inputs_of(case)]
            replayed, run = (
                forward(inputs, ForwardPass(action_rows='last56')) for forward in (graphs, eager))
            assert torch.equal(replayed, run)
    finally:
        shared_fused_model().to('cpu')


@pytest.mark.parametrize('head', ['discrete', 'diffusion', 'cogact'])
@torch.inference_mode()
def test_graphs_of_every_family_hold_what_its_stages_compute(head):
    """All denoising steps in one graph; nothing in it is copied from the host."""
    dit = {'dit': {'blocks': 1, 'width': 24, 'heads': 2}, 'chunk_length': 16}
    config = variants.config_of({
        **variants.CONFIG, **(dit if head == 'cogact' else {}), 'head': head})
    model = variants.random_model(config).to('cuda')
    if head == 'discrete':
        model.action_head.decode = lambda ids: ids  # random words are no actions
    graphs, eager = StaticForward(model), StaticForward(model)
    eager._pool = None
    for seed in range(3):
        torch.manual_seed(seed)
        inputs = (torch.randn(1, 2, 6, 56, 56).cuda(), torch.rand(1, 8).cuda(),
                  torch.tensor([[1, 40 + seed, 41, 2]]).cuda())
        replayed, run = (forward(inputs) for forward in (graphs, eager))
        assert torch.equal(replayed, run)
        assert_close(run.float(), model(inputs).float(), 1e-3)


@pytest.mark.parametrize(('heads', 'width', 'dtype', 'rotated'), [
    (2, 16, torch.float32, True), (2, 72, torch.bfloat16, False), (4, 128, torch.bfloat16, True)])
def test_the_attention_kernel_is_rotation_and_attention(heads, width, dtype, rotated):
    from vla_policy_node.runtime.kernels import attend

    for rows in (7, 168, 300):
        qkv = torch.randn(2, rows, 3 * heads * width, device='cuda', dtype=dtype)
        positions = torch.stack([torch.randperm(rows, device='cuda') + 5 for _ in range(2)])
        rope = Rope(positions, width, 10000.0, dtype)
        bias = torch.randn(2, 1, 1, rows, device='cuda', dtype=dtype) if rotated else None
        query, key, value = (
            x.unflatten(2, (heads, width)).transpose(1, 2) for x in qkv.chunk(3, dim=-1))
        if rotated:
            bias[..., 3:5] = -torch.inf
            query, key = rope(query), rope(key)
        expected = torch.nn.functional.scaled_dot_product_attention(
            query.double(), key.double(), value.double(), None if bias is None else bias.double())
        expected = expected.transpose(1, 2).flatten(2)
        inputs = qkv, heads, (rope.cos, rope.sin) if rotated else None, bias
        assert_close(attend(*inputs).double(), expected, 1e-5 if width == 16 else 0.02)
        small = attend(*inputs, torch.tensor(30.0, device='cuda'))
        assert small.element_size() == 1
        assert_close(small.double() / 30, expected, 0.05)


@torch.inference_mode()
def test_a_product_in_two_halves_is_the_product():
    linear = torch.nn.Linear(64, 32, bias=False).cuda().bfloat16()
    x = torch.randn(2, 5, 64).cuda().bfloat16()
    halves = torch.compile(LongProduct(linear), dynamic=False)
    assert_close(halves(x).double(), linear.double()(x.double()), 0.02)


def test_the_gating_kernel_rounds_as_quantise_rows():
    from vla_policy_node.runtime.kernels import gate_rows

    gate_up = torch.randn(2, 5, 2 * 1100, device='cuda', dtype=torch.bfloat16)
    gate, up = gate_up.float().chunk(2, dim=-1)
    expected = torch.nn.functional.silu(gate) * up
    rows, scale = gate_rows(gate_up)
    assert rows.dtype == torch.float8_e4m3fn
    assert_close(scale, expected.abs().amax(dim=-1, keepdim=True) / 448, 1e-5)
    assert ((rows.float() * scale - expected).abs()
            <= torch.maximum(expected.abs() / 16, scale * 2.0**-10) * 1.001).all()


@torch.inference_mode()
def test_eight_bit_products_run_on_the_gpu():
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip('this GPU does not multiply 8-bit floats')
    linear = torch.nn.Linear(64, 32).bfloat16()
    small = Float8Linear(linear)
    x = torch.randn(2, 5, 64).bfloat16()
    expected = small(x)
    assert_close(small.to('cuda')(x.to('cuda')).cpu().float(), expected.float(), 0.02)
