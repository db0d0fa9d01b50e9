"""Fused, static and 8-bit forward passes are the plain one, up to rounding."""

import copy
import threading

import checkpoint_variants as variants
import pytest
import torch
from tiny_model import (
    CASES,
    CONFIG,
    assemble,
    assert_close,
    inputs_of,
    load_model,
    prepared,
    shared_fused_model,
    shared_inputs,
    shared_model,
    step_of,
    untrained,
)

from vla_policy_node import acceleration, families
from vla_policy_node.acceleration import Effect
from vla_policy_node.acceleration.lightvla import LightVla
from vla_policy_node.compression.float8 import Float8Linear, quantise_rows, reach, to_float8
from vla_policy_node.encoding.encoder import Inputs
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.hooks import LayerHooks
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.nn.transformer import Decoder, DecoderConfig, DecoderLayer
from vla_policy_node.runtime import compiling, static_forward
from vla_policy_node.runtime.fusing import fuse
from vla_policy_node.runtime.static_forward import OTHERS_BUCKET, VISUAL_BUCKET, StaticForward


@pytest.fixture(params=range(4), ids='case{}'.format)
def inputs(request):
    return inputs_of(CASES[request.param])


@torch.inference_mode()
def test_the_fused_network_is_the_plain_one(inputs):
    for methods in ([], [LightVla()]):
        fused, plain = (
            model(inputs, ForwardPass(methods))
            for model in (shared_fused_model(), shared_model()))
        assert_close(fused, plain)


@pytest.mark.parametrize('method', [None, LightVla])
@torch.inference_mode()
def test_every_folding_holds_to_1e_9_in_float64(method):
    """The golden checkpoint's norms and scales are near one; here they are not."""
    config = variants.config_of({**variants.CONFIG, 'head': 'l1'})
    plain = variants.random_model(config).double()
    fused = fuse(copy.deepcopy(plain))
    inputs = (torch.randn(1, 2, 6, 56, 56).double(), torch.rand(1, 8).double(),
              torch.tensor([[1, 40, 41, 42, 3]]))
    methods = [method()] if method else []
    expected = plain(inputs, ForwardPass(methods))
    assert expected.dtype == torch.float64
    for value in (fused(inputs, ForwardPass(methods)), StaticForward(fused, methods)(inputs)):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-9)


@torch.inference_mode()
def test_rows_that_the_last_layer_leaves_out_change_no_other_to_1e_9_in_float64(inputs):
    rows = shared_model().action_rows('oft')
    for network in (shared_model(), shared_fused_model()):
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
        errors.append((forward(half).float() - shared_model()(inputs)).abs()[0])
    means = torch.cat(errors).mean(dim=0)
    assert means.shape == (7,)
    assert (means > 0).all()
    assert means.max() < 0.02


@torch.inference_mode()
def test_weights_of_any_width_can_be_fused():
    model = variants.random_model(variants.config_of({
        **variants.CONFIG, 'head': 'l1', 'vision_tiny': {
            name: {**encoder, 'embed_dim': 20, 'mlp_hidden': 30}
            for name, encoder in variants.CONFIG['vision_tiny'].items()},
        'text_config': {
            **variants.CONFIG['text_config'], 'hidden_size': 36, 'num_attention_heads': 2,
            'intermediate_size': 51}}))
    inputs = eight_bit_inputs()
    assert_close(fuse(copy.deepcopy(model))(inputs), model(inputs))


@torch.inference_mode()
def test_a_method_sees_the_same_attention_in_the_fused_network(inputs):
    def attentions(model):
        seen = []
        hooks = LayerHooks()
        hooks.watch_attention = lambda index, _, attention: seen.append(
            attention(slice(-3, None)))
        model.language_model(assemble(model, inputs), hooks=hooks)
        return seen

    seen = zip(attentions(shared_model()), attentions(shared_fused_model()), strict=True)
    for plain, fused in seen:
        assert_close(fused, plain)


@pytest.mark.parametrize('bias', [False, True])
@torch.inference_mode()
def test_buckets_with_hidden_rows_equal_dropping_tokens(inputs, bias):
    plain, static = LightVla(multiplicity_bias=bias), LightVla(multiplicity_bias=bias)
    forward = StaticForward(shared_model(), [static])
    expected = shared_model()(inputs, ForwardPass([plain], 'last56'))
    assert_close(forward(inputs, ForwardPass(action_rows='last56')), expected)
    assert (static.report().kept == plain.report().kept).all()
    assert (static.report().scores == plain.report().scores).all()


# Settings to choose by; of others that choose in fixed shapes, their defaults.
STATIC = {
    'adp': [{'keep': 0.5, 'rule': 'always'}, {'keep': 0.5, 'rule': 'never'},
            {'keep': 0.4}, {'keep': 1.0, 'rule': 'always'}],
    'fastdrivevla': [{'prune': 0.6}],
    'lightvla': [{'count': 7}],
    'random_tokens': [{'count': 9}],
}
CHOOSING = [(name, given) for name in acceleration.available()
            if Effect.FIXED_SHAPES in acceleration.named(name).does
            for given in STATIC.get(name, [{}])]


@pytest.mark.parametrize(('name', 'settings'), CHOOSING, ids=str)
@torch.inference_mode()
def test_every_choice_before_layer_0_is_the_same_in_fixed_shapes(name, settings):
    plain, static = (acceleration.create(name, **settings) for _ in range(2))
    for method in (plain, static):
        acceleration.prepare([method], untrained(), CONFIG)
        acceleration.change_network([method], shared_model())
    forward = StaticForward(shared_model(), [static])
    for number in range(8):
        inputs = shared_inputs(number % 4)
        for method in (plain, static):
            method.begin_step(step_of(inputs, (0.01 * number * (number % 3), 0.0, 0.0)))
        assert_close(forward(inputs), shared_model()(inputs, ForwardPass([plain])))
        assert (static.report().kept == plain.report().kept).all()


def test_what_drops_tokens_before_layer_0_alone_can_choose_in_fixed_shapes():
    does = {name: acceleration.create(name).does for name in acceleration.available()}
    alone = {Effect.DROPS_TOKENS, Effect.DROPS_TOKENS_LATER, Effect.COST_VARIES}
    for name, effects in does.items():
        if Effect.DROPS_TOKENS in effects and effects - {Effect.FIXED_SHAPES} <= alone:
            assert Effect.FIXED_SHAPES in effects, name
    assert STATIC.keys() <= {name for name, _ in CHOOSING}


@torch.inference_mode()
def test_what_only_changes_weights_runs_beside_in_fixed_shapes(inputs):
    model = load_model()
    cut, chosen, plain = prepared('depth_cut', model), LightVla(), LightVla()
    forward = StaticForward(model, [cut, chosen])
    forward_pass = ForwardPass()
    assert_close(forward(inputs, forward_pass), model(inputs, ForwardPass([cut, plain])))
    assert len(forward_pass.layer_rows) == len(model.language_model.layers) == 2


# What others need in config.json.
FAMILIES = {
    'l1': {}, 'discrete': {}, 'diffusion': {'diffusion_steps': 4},
    'cogact': {'dit': {'blocks': 1, 'width': 24, 'heads': 2}, 'chunk_length': 16}}


@pytest.mark.slow
@pytest.mark.parametrize('methods', [[], [LightVla()]], ids=['dense', 'lightvla'])
@torch.inference_mode()
def test_what_is_handed_to_the_compiler_is_the_same_network(methods, inputs, monkeypatch):
    """Traced, and run as it was written: what compilers make of it is theirs to test."""
    monkeypatch.setattr(compiling, 'OPTIONS', {'dynamic': False, 'backend': 'eager'})
    forward = StaticForward(shared_fused_model(), methods, compiled=True)
    expected = shared_model()(inputs, ForwardPass(methods, 'last56'))
    assert_close(forward(inputs, ForwardPass(action_rows='last56')), expected)


@pytest.mark.slow
@pytest.mark.parametrize('head', ['discrete', 'diffusion', 'cogact'])
@torch.inference_mode()
def test_the_compiler_is_handed_every_family(head, monkeypatch):
    monkeypatch.setattr(compiling, 'OPTIONS', {'dynamic': False, 'backend': 'eager'})
    model = variants.random_model(
        variants.config_of({**variants.CONFIG, **FAMILIES[head], 'head': head}))
    if head == 'discrete':
        model.action_head.decode = lambda ids: ids  # random words are no actions
    inputs = (torch.randn(1, 2, 6, 56, 56), torch.rand(1, 8), torch.tensor([[1, 40, 41, 2]]))
    forward = StaticForward(fuse(copy.deepcopy(model)), compiled=True)
    assert_close(forward(inputs).float(), model(inputs).float())


@pytest.mark.slow
@torch.inference_mode()
def test_every_form_of_every_bucket_is_compiled_whatever_thread_runs_it(monkeypatch):
    """Torch's limit is 8 forms, and is told to each thread; beyond it, it gives up in silence."""
    compiled = []

    def note(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling, 'OPTIONS', {'dynamic': False, 'backend': note})
    monkeypatch.setattr(static_forward, 'VISUAL_BUCKET', 2)
    forward = StaticForward(shared_fused_model(), [LightVla()], compiled=True)

    @torch.inference_mode()
    def prepare():
        forward.prepare(inputs_of(CASES[0]), 'last56')

    thread = threading.Thread(target=prepare)
    thread.start()
    thread.join()
    assert len(compiled) > 3 * 16  # first, last and other layers of each


@torch.inference_mode()
def test_prompts_that_fill_up_a_bucket_change_nothing(inputs):
    forward = StaticForward(shared_model())
    assert_close(forward(inputs), shared_model()(inputs))


@torch.inference_mode()
def test_the_network_runs_on_whole_buckets_and_no_more_than_they_need(monkeypatch):
    shapes, run = [], Decoder.forward

    def record(self, sequence: TokenSequence, *arguments, **options):
        shapes.append((sequence.states.shape[1], sequence.visual_rows))
        return run(self, sequence, *arguments, **options)

    monkeypatch.setattr(Decoder, 'forward', record)
    method = LightVla()
    forward = StaticForward(shared_model(), [method])
    for case in CASES:
        forward_pass = ForwardPass(action_rows='last56')
        forward(inputs_of(case), forward_pass)
        rows, visual = shapes[-1]
        kept = int(method.report().kept.sum())
        assert visual == min(-(-kept // VISUAL_BUCKET) * VISUAL_BUCKET, 32)
        assert (rows - visual) % OTHERS_BUCKET == 0
        # BOS is a row of the prompt; proprio and stop are two more, and one per action value.
        needed = inputs_of(case)[2].shape[1] + 2 + shared_model().config.action_slots
        assert 0 <= rows - visual - needed < OTHERS_BUCKET
        layers, slots = len(shared_model().language_model.layers), CONFIG.action_slots
        assert [done[:3] for done in forward_pass.layer_rows] == [
            (rows, rows, rows)] * (layers - 1) + [(slots, rows, rows)]


@pytest.mark.parametrize('methods', [[], [LightVla()]], ids=['dense', 'lightvla'])
@torch.inference_mode()
def test_after_prepare_no_pass_with_such_a_prompt_is_the_first_of_its_bucket(methods):
    forward = StaticForward(shared_model(), methods)
    pictures, proprio, prompt_ids = inputs_of(CASES[0])
    inputs = Inputs(torch.zeros_like(pictures), proprio, prompt_ids)
    forward.prepare(inputs, 'last56')
    assert not forward._stages  # on a CPU, where it would be for nothing
    forward._compiled = True
    forward.prepare(inputs, 'last56')
    prepared = set(forward._stages)
    for case in CASES:
        forward((inputs_of(case)[0], proprio, prompt_ids), ForwardPass(action_rows='last56'))
    assert set(forward._stages) == prepared
    assert len(prepared) == 2 + 2 * (32 // VISUAL_BUCKET if methods else 1)


def test_what_shapes_cannot_be_fixed_for_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match="choose optimisation 'fused'"):
        StaticForward(shared_model(), [prepared('fastv')])
    with pytest.raises(ValueError, match="choose optimisation 'fused'"):
        StaticForward(shared_model(), [LightVla(extra_random=3)])
    with pytest.raises(ValueError, match='one acceleration method'):
        StaticForward(shared_model(), [LightVla(), LightVla()])
    generating = copy.copy(shared_model())
    generating.config = families.named('autoregressive').configure(shared_model().config)
    with pytest.raises(ValueError, match='not for the autoregressive head'):
        StaticForward(generating)


def test_every_family_but_the_one_that_generates_offers_fixed_shapes():
    offering = {name for name in families.available()
                if Capability.FIXED_SHAPES in families.named(name).traits.capabilities}
    assert offering >= {*FAMILIES}
    assert 'autoregressive' not in offering


@pytest.mark.parametrize(('name', 'settings'), [
    (None, {}), ('lightvla', {}), ('lightvla', {'multiplicity_bias': True}),
    ('random_tokens', {'count': 9})], ids=str)
@pytest.mark.parametrize('head', FAMILIES)
@torch.inference_mode()
def test_every_family_is_the_plain_one_in_fixed_shapes(head, name, settings):
    """Actions, what its layers did and the order of its stages; the fused network, too."""
    config = variants.config_of({**variants.CONFIG, **FAMILIES[head], 'head': head})
    if name and not config.can(Capability.VISUAL_TOKENS):
        pytest.skip('takes no methods')
    model = variants.random_model(config).double()
    plain, static = ([acceleration.create(name, **settings)] if name else [] for _ in range(2))
    if head == 'discrete':
        model.action_head.decode = lambda ids: ids  # random words are no actions
    for network in (model, fuse(copy.deepcopy(model))):
        forward = StaticForward(network, static)
        for words in (2, 7):
            prompt = torch.tensor([[1, *range(40, 40 + words), 2]])
            inputs = torch.randn(1, 2, 6, 56, 56).double(), torch.rand(1, 8).double(), prompt
            marks, results, rows = ([], []), [], []
            for method in (*plain, *static):
                method.reset()
            for run, methods, ended in ((model, plain, marks[0]), (forward, (), marks[1])):
                forward_pass = ForwardPass(methods, mark=ended.append)
                results.append(run(inputs, forward_pass))
                rows.append(forward_pass.layer_rows)
            expected, value = results
            torch.testing.assert_close(
                value, expected, rtol=0, atol=1e-9 if value.dtype == torch.float64 else 1e-5)
            assert marks[0] == marks[1]
            assert rows[0][-1].asking == rows[1][-1].asking
            assert all(0 <= padded.new - needed.new < OTHERS_BUCKET + VISUAL_BUCKET
                       for needed, padded in zip(*rows, strict=True))


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


def model_for_eight_bits():
    """Every width is one that the hardware multiplies."""
    encoder = {**variants.CONFIG['vision_tiny']['featurizer'], 'embed_dim': 32, 'mlp_hidden': 48}
    return variants.random_model(variants.config_of({
        **variants.CONFIG, 'head': 'l1', 'vision_tiny': {
            name: encoder for name in variants.CONFIG['vision_tiny']},
        'text_config': {
            **variants.CONFIG['text_config'], 'hidden_size': 128, 'intermediate_size': 256}}))


def eight_bit_inputs():
    torch.manual_seed(5)
    return (torch.randn(1, 2, 6, 56, 56), torch.rand(1, 8), torch.tensor([[1, 40, 41, 42, 3]]))


@torch.inference_mode()
def test_eight_bit_products_stay_near_the_exact_ones():
    plain = model_for_eight_bits().bfloat16()
    small = to_float8(fuse(copy.deepcopy(plain)))
    layer = small.language_model.layers[0]
    assert isinstance(layer.mlp.gate_up_proj, Float8Linear)
    assert layer.mlp.gate_up_proj.weight.element_size() == 1
    assert isinstance(small.vision_backbone.featurizer.blocks[0].mlp.fc1, Float8Linear)
    assert not any(isinstance(module, Float8Linear) for module in small.action_head.modules())
    inputs = [x.bfloat16() if x.is_floating_point() else x for x in eight_bit_inputs()]
    expected, actions = plain(inputs), small(inputs)
    error = (actions - expected).float().abs().mean() / expected.float().std()
    assert 0 < error < 0.3  # a random network amplifies what a trained one absorbs


@pytest.mark.parametrize('change', [fuse, lambda model: model], ids=['fused', 'plain'])
@torch.inference_mode()
def test_nothing_that_is_rounded_to_eight_bits_exceeds_its_bound(change):
    plain = model_for_eight_bits()
    for name, weight in plain.named_parameters():  # values are larger than queries and keys
        if name.endswith('attn.qkv.weight'):
            weight[2 * weight.shape[1]:] *= 20
        elif name.endswith('v_proj.weight'):
            weight *= 20
    model = to_float8(change(plain))
    shares = {}

    def look(name):
        def see(linear, inputs):
            shares[name] = float((inputs[0] * linear.factor).abs().max()) / 448
        return see

    bounded = {name: module for name, module in model.named_modules()
               if isinstance(module, Float8Linear) and module.factor is not None}
    for name, module in bounded.items():
        module.register_forward_pre_hook(look(name))
    model(eight_bit_inputs())
    assert shares.keys() == bounded.keys()
    assert len(shares) > 12
    assert max(shares.values()) <= 1
    assert min(shares.values()) > 0.05


@torch.inference_mode()
def test_a_bound_is_reached_by_the_worst_row_and_by_none_exceeded():
    torch.manual_seed(0)
    norm, linear = torch.nn.LayerNorm(64), torch.nn.Linear(64, 48)
    norm.weight.copy_(torch.rand(64) * 3)
    norm.bias.copy_(torch.randn(64))
    linear.bias.copy_(torch.randn(48) * 5)
    linear.weight[:16] *= 50  # not among those that are asked for
    dominant = torch.eye(64) * norm.weight.sign()
    largest = norm(dominant).abs().max()
    assert 0.9 * reach(norm, 64) < largest <= reach(norm, 64)
    along = linear.weight * norm.weight
    rows = torch.cat([along - along.mean(dim=1, keepdim=True)] * 2)
    rows[48:] *= -1
    largest = linear(norm(rows))[:, 16:].abs().max()
    assert 0.8 * reach(norm, 32, linear) < largest <= reach(norm, 32, linear)
    for parameter in (*norm.parameters(), *linear.parameters()):
        parameter.zero_()
    zeros = Float8Linear(linear, reach(norm, 64, linear))
    assert zeros(torch.zeros(2, 64)).isfinite().all()


@torch.inference_mode()
def test_the_bound_of_a_norm_by_one_plus_its_weight_holds():
    torch.manual_seed(3)
    layer = DecoderLayer(DecoderConfig(
        width=64, layers=1, heads=4, mlp_width=96, vocabulary=0, norm_offset=True))
    norm = layer.input_layernorm
    norm.weight.copy_(0.1 * torch.randn(64))
    rows = 100 * torch.eye(64)  # one number has all of a row's size: the worst case
    assert norm(rows).abs().max() <= reach(norm, 64) * (1 + 1e-5)
    values = layer.self_attn.v_proj
    rows = values.weight * norm.gain
    assert values(norm(rows)).abs().max() <= reach(norm, 64, values)
    to_float8(layer)
    assert float(layer.self_attn.v_proj.factor) <= 448 / norm.gain.max() / 8 * (1 + 1e-5)


def test_norms_that_a_condition_changes_have_no_bound():
    layer = DecoderLayer(DecoderConfig(
        width=64, layers=1, heads=4, mlp_width=96, vocabulary=0, condition_width=16))
    with pytest.raises(ValueError, match='dtype float8 needs norms whose largest result is known'):
        to_float8(layer)
