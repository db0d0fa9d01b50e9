"""Quantised weights become the numbers they mean, or are refused by the name of a library."""

import json
from functools import partial
from pathlib import Path

import checkpoint_variants as variants
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vla_policy_node import cli
from vla_policy_node.checkpoints.quantised import check_config, int8_weights
from vla_policy_node.checks import files
from vla_policy_node.checks.findings import PASS
from vla_policy_node.families import read_model_config

LIBRARY = Path(__file__).parents[1] / 'data' / 'bitsandbytes_int8' / 'layer.safetensors'
LAYER = 'language_model.model.layers.0.mlp.up_proj'
NAME = LAYER.replace('model.layers', 'layers') + '.weight'  # in the network
BYTES = torch.zeros(4, dtype=torch.uint8)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return variants.make(tmp_path_factory.mktemp('quantised') / 'l1')


@pytest.fixture
def directory(made, tmp_path):
    return variants.copy(made, tmp_path / 'l1')


def rewrite(directory, change):
    path = directory / 'model.safetensors'
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)


def say(directory, **entries):
    path = directory / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def to_int8(weight):
    scales = weight.abs().amax(dim=1)
    return (weight * 127 / scales[:, None]).round().to(torch.int8), scales


def add_int8(tensors, layers):
    for layer in layers:
        codes, scales = to_int8(tensors[f'{layer}.weight'])
        tensors |= {f'{layer}.weight': codes, f'{layer}.SCB': scales,
                    f'{layer}.weight_format': torch.tensor(0, dtype=torch.uint8)}


@pytest.mark.parametrize(('entries', 'name'), [
    ({'quant_method': 'bitsandbytes', 'load_in_4bit': True, 'load_in_8bit': False,
      'bnb_4bit_quant_type': 'nf4'}, r'bitsandbytes to 4 bits \(nf4\)'),
    ({'load_in_4bit': True}, 'bitsandbytes to 4 bits'),
    ({'quant_method': 'gptq', 'bits': 4, 'group_size': 128}, 'gptq to 4 bits'),
    ({'quant_method': 'awq', 'bits': 4}, 'awq to 4 bits'),
    ({'quant_method': 'compressed-tensors', 'format': 'pack-quantized'}, 'compressed-tensors'),
    ({'quant_method': 'torchao', 'quant_type': {}}, 'torchao'),
    ({'quant_method': 'quanto', 'weights': 'int8'}, 'quanto'),
    ({'quant_method': 'fp8', 'activation_scheme': 'dynamic'}, 'fp8'),
    ({'quant_algo': 'FP8'}, 'FP8'),
    ({'bits': 3}, 'a library it does not name'),
])
@pytest.mark.parametrize('place', ['', 'text_config'])
def test_what_config_json_says_is_refused_by_name(directory, entries, name, place):
    chosen = {'quantization_config': entries}
    with pytest.raises(ValueError, match=f'were quantised by {name}.*dtype int8 or int4'):
        check_config({place: chosen} if place else chosen)
    if not place:
        say(directory, **chosen)
        with pytest.raises(ValueError, match=name):
            read_model_config(directory)


@pytest.mark.parametrize('entries', [
    {}, None, {'load_in_8bit': False, 'load_in_4bit': False},
    {'quant_method': 'bitsandbytes', 'load_in_8bit': True, 'llm_int8_threshold': 6.0}])
def test_what_is_not_quantised_or_can_be_read_passes(entries):
    check_config({'quantization_config': entries})


@pytest.mark.parametrize('entries', ['gptq', 4, [1]])
def test_what_is_no_object_is_refused(entries):
    with pytest.raises(ValueError, match=r'quantization_config .* must be an object'):
        check_config({'quantization_config': entries})


@pytest.mark.parametrize(('pieces', 'name'), [
    ({'weight': BYTES[:, None], 'weight.absmax': torch.ones(1), 'weight.quant_map': torch.ones(16),
      'weight.quant_state.bitsandbytes__nf4': BYTES}, r'bitsandbytes to 4 bits \(nf4\)'),
    ({'weight': BYTES[:, None], 'weight.absmax': BYTES, 'weight.nested_absmax': torch.ones(1),
      'weight.quant_state.bitsandbytes__fp4': BYTES}, r'bitsandbytes to 4 bits \(fp4\)'),
    ({'qweight': BYTES.int(), 'qzeros': BYTES.int(), 'scales': torch.ones(1),
      'g_idx': BYTES.int()}, 'GPTQ,'),
    ({'qweight': BYTES.int(), 'qzeros': BYTES.int(), 'scales': torch.ones(1)}, 'GPTQ or AWQ'),
    ({'weight_packed': BYTES.int(), 'weight_scale': torch.ones(1), 'weight_shape': BYTES.long()},
     'compressed-tensors'),
    ({'weight._data': BYTES, 'weight._scale': torch.ones(1), 'input_scale': torch.ones(())},
     'quanto'),
    ({'_weight_qdata': BYTES, '_weight_scale': torch.ones(1)}, 'torchao'),
    ({'weight': torch.ones(48, 32).to(torch.float8_e4m3fn), 'weight_scale_inv': torch.ones(1, 1)},
     '8-bit floats and their scales'),
    ({'weight': torch.ones(48, 32).to(torch.int8), 'weight_scale': torch.ones(48)},
     'weights and their scales apart'),
])
def test_what_lies_beside_the_weights_is_refused_by_name(directory, pieces, name):
    def change(tensors):
        del tensors[f'{LAYER}.weight']
        tensors |= {f'{LAYER}.{kind}': tensor for kind, tensor in pieces.items()}

    rewrite(directory, change)
    with pytest.raises(ValueError, match=f'quantised by .*{name}'):
        variants.load(directory)


@pytest.mark.parametrize('command', [['check'], ['check', '--dtype', 'int8']])
def test_vla_check_says_so_in_one_sentence(directory, command):
    rewrite(directory, lambda tensors: tensors.update({f'{LAYER}.weight.absmax': torch.ones(1)}))
    result = CliRunner().invoke(cli.app, [*command, str(directory)])
    assert result.exit_code == 1
    assert ' '.join(result.output.split()).count('quantised by bitsandbytes to 4 bits') == 1


@pytest.mark.parametrize('dtype', [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_a_weight_of_integers_is_refused_with_its_kind(directory, dtype):
    rewrite(directory, lambda t: t.update({f'{LAYER}.weight': t[f'{LAYER}.weight'].to(dtype)}))
    kind = str(dtype).removeprefix('torch.')
    with pytest.raises(ValueError, match=f'stores {NAME} as {kind}, .*was quantised'):
        variants.load(directory)


def test_floats_of_8_bits_are_numbers_where_nothing_scales_them(directory):
    small = load_file(directory / 'model.safetensors')[f'{LAYER}.weight'].to(torch.float8_e4m3fn)
    rewrite(directory, lambda tensors: tensors.update({f'{LAYER}.weight': small}))
    loaded = variants.load(directory).get_parameter(NAME)
    assert torch.equal(loaded, small.float())


@pytest.mark.parametrize('scale', ['out_scale', 'weight_amax', 'weight_quantizer._amax', 'zp'])
def test_floats_of_8_bits_with_anything_that_may_be_a_scale_are_refused(directory, scale):
    def change(tensors):
        tensors[f'{LAYER}.weight'] = tensors[f'{LAYER}.weight'].to(torch.float8_e4m3fn)
        tensors[f'{LAYER}.{scale}'] = torch.ones(48)

    rewrite(directory, change)
    with pytest.raises(ValueError, match=f'{LAYER}.{scale} beside it may be their scale'):
        variants.load(directory)


def test_eight_bits_of_bitsandbytes_are_the_numbers_that_it_makes_of_them():
    tensors = load_file(LIBRARY)
    stored = {f'x.{name}': tensor for name, tensor in tensors.items()}
    scales = {name: partial(stored.get, name) for name in stored}
    (read,) = int8_weights(LIBRARY, stored, stored.__getitem__, scales).values()
    assert torch.equal(read(), tensors['numbers'])


def test_codes_and_their_scales_may_be_in_different_shards(made, directory):
    rewrite(directory, lambda tensors: add_int8(tensors, [LAYER]))
    whole = variants.load(directory).get_parameter(NAME)
    tensors = load_file(directory / 'model.safetensors')
    scales = {f'{LAYER}.SCB': tensors.pop(f'{LAYER}.SCB')}
    save_file(tensors, directory / 'model-00001-of-00002.safetensors')
    save_file(scales, directory / 'model-00002-of-00002.safetensors')
    (directory / 'model.safetensors').unlink()
    assert torch.equal(variants.load(directory).get_parameter(NAME), whole)


def test_a_checkpoint_of_8_bits_acts_as_with_the_numbers_they_mean(made, directory):
    layers = [name.removesuffix('.weight') for name, tensor
              in load_file(made / 'model.safetensors').items()
              if tensor.ndim == 2 and name.startswith('language_model.model.layers')]
    assert len(layers) == 14
    rewrite(directory, lambda tensors: add_int8(tensors, layers))
    say(directory, quantization_config={'quant_method': 'bitsandbytes', 'load_in_8bit': True})
    loaded, plain = variants.load(directory), variants.load(made)
    for layer in layers:
        name = layer.replace('model.layers', 'layers') + '.weight'
        codes, scales = to_int8(plain.get_parameter(name))
        torch.testing.assert_close(
            loaded.get_parameter(name).data, codes * scales[:, None] / 127)
    assert files.check_files(directory, read_model_config(directory)).verdict == PASS


@pytest.mark.parametrize('damage', [
    lambda t: t.update({f'{LAYER}.SCB': torch.ones(3)}),
    lambda t: t.update({f'{LAYER}.weight_format': torch.tensor(2, dtype=torch.uint8)}),
    lambda t: t.update({f'{LAYER}.weight': t[f'{LAYER}.weight'].float()}),
])
def test_codes_of_another_layout_are_refused(directory, damage):
    rewrite(directory, lambda tensors: (add_int8(tensors, [LAYER]), damage(tensors)))
    with pytest.raises(ValueError, match=f'{LAYER}.weight is no int8 matrix with a scale'):
        variants.load(directory)
