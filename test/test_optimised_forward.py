"""Fused, static and 8-bit forward passes are the plain one, up to rounding."""

import copy
from dataclasses import replace

import checkpoint_variants as variants
import pytest
import torch
from tiny_model import CASES, assemble, inputs_of, load_model

from vla_policy_node.acceleration.lightvla import LightVla
from vla_policy_node.acceleration.random_tokens import RandomTokens
from vla_policy_node.models.float8 import Float8Linear, quantise_rows, to_float8
from vla_policy_node.models.fusing import fuse
from vla_policy_node.models.language_model import LanguageModel, LayerHooks
from vla_policy_node.models.static_forward import PROMPT_BUCKET, VISUAL_BUCKET, StaticForward
from vla_policy_node.models.token_sequence import TokenSequence

MODEL = load_model()
FUSED = fuse(load_model())
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')


@pytest.fixture(params=range(4), ids='case{}'.format)
def inputs(request):
    return inputs_of(CASES[request.param])


def assert_close(value, reference, tolerance=2e-5):
    torch.testing.assert_close(
        value, reference, rtol=0, atol=tolerance * reference.abs().max().item())


@torch.inference_mode()
def test_the_fused_network_is_the_plain_one(inputs):
    for methods in ([], [LightVla()]):
        assert_close(FUSED(*inputs, methods), MODEL(*inputs, methods))


@pytest.mark.parametrize('method', [None, LightVla])
@torch.inference_mode()
def test_every_folding_holds_to_1e_9_in_float64(method):
    """The golden checkpoint's norms and scales are near one; here they are not."""
    config = variants.read_config({**variants.CONFIG, 'head': 'l1'})
    plain = variants.random_model(config).double()
    fused = fuse(copy.deepcopy(plain))
    inputs = (torch.randn(1, 2, 6, 56, 56).double(), torch.rand(1, 8).double(),
              torch.tensor([[1, 40, 41, 42, 3]]))
    methods = [method()] if method else []
    expected = plain(*inputs, methods)
    assert expected.dtype == torch.float64
    for value in (fused(*inputs, methods), StaticForward(fused, methods)(*inputs)):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-9)


@torch.inference_mode()
def test_rows_that_the_last_layer_leaves_out_change_no_other_to_1e_9_in_float64(inputs):
    rows = MODEL.action_rows('oft')
    for network in (MODEL, FUSED):
        double = copy.deepcopy(network).double()
        sequence = assemble(double, [x.double() if x.is_floating_point() else x for x in inputs])
        asked = double.language_model(sequence, rows)
        every = double.language_model(sequence)[:, rows]
        torch.testing.assert_close(asked, every, rtol=0, atol=1e-9)


@torch.inference_mode()
def test_the_optimised_forward_in_bfloat16_is_off_by_less_than_a_hundredth_of_the_range():
    """Mean absolute error of each action value against float32; the range is -1 to 1."""
    forward = StaticForward(fuse(load_model().bfloat16()))
    errors = []
    for inputs in map(inputs_of, CASES):
        half = [x.bfloat16() if x.is_floating_point() else x for x in inputs]
        errors.append((forward(*half).float() - MODEL(*inputs)).abs()[0])
    means = torch.cat(errors).mean(dim=0)
    assert means.shape == (7,)
    assert (means > 0).all()
    assert means.max() < 0.02


@torch.inference_mode()
def test_a_method_sees_the_same_attention_in_the_fused_network(inputs):
    def attentions(model):
        seen = []
        hooks = LayerHooks()
        hooks.watch_attention = lambda index, _, attention: seen.append(
            attention(slice(-3, None)))
        model.language_model(assemble(model, inputs), hooks=hooks)
        return seen

    for plain, fused in zip(attentions(MODEL), attentions(FUSED), strict=True):
        assert_close(fused, plain)


@pytest.mark.parametrize('bias', [False, True])
@torch.inference_mode()
def test_buckets_with_hidden_rows_equal_dropping_tokens(inputs, bias):
    plain, static = LightVla(multiplicity_bias=bias), LightVla(multiplicity_bias=bias)
    forward = StaticForward(MODEL, [static])
    assert_close(forward(*inputs, 'last56'), MODEL(*inputs, [plain], 'last56'))
    assert (static.report().kept == plain.report().kept).all()
    assert (static.report().scores == plain.report().scores).all()


@torch.inference_mode()
def test_prompts_that_fill_up_a_bucket_change_nothing(inputs):
    forward = StaticForward(MODEL)
    assert_close(forward(*inputs), MODEL(*inputs))


@torch.inference_mode()
def test_the_network_runs_on_whole_buckets_and_no_more_than_they_need(monkeypatch):
    shapes, run = [], LanguageModel.forward

    def record(self, sequence: TokenSequence, *arguments, **options):
        shapes.append((sequence.states.shape[1], sequence.visual_rows))
        return run(self, sequence, *arguments, **options)

    monkeypatch.setattr(LanguageModel, 'forward', record)
    method = LightVla()
    forward = StaticForward(MODEL, [method])
    for case in CASES:
        forward(*inputs_of(case), 'last56')
        rows, visual = shapes[-1]
        kept = int(method.report().kept.sum())
        assert visual == min(-(-kept // VISUAL_BUCKET) * VISUAL_BUCKET, 32)
        # BOS is a row of the prompt; proprio and stop are two more, and one per action value.
        assert (rows - visual - 2 - MODEL.config.action_slots) % PROMPT_BUCKET == 0
        assert forward.layer_rows == [rows] * len(MODEL.language_model.layers)


def test_what_shapes_cannot_be_fixed_for_is_refused_with_a_sentence(inputs):
    with pytest.raises(ValueError, match="choose optimisation 'fused'"):
        StaticForward(MODEL, [RandomTokens()])(*inputs)
    with pytest.raises(ValueError, match="choose optimisation 'fused'"):
        StaticForward(MODEL, [LightVla(extra_random=3)])(*inputs)
    with pytest.raises(ValueError, match='one acceleration method'):
        StaticForward(MODEL, [LightVla(), LightVla()])
    discrete = copy.copy(MODEL)
    discrete.config = replace(MODEL.config, head='discrete')
    with pytest.raises(ValueError, match='not the discrete head'):
        StaticForward(discrete)


def test_eight_bit_rows_keep_their_sign_zeros_and_three_bits():
    x = torch.randn(5, 64)
    x[2] = 0
    rows, scale = quantise_rows(x)
    assert rows.element_size() == 1
    restored = rows.float() * scale
    assert (restored[2] == 0).all()
    smallest_normal = scale * 2.0**-6
    error = (restored - x).abs()
    assert (error <= torch.maximum(x.abs() / 16, smallest_normal / 16)).all()


@torch.inference_mode()
def test_eight_bit_products_stay_near_the_exact_ones():
    config = variants.read_config({**variants.CONFIG, 'head': 'l1', 'text_config': {
        **variants.CONFIG['text_config'], 'hidden_size': 128, 'intermediate_size': 256}})
    plain = variants.random_model(config).bfloat16()
    small = to_float8(fuse(copy.deepcopy(plain)))
    layer = small.language_model.layers[0]
    assert isinstance(layer.mlp.gate_up_proj, Float8Linear)
    assert layer.mlp.gate_up_proj.weight.element_size() == 1
    assert not any(isinstance(module, Float8Linear) for module in small.action_head.modules())
    inputs = (torch.randn(1, 2, 6, 56, 56).bfloat16(), torch.rand(1, 8).bfloat16(),
              torch.tensor([[1, 40, 41, 42, 3]]))
    expected, actions = plain(*inputs), small(*inputs)
    error = (actions - expected).float().abs().mean() / expected.float().std()
    assert 0 < error < 0.3  # a random network amplifies what a trained one absorbs


@needs_cuda
@torch.inference_mode()
def test_graphs_replay_what_the_plain_network_computes():
    """Other pictures, prompts and kept counts than those a graph was captured with."""
    plain, model = MODEL.to('cuda'), FUSED.to('cuda')
    method = LightVla()
    forward = StaticForward(model, [method])
    try:
        for case in [*CASES, *CASES]:
            inputs = [value.to('cuda') for value in inputs_of(case)]
            expected = plain(*inputs, [LightVla()], 'last56')
            assert_close(forward(*inputs, 'last56'), expected, 1e-3)
    finally:
        MODEL.to('cpu'), FUSED.to('cpu')


@needs_cuda
@torch.inference_mode()
def test_graphs_replay_bit_for_bit_what_the_same_stages_compute_without():
    model = FUSED.to('cuda')
    graphs, eager = StaticForward(model, [LightVla()]), StaticForward(model, [LightVla()])
    eager._pool = None  # as on the CPU, where stages just run
    try:
        for case in [*CASES, *CASES]:
            inputs = [value.to('cuda') for value in inputs_of(case)]
            assert torch.equal(graphs(*inputs, 'last56'), eager(*inputs, 'last56'))
    finally:
        FUSED.to('cpu')


@needs_cuda
@torch.inference_mode()
def test_eight_bit_products_run_on_the_gpu():
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip('this GPU does not multiply 8-bit floats')
    linear = torch.nn.Linear(64, 32).bfloat16()
    small = Float8Linear(linear)
    x = torch.randn(2, 5, 64).bfloat16()
    expected = small(x)
    assert_close(small.to('cuda')(x.to('cuda')).cpu().float(), expected.float(), 0.02)
