"""Weights pass through structure, values, fused, quantised, captured, in that order.

Every method that changes weights, with every optimisation and dtype, gives what the same steps
give one after the other on a network that was loaded whole.
"""

import checkpoint_variants as variants
import pytest
import torch
from torch import nn

from vla_policy_node import acceleration, families
from vla_policy_node.acceleration import Effect
from vla_policy_node.acceleration.declarations import check_fixed_shapes
from vla_policy_node.acceleration.hooks import WeightHooks
from vla_policy_node.compression.float8 import to_float8
from vla_policy_node.compression.quantise import BITS, make_quantiser
from vla_policy_node.encoding.encoder import Inputs
from vla_policy_node.families import read_model_config
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.norms import RmsNorm
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime import loading
from vla_policy_node.runtime.fusing import FusedSelfAttention, fuse
from vla_policy_node.runtime.loading import DTYPES, load_model
from vla_policy_node.runtime.static_forward import StaticForward

CPU = torch.device('cpu')
# Every method that changes weights, and settings in which it does so differently.
CHANGING = {
    'depth_cut': [{'keep': 0.5}, {'keep': 0.5, 'spread': True}],
    'sqap_vla': [{'keep': 0.5}],
}
CASES = [(name, given) for name, all_ in CHANGING.items() for given in all_]
# Mean error of a fused network's actions as a share of their spread, by what computes them.
ROUNDING = {'float32': 1e-5, 'bfloat16': 0.05, 'int8': 0.05, 'float8': 0.3}


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    """Four layers that int8 takes, with norms that matter."""
    sizes = {**variants.CONFIG['text_config'], 'hidden_size': 128, 'intermediate_size': 256,
             'num_hidden_layers': 4}
    return variants.make(tmp_path_factory.mktemp('order') / 'policy', text_config=sizes)


def methods_of(directory, name, settings):
    methods = [acceleration.create(name, **settings)]
    acceleration.prepare(methods, directory, read_model_config(directory))
    return methods


def load(directory, dtype, fused=False, methods=()):
    return load_model(directory, read_model_config(directory), 'cpu', dtype, fused=fused,
                      methods=methods)


def in_plain_order(directory, dtype, fused, methods):
    """Each step on the whole network, none of them while it is read."""
    network = load(directory, 'float32' if dtype == 'float32' else 'bfloat16')
    for method in methods:
        method.change_structure(network)
    if fused and dtype not in BITS:
        fuse(network)
    if dtype == 'float8':
        to_float8(network)
    if dtype in BITS:
        quantise = make_quantiser(network, dtype, CPU)
        state = {name: quantise(name, weight) for name, weight in network.state_dict().items()}
        network.load_state_dict(state, assign=True)
    for method in methods:
        method.change_weights(network)
    return network.requires_grad_(False)


def run(network, methods, optimisation):
    generator = torch.Generator().manual_seed(0)
    dtype = network.language_model.embed_tokens.weight.dtype
    pixels = torch.rand(1, 2, 6, 56, 56, generator=generator).to(dtype)
    inputs = Inputs(pixels, torch.zeros(1, 8, dtype=dtype), torch.tensor([[1, 40, 41, 42, 3]]))
    forward_pass = ForwardPass(methods)
    with torch.inference_mode():
        if optimisation in ('graphs', 'compiled'):
            return StaticForward(network, methods, optimisation == 'compiled')(
                inputs, forward_pass)
        return network(inputs, forward_pass)


def assert_same_weights(network, reference):
    ours, theirs = network.state_dict(), reference.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        same, other = (t.dequantize() if hasattr(t, 'dequantize') and type(t) is not torch.Tensor
                       else t.detach() for t in (tensor, theirs[name]))
        assert same.dtype == other.dtype
        assert torch.equal(same.float(), other.float()), name


def test_every_method_that_changes_weights_is_here():
    changing = {name for name in acceleration.available()
                if Effect.CHANGES_WEIGHTS in acceleration.create(name).does}
    assert changing == CHANGING.keys()


@pytest.mark.parametrize('dtype', [dtype for dtype in DTYPES if dtype != 'int4'])
@pytest.mark.parametrize('optimisation', ['none', 'fused', 'graphs'])
@pytest.mark.parametrize(('name', 'settings'), CASES, ids=str)
def test_the_order_of_loading_is_the_plain_one(directory, name, settings, optimisation, dtype):
    if dtype in BITS:
        pytest.importorskip('torchao', reason='torchao is not installed')
    ours, theirs, plain = (methods_of(directory, name, settings) for _ in range(3))
    if name == 'sqap_vla' and optimisation == 'graphs':
        with pytest.raises(ValueError, match='cannot run in fixed shapes'):
            check_fixed_shapes(ours)
        return
    if name == 'sqap_vla' and dtype in ('int8', 'float8'):
        with pytest.raises(ValueError, match='has few bits already'):
            load(directory, dtype, optimisation != 'none', ours)
        return
    fused = optimisation != 'none'
    network = load(directory, dtype, fused, ours)
    reference = in_plain_order(directory, dtype, fused, theirs)
    assert_same_weights(network, reference)
    actions = run(network, ours, optimisation)
    assert torch.equal(actions, run(reference, theirs, optimisation))
    if name != 'sqap_vla':  # which rounds to 4 bits what fusing has made
        expected = run(load(directory, dtype, methods=plain), plain, 'none').float()
        error = (actions.float() - expected).abs().mean() / expected.std()
        assert error <= (0 if optimisation == 'none' else ROUNDING[dtype])


@pytest.mark.slow
def test_a_cut_network_is_compiled_as_it_is(directory):
    """Compiling takes long, and sees nothing of how a network was loaded: one case for all."""
    settings = {'keep': 0.5, 'spread': True}
    ours, plain = (methods_of(directory, 'depth_cut', settings) for _ in range(2))
    actions = run(load(directory, 'float32', True, ours), ours, 'compiled')
    expected = run(load(directory, 'float32', methods=plain), plain, 'none')
    torch.testing.assert_close(actions, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize('settings', CHANGING['depth_cut'], ids=str)
def test_layers_that_are_removed_are_not_read(directory, settings, monkeypatch):
    read, place = [], loading._place
    monkeypatch.setattr(
        loading, '_place', lambda stored, *to: read.append(stored.name) or place(stored, *to))
    progress = []
    config = read_model_config(directory)
    load_model(directory, config, 'cpu', 'float32', progress.append,
               methods=methods_of(directory, 'depth_cut', settings))
    layers = {int(name.split('.')[2]) for name in read
              if name.startswith('language_model.layers.')}
    assert layers == ({0, 2} if settings.get('spread') else {0, 1})
    assert len(read) == len(set(read))
    assert progress[-1] == 1


def test_the_last_layer_that_is_left_is_fused_as_the_last_one(directory):
    network = load(directory, 'float32', True, methods_of(directory, 'depth_cut', {'keep': 0.5}))
    attentions = [layer.self_attn for layer in network.language_model.layers]
    assert all(isinstance(attention, FusedSelfAttention) for attention in attentions)
    assert [attention.q_proj is not None for attention in attentions] == [False, True]


class Watch(WeightHooks):
    """Notes what it is shown."""

    def __init__(self, seen):
        self.seen = seen

    def change_structure(self, network):
        self.seen.append('structure')
        assert all(weight.is_meta for weight in network.parameters())

    def change_weights(self, network):
        self.seen.append('weights')
        assert not any(weight.is_meta for weight in network.parameters())
        assert isinstance(network.language_model.layers[0].self_attn, FusedSelfAttention)


def test_all_methods_see_the_structure_before_one_sees_weights(directory):
    seen = []
    load(directory, 'float32', True, [Watch(seen), Watch(seen)])
    assert seen == ['structure', 'structure', 'weights', 'weights']


@pytest.mark.parametrize('dtype', ['float32', 'int8'])
def test_a_weight_of_two_names_is_read_by_the_first_and_stays_one(directory, dtype, monkeypatch):
    if dtype in BITS:
        pytest.importorskip('torchao', reason='torchao is not installed')
    create = families.create_network

    def tied(config):
        network = create(config)
        first, second = network.language_model.layers[:2]
        second.mlp.up_proj.weight = first.mlp.up_proj.weight
        return network

    alone = load(directory, dtype).language_model.layers[0].mlp.up_proj.weight
    monkeypatch.setattr(families, 'create_network', tied)
    shares = []
    network = load_model(
        directory, read_model_config(directory), 'cpu', dtype, shares.append)
    first, second = network.language_model.layers[:2]
    assert second.mlp.up_proj.weight is first.mlp.up_proj.weight
    rows = torch.eye(first.mlp.up_proj.in_features, dtype=DTYPES[dtype])
    assert torch.equal(second.mlp.up_proj(rows), torch.nn.functional.linear(rows, alone))
    assert shares[-1] == 1


class Replace(WeightHooks):
    """Puts another norm where one was."""

    def change_structure(self, network):
        width = network.config.language_model.width
        network.language_model.norm = RmsNorm(width, 1e-6)


def test_what_a_method_puts_in_before_weights_are_read_has_no_values(directory):
    with pytest.raises(ValueError, match=r'No file has values for language_model\.norm\.weight'):
        load(directory, 'float32', methods=[Replace()])


def test_a_policy_is_loaded_in_that_order(directory):
    policy = LocalPolicy.load(directory, ('depth_cut',), optimisation='fused')
    layers = policy._model.language_model.layers
    assert len(layers) == 2
    assert isinstance(layers[-1].self_attn.q_proj, nn.Linear)


def test_8_bit_integers_are_not_compiled_on_the_cpu(directory, monkeypatch):
    monkeypatch.setattr(loading, '_read', lambda *_: pytest.fail('weights are read'))
    with pytest.raises(ValueError, match="choose optimisation 'graphs', or dtype float32"):
        LocalPolicy.load(directory, (), dtype='int8', optimisation='compiled')
