"""Weights of 8 bits: close to bfloat16, and much smaller. Needs torchao."""

import sys

import checkpoint_variants as variants
import pytest
import torch

from vla_policy_node.compression.quantise import make_quantiser, round_to_int4

HAS_TORCHAO = True
try:
    import torchao  # noqa: F401
except ImportError:
    HAS_TORCHAO = False
needs_torchao = pytest.mark.skipif(not HAS_TORCHAO, reason='torchao is not installed')


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    sizes = {**variants.CONFIG['text_config'], 'hidden_size': 128, 'intermediate_size': 256}
    return variants.make(tmp_path_factory.mktemp('quantise') / 'policy', text_config=sizes)


def storage_bytes(weight):
    parts = [value for value in vars(weight.data).values() if isinstance(value, torch.Tensor)]
    return sum(part.nbytes for part in parts)


@needs_torchao
def test_int8_stays_near_bfloat16_in_about_half_the_memory(directory):
    plain, small = (variants.load(directory, dtype) for dtype in ('bfloat16', 'int8'))
    weight = small.language_model.layers[0].mlp.gate_proj.weight
    assert storage_bytes(weight) < 0.55 * 2 * weight.numel()
    inputs = (torch.randn(1, 2, 6, 56, 56).bfloat16(), torch.zeros(1, 8).bfloat16(),
              torch.tensor([[1, 40, 41, 3]]))
    with torch.inference_mode():
        expected, actions = plain(inputs), small(inputs)
    error = (actions - expected).float().abs().mean() / expected.float().std()
    assert 0 < error < 0.1


@needs_torchao
def test_only_linear_layers_are_quantised(directory):
    small = variants.load(directory, 'int8')
    assert type(small.language_model.embed_tokens.weight.data) is torch.Tensor
    assert type(small.vision_backbone.featurizer.patch_embed.proj.weight.data) is torch.Tensor
    assert type(small.projector.fc1.weight.data) is not torch.Tensor


@needs_torchao
def test_int4_on_the_cpu_is_refused_with_a_sentence(directory):
    with pytest.raises(ValueError, match='int4 needs a CUDA device'):
        variants.load(directory, 'int4')


def test_without_torchao_there_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchao', None)
    monkeypatch.setitem(sys.modules, 'torchao.quantization', None)
    with pytest.raises(ValueError, match='need the package torchao: pip install torchao'):
        make_quantiser(torch.nn.Linear(2, 2), 'int8', torch.device('cpu'))


def test_rounding_to_four_bits_leaves_sixteen_levels_per_group():
    weight = torch.randn(3, 64)
    groups = weight.unflatten(1, (2, 32))
    rounded = round_to_int4(weight).unflatten(1, (2, 32))
    step = (groups.amax(2) - groups.amin(2)) / 15
    assert ((rounded - groups).abs() <= 0.501 * step[..., None]).all()
    assert all(len(group.unique()) <= 16 for row in rounded for group in row)


@needs_torchao
@pytest.mark.parametrize('head', ['l1', 'discrete', 'diffusion', 'autoregressive', 'cogact'])
def test_every_head_loads_in_int8(head, tmp_path):
    entries = variants.COGACT if head == 'cogact' else {}
    small = variants.load(variants.make(tmp_path / head, head, **entries), 'int8')
    assert type(small.projector.fc1.weight.data) is not torch.Tensor
