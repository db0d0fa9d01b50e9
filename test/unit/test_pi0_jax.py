"""openpi's JAX parameters become the weights that they are in PyTorch."""

import json
import sys

import numpy as np
import pytest
import torch
from pi_models import KINDS, inputs_of, shared_network, tensors_of
from safetensors.torch import load_file

from vla_policy_node.families import pi0_jax, read_model_config
from vla_policy_node.runtime.loading import load_model

HEADS, VISION_HEADS = 8, 2


def stack(tensors, prefix, name):
    layers = []
    while f'{prefix}layers.{len(layers)}.{name}' in tensors:
        layers.append(tensors[f'{prefix}layers.{len(layers)}.{name}'])
    return torch.stack(layers).numpy()


def jax_parameters(kind):
    """The small network's weights where and as openpi's Flax modules keep them."""
    tensors = tensors_of(shared_network(kind))
    vision, found = pi0_jax._VISION, {}
    block = 'PaliGemma/img/Transformer/encoderblock/'

    def linear(path, name):
        found[f'{path}/kernel'] = tensors[f'{name}.weight'].numpy().T
        found[f'{path}/bias'] = tensors[f'{name}.bias'].numpy()

    patches = f'{vision}embeddings.patch_embedding.'
    found['PaliGemma/img/embedding/kernel'] = tensors[f'{patches}weight'].numpy().transpose(
        2, 3, 1, 0)
    found['PaliGemma/img/embedding/bias'] = tensors[f'{patches}bias'].numpy()
    found['PaliGemma/img/pos_embedding'] = tensors[
        f'{vision}embeddings.position_embedding.weight'].numpy()[None]
    linear('PaliGemma/img/head', pi0_jax._PROJECTOR.removesuffix('.'))
    for name in ('weight', 'bias'):
        theirs = 'scale' if name == 'weight' else name
        found[f'PaliGemma/img/Transformer/encoder_norm/{theirs}'] = tensors[
            f'{vision}post_layernorm.{name}'].numpy()
        for index in (0, 1):
            found[f'{block}LayerNorm_{index}/{theirs}'] = stack(
                tensors, f'{vision}encoder.', f'layer_norm{index + 1}.{name}')
    for index in (0, 1):
        dense = f'{block}MlpBlock_0/Dense_{index}'
        found[f'{dense}/kernel'] = stack(
            tensors, f'{vision}encoder.', f'mlp.fc{index + 1}.weight').swapaxes(1, 2)
        found[f'{dense}/bias'] = stack(tensors, f'{vision}encoder.', f'mlp.fc{index + 1}.bias')
    attention = f'{block}MultiHeadDotProductAttention_0/'
    for theirs, ours in (('query', 'q'), ('key', 'k'), ('value', 'v'), ('out', 'out')):
        weight = stack(tensors, f'{vision}encoder.', f'self_attn.{ours}_proj.weight')
        bias = stack(tensors, f'{vision}encoder.', f'self_attn.{ours}_proj.bias')
        depth, width, _ = weight.shape
        split = (depth, width, VISION_HEADS, width // VISION_HEADS)
        if theirs == 'out':
            split = (depth, VISION_HEADS, width // VISION_HEADS, width)
        else:
            bias = bias.reshape(depth, VISION_HEADS, -1)
        found[f'{attention}{theirs}/kernel'] = weight.swapaxes(1, 2).reshape(split)
        found[f'{attention}{theirs}/bias'] = bias
    for suffix, prefix in pi0_jax._DECODERS.items():
        query, key, value, out, gate, up, down = (
            stack(tensors, prefix, f'{name}.weight') for name in (
                'self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'self_attn.o_proj',
                'mlp.gate_proj', 'mlp.up_proj', 'mlp.down_proj'))
        depth, _, width = query.shape
        layers = 'PaliGemma/llm/layers/'
        found[f'{layers}attn/q_einsum{suffix}/w'] = query.reshape(
            depth, HEADS, -1, width).swapaxes(2, 3)
        found[f'{layers}attn/kv_einsum{suffix}/w'] = np.stack(
            [x.swapaxes(1, 2)[:, None] for x in (key, value)], axis=1)
        found[f'{layers}attn/attn_vec_einsum{suffix}/w'] = out.swapaxes(1, 2).reshape(
            depth, HEADS, -1, width)
        found[f'{layers}mlp{suffix}/gating_einsum'] = np.stack(
            [gate.swapaxes(1, 2), up.swapaxes(1, 2)], axis=1)
        found[f'{layers}mlp{suffix}/linear'] = down.swapaxes(1, 2)
        for theirs, ours in pi0_jax._NORMS.items():
            if kind == 'pi05' and suffix:
                dense = f'{layers}{theirs}{suffix}/Dense_0'
                found[f'{dense}/kernel'] = stack(
                    tensors, prefix, f'{ours}.dense.weight').swapaxes(1, 2)
                found[f'{dense}/bias'] = stack(tensors, prefix, f'{ours}.dense.bias')
            else:
                found[f'{layers}{theirs}{suffix}/scale'] = stack(
                    tensors, prefix, f'{ours}.weight')
        final = f'PaliGemma/llm/final_norm{suffix}'
        if kind == 'pi05' and suffix:
            linear(f'{final}/Dense_0', f'{prefix}norm.dense')
        else:
            found[f'{final}/scale'] = np.zeros(width, np.float32)
            if f'{prefix}norm.weight' in tensors:
                found[f'{final}/scale'] = tensors[f'{prefix}norm.weight'].numpy()
    found['PaliGemma/llm/embedder/input_embedding'] = tensors[
        'paligemma_with_expert.paligemma.lm_head.weight'].numpy()
    for name in [name for name in tensors if '.' in name and name.count('.') == 1]:
        if name.endswith('.weight'):
            linear(name.removesuffix('.weight'), name.removesuffix('.weight'))
    return found


@pytest.mark.parametrize('kind', KINDS)
def test_converted_it_answers_as_it_did(tmp_path, kind):
    pi0_jax.write(jax_parameters(kind), tmp_path / 'step', tmp_path / 'out', 6)
    (tmp_path / 'out' / 'tiny_sizes.json').write_text('{"vision": {"num_heads": 2}}')
    config = read_model_config(tmp_path / 'out')
    assert (config.family.name, config.chunk_length) == (kind, 6)
    network = load_model(tmp_path / 'out', config, 'cpu', 'float32')
    expected = shared_network(kind)
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, expected.state_dict()[name]), name
    with torch.inference_mode():
        assert network(inputs_of(0)).shape == (1, 6, 7)


def test_statistics_come_along(tmp_path):
    assets = tmp_path / 'step' / 'assets' / 'droid'
    assets.mkdir(parents=True)
    (assets / 'norm_stats.json').write_text('{}')
    pi0_jax.write(jax_parameters('pi0'), tmp_path / 'step', tmp_path / 'out', 10)
    assert (tmp_path / 'out' / 'assets' / 'droid' / 'norm_stats.json').is_file()


def test_16_bits_stay_16_bits(tmp_path):
    ml_dtypes = pytest.importorskip('ml_dtypes')  # which comes with JAX
    arrays = {name: x.astype(ml_dtypes.bfloat16) for name, x in jax_parameters('pi0').items()}
    pi0_jax.write(arrays, tmp_path / 'step', tmp_path / 'out', 10)
    weights = load_file(tmp_path / 'out' / 'model.safetensors')
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / 'out' / 'config.json').read_text())['precision'] == 'bfloat16'


def test_parameters_lie_in_a_tree():
    tree = {'a': {'value': np.zeros(2)}, 'value': {'kernel': {'value': np.ones(1)}}}
    assert {name: x.size for name, x in pi0_jax.flat(tree).items()} == {
        'a': 2, 'value/kernel': 1}


@pytest.mark.parametrize(('change', 'sentence'), [
    (lambda arrays: arrays.pop('PaliGemma/llm/embedder/input_embedding'), 'lacks PaliGemma/llm'),
    (lambda arrays: arrays.update({'PaliGemma/img/strange': np.zeros(1)}), 'strange, which'),
    (lambda arrays: arrays.update({'PaliGemma/llm/x/lora_a': np.zeros(1)}), 'LoRA weights beside'),
])
def test_what_is_no_pi0_is_refused_with_a_sentence(change, sentence):
    arrays = jax_parameters('pi0')
    change(arrays)
    with pytest.raises(ValueError, match=rf'{sentence}.*\.$'):
        pi0_jax.convert(arrays)


@pytest.mark.parametrize(('arguments', 'sentence'), [
    (['step', 'step', '--horizon', '5'], 'is there already'),
    (['step', 'out', '--horizon', '0'], 'must be from 1 to 1000'),
    (['nothing', 'out', '--horizon', '5'], 'has no params/'),
])
def test_the_command_says_what_is_wrong(tmp_path, monkeypatch, capsys, arguments, sentence):
    (tmp_path / 'step').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['pi0_jax', *arguments])
    assert pi0_jax.main() == 2
    assert sentence in capsys.readouterr().err
