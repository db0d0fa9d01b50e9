"""`vla check --golden`: recordings agree, and one wrong constant is found in its stage."""

import io
import json
import os
import pickle
import shutil
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

from vla_policy_node import cli
from vla_policy_node.acceleration import lightvla
from vla_policy_node.checkpoints import layout, statistics
from vla_policy_node.checks import golden, golden_cases, golden_images
from vla_policy_node.checks.findings import Comparison, compare, exact, relative, worst_by_stage
from vla_policy_node.checks.golden import compare_pack
from vla_policy_node.checks.golden_model import GoldenModel
from vla_policy_node.encoding import preprocess, prompt
from vla_policy_node.families import config_of, create_network, prismatic
from vla_policy_node.nn import heads, vision
from vla_policy_node.runtime import loading, saving

DATA = Path(__file__).parents[1] / 'data'
CHECKPOINT = DATA / 'oft_tiny' / 'checkpoint'


@pytest.fixture
def vla():
    return lambda *arguments: CliRunner().invoke(cli.app, list(map(str, arguments)))


@pytest.fixture
def directory(tmp_path):
    copy = tmp_path / 'checkpoint'
    shutil.copytree(CHECKPOINT, copy)
    return copy


@pytest.fixture
def one_case(tmp_path):
    """A pack with a single inference and its whole-pipeline recording, which is quick."""

    def make(pack):
        folder = tmp_path / pack
        folder.mkdir()
        names = ['case0.npz', 'end_to_end.npz'] if pack != 'preprocess' else [
            'shapes_256.npz', 'shapes_256.png', 'prompt_ids.json']
        for name in names:
            shutil.copy(DATA / pack / name, folder)
        return folder

    return make


def failing_stages(directory, pack):
    return [s.stage for s in worst_by_stage(compare_pack(directory, pack)) if not s.ok]


@pytest.mark.parametrize('pack', ['oft_tiny', 'lightvla_tiny', 'preprocess'])
def test_recordings_of_the_public_implementation_pass(vla, pack):
    result = vla('check', CHECKPOINT, '--golden', DATA / pack)
    assert result.exit_code == 0, result.output
    assert 'FAIL' not in result.output
    for stage in {'oft_tiny': ('DINOv2 vision encoder', 'un-normalisation', 'training: gradients'),
                  'lightvla_tiny': ('LightVLA kept tokens', 'action head, rows last56'),
                  'preprocess': ('JPEG round trip', 'resize', 'crop')}[pack]:
        assert stage in result.output


def test_every_array_of_the_packs_is_an_input_or_compared():
    """Otherwise a recording would be said to agree although nobody looked at it."""
    for pack in ('oft_tiny', 'lightvla_tiny', 'preprocess'):
        assert 'recording' not in {c.stage for c in compare_pack(CHECKPOINT, DATA / pack)}


def edit_json(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def set_entry(*keys, value):
    def change(document):
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


def scale_statistics(part, entry):
    def change(document):
        ranges = document['tiny_synthetic_no_noops'][part]
        ranges[entry] = [1.01 * number for number in ranges[entry]]

    return change


CONFIG, IMAGES, RANGES = 'config.json', 'preprocessor_config.json', 'dataset_statistics.json'
IMAGENET, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.mark.parametrize(('file', 'change', 'stage'), [
    (CONFIG, set_entry('text_config', 'rms_norm_eps', value=1e-5), 'language model, every layer'),
    (CONFIG, set_entry('text_config', 'rope_theta', value=5e5), 'language model, every layer'),
    (CONFIG, set_entry('vision_tiny', 'featurizer', 'norm_eps', value=1e-5),
     'DINOv2 vision encoder'),
    (CONFIG, set_entry('vision_tiny', 'fused_featurizer', 'feature_block', value=2),
     'SigLIP vision encoder'),
    (CONFIG, set_entry('vision_tiny', 'fused_featurizer', 'norm_eps', value=1e-5),
     'SigLIP vision encoder'),
    (CONFIG, set_entry('tiny_token_ids', 'bos', value=5), 'token ids'),
    (CONFIG, set_entry('tiny_token_ids', 'empty', value=190), 'token ids'),
    (CONFIG, set_entry('tiny_token_ids', 'stop', value=3), 'token ids'),
    (IMAGES, lambda d: d['tvf_normalize_params'][0].update(mean=IMAGENET), 'image normalisation'),
    (IMAGES, lambda d: d['tvf_normalize_params'][0].update(std=IMAGENET_STD),
     'image normalisation'),
    (IMAGES, lambda d: d['tvf_normalize_params'].reverse(), 'image normalisation'),
    (RANGES, scale_statistics('proprio', 'q01'), 'proprio normalisation'),
    (RANGES, scale_statistics('action', 'q99'), 'un-normalisation'),
    (RANGES, set_entry('tiny_synthetic_no_noops', 'action', 'mask', value=[True] * 7),
     'un-normalisation'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_a_wrong_constant_of_the_checkpoint_is_found(directory, one_case, file, change, stage):
    edit_json(directory / file, change)
    assert failing_stages(directory, one_case('oft_tiny'))[0] == stage


def test_a_wrong_padding_id_is_found(directory):
    """Only batches, which training has, are filled up."""
    edit_json(directory / CONFIG, set_entry('tiny_token_ids', 'pad', value=193))
    assert failing_stages(directory, DATA / 'oft_tiny')[0] == 'training: token ids'


def forget_taps():
    preprocess._crop_taps.cache_clear()
    preprocess._lanczos3.cache_clear()


def approximate_gelu():
    """`torch.nn.functional` whose GELU, unless told otherwise, is not the exact one."""
    return SimpleNamespace(**{
        **vars(functional), 'gelu': partial(functional.gelu, approximate='tanh')})


def wrist_first(model, pixels, *rest, see=prismatic.PrismaticVla.visual_features):
    return see(model, pixels.flip(1), *rest)


def unscaled_softmax(logits, dim, softmax=torch.softmax):
    return softmax(64**0.5 * logits, dim)  # the model of the pack is 64 wide


@pytest.mark.parametrize(('pack', 'where', 'name', 'value', 'stage'), [
    ('oft_tiny', prismatic.ACTION_ROWS, 'oft', 0, 'action rows'),
    ('oft_tiny', prismatic.PrismaticVla, 'visual_features', wrist_first, 'projector'),
    ('oft_tiny', vision.Mlp.__init__, '__defaults__', ('tanh',), 'DINOv2 vision encoder'),
    ('oft_tiny', vision, 'functional', approximate_gelu(), 'projector'),
    ('oft_tiny', heads, 'functional', approximate_gelu(), 'proprio projector'),
    ('oft_tiny', heads, 'NORM_EPS', 1e-6, 'action head'),
    ('oft_tiny', preprocess, 'CROP_AREA', 0.95, 'camera images [levels]'),
    ('oft_tiny', statistics, 'RANGE_EPS', 1e-2, 'proprio normalisation'),
    ('lightvla_tiny', lightvla, 'NORM_EPS', 1e-2, 'LightVLA scores'),
    ('lightvla_tiny', torch, 'softmax', unscaled_softmax, 'LightVLA scores'),
    ('lightvla_tiny', prismatic.ACTION_ROWS, 'last56', 2, 'action head, rows last56'),
    ('preprocess', preprocess, 'JPEG_QUALITY', 94, 'JPEG round trip'),
    ('preprocess', preprocess, 'JPEG_FAST_DCT', False, 'JPEG round trip'),
    ('preprocess', preprocess, 'LANCZOS_RADIUS', 2, 'resize, before rounding'),
    ('preprocess', preprocess, 'LEVELS', 255, 'crop'),
    ('preprocess', preprocess, 'CROP_AREA', 0.9001, 'crop, before rounding'),
    ('preprocess', prompt, 'TEMPLATE', 'In: {instruction}?\nOut:', 'prompt text'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_a_wrong_constant_of_the_code_is_found(
        one_case, monkeypatch, pack, where, name, value, stage):
    forget_taps()
    set_to = monkeypatch.setitem if isinstance(where, dict) else monkeypatch.setattr
    set_to(where, name, value)
    failing = failing_stages(CHECKPOINT, one_case(pack))
    forget_taps()
    assert failing[0] == stage


def causal(monkeypatch):
    attend = torch.nn.functional.scaled_dot_product_attention

    def attend_causally(query, key, value, attn_mask=None):
        return attend(query, key, value, is_causal=query.shape[-2] == key.shape[-2])

    monkeypatch.setattr(
        'vla_policy_node.nn.transformer.functional.scaled_dot_product_attention',
        attend_causally)


def test_a_causal_mask_is_found(one_case, monkeypatch):
    pack = one_case('oft_tiny')
    model = GoldenModel.load(CHECKPOINT, 'cpu')
    recording = np.load(pack / 'case0.npz')
    causal(monkeypatch)
    failing = [c.stage for c in golden_cases.compare_case(model, 'case0', recording) if not c.ok]
    # The vision encoders share the function, and their attention is wrong as well.
    assert 'language model, every layer' in failing


def test_a_failure_names_the_first_stage_and_says_so_in_the_exit_code(vla, directory, one_case):
    edit_json(directory / RANGES, scale_statistics('action', 'q99'))
    result = vla('check', directory, '--golden', one_case('oft_tiny'))
    assert result.exit_code == 1
    assert "FAIL: recordings oft_tiny, first in 'un-normalisation' (2 stages)" in result.output


def test_an_altered_weight_is_found(directory, one_case):
    config = config_of(layout.read_json(directory, CONFIG))
    model = loading.load_model(directory, config, 'cpu', 'float32')
    model = model.to(torch.float32)
    altered = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    altered['projector.fc2.weight'][3] *= 1.05
    model.load_state_dict(altered, assign=True)
    for path in [*directory.glob('model*'), *directory.glob('*.pt')]:
        path.unlink()
    saving.save_model(directory, model)
    assert failing_stages(directory, one_case('oft_tiny'))[0] == 'projector'


def test_an_altered_recording_is_found(tmp_path, one_case):
    pack = one_case('lightvla_tiny')
    arrays = dict(np.load(pack / 'case0.npz'))
    arrays['kept_indices'] = np.roll(arrays['kept_indices'], 1)
    arrays['surprise'] = np.zeros(3)
    np.savez(pack / 'case0.npz', **arrays)
    assert failing_stages(CHECKPOINT, pack) == ['LightVLA kept tokens', 'recording']


# --- other sizes: recordings made by our own model, so only the generality is tested ---

SIZES = {
    'model_type': 'openvla',
    'pad_token_id': 90,
    'vision_tiny': {
        'featurizer': {
            'embed_dim': 24, 'feature_block': 1, 'num_heads': 3, 'mlp_hidden': 40,
            'patch_size': 7, 'img_size': 35, 'class_token': True, 'num_reg_tokens': 2,
            'layer_scale': True,
        },
        'fused_featurizer': {
            'embed_dim': 32, 'feature_block': 2, 'num_heads': 2, 'mlp_hidden': 50,
            'patch_size': 7, 'img_size': 35, 'class_token': False, 'num_reg_tokens': 0,
            'layer_scale': False,
        },
    },
    'text_config': {
        'hidden_size': 48, 'num_hidden_layers': 3, 'num_attention_heads': 6,
        'intermediate_size': 72, 'vocab_size': 128,
    },
    'tiny_token_ids': {'bos': 4, 'stop': 5, 'placeholder': 7, 'empty': 89, 'pad': 90},
}


@pytest.fixture(scope='module')
def other_sizes(tmp_path_factory):
    """A checkpoint of other sizes, without a tokenizer, and a pack that fits it."""
    root = tmp_path_factory.mktemp('other')
    directory, pack = root / 'checkpoint', root / 'pack'
    directory.mkdir()
    pack.mkdir()
    torch.manual_seed(3)
    model = create_network(config_of(SIZES)).eval()
    saving.save_model(directory, model, step=9)
    shutil.copy(CHECKPOINT / IMAGES, directory)
    shutil.copy(CHECKPOINT / RANGES, directory)
    edit_json(directory / RANGES, lambda document: document.update(
        other_name=document.pop('tiny_synthetic_no_noops')))
    (directory / CONFIG).write_text(json.dumps(SIZES))
    golden = GoldenModel.load(directory, 'cpu')
    random = np.random.default_rng(5)
    inputs = {
        'images_u8': random.integers(0, 256, (2, 35, 35, 3), np.uint8),
        'prompt_ids': np.array([4, *random.integers(8, 80, 11), 89]),
        'proprio_raw': random.normal(size=8),
    }
    pixels = golden.preprocess(list(inputs['images_u8']), center_crop=False)
    tensors = golden.inputs(pixels, inputs['proprio_raw'], inputs['prompt_ids'])
    with torch.no_grad():
        visual, sequence = golden.assemble(tensors)
        values = golden_cases._inputs_and_encoders(golden, tensors, inputs)
        values |= {'projected': visual[0], 'input_embeds': sequence.states[0]}
        dense = {**values, **golden_cases._dense(golden, sequence)}
        pruned = {**values, **golden_cases._lightvla(golden, sequence)}
    for name, arrays in (('case0', dense), ('case1', pruned)):
        np.savez(pack / f'{name}.npz', **inputs, **{k: np.asarray(v) for k, v in arrays.items()})
    return directory, pack


def test_nothing_is_wired_to_the_sizes_of_one_pack(vla, other_sizes):
    directory, pack = other_sizes
    result = vla('check', directory, '--golden', pack)
    assert result.exit_code == 0, result.output


def test_a_pack_of_another_checkpoint_does_not_agree(other_sizes):
    directory, _ = other_sizes
    comparisons = list(compare_pack(directory, DATA / 'oft_tiny'))
    assert comparisons
    wrong = ('DINOv2 vision encoder', 'action head')
    assert not any(c.ok for c in comparisons if c.stage in wrong)


def test_preprocessing_recordings_may_be_of_any_side(tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (90, 120, 3), np.uint8)
    from PIL import Image

    Image.fromarray(image).save(tmp_path / 'noise_90x120.png')
    resized = preprocess.resize(preprocess.jpeg_round_trip(image), 64)
    cropped = preprocess.center_crop(resized)
    arrays = {'resized_64': resized, 'cropped_64_stride2': cropped[::2, ::2],
              'cropped_64_sha256': np.array(golden_images._sha256(cropped))}
    np.savez(tmp_path / 'noise_90x120.npz', **arrays)
    assert failing_stages(CHECKPOINT, tmp_path) == []
    np.savez(tmp_path / 'noise_90x120.npz', **{**arrays, 'resized_64': resized ^ 8})
    assert failing_stages(CHECKPOINT, tmp_path)[0] == 'resize [levels]'


@pytest.mark.parametrize(('files', 'sentence'), [
    ({}, 'holds no recordings'),
    ({'case0.npz': b'no zip'}, r'case0\.npz cannot be read'),
])
def test_a_folder_that_is_no_pack_is_refused_with_a_sentence(vla, tmp_path, files, sentence):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        list(compare_pack(CHECKPOINT, tmp_path))
    result = vla('check', CHECKPOINT, '--golden', tmp_path)
    assert result.exit_code == 2
    assert 'Traceback' not in result.output


@pytest.mark.parametrize('damage', ['grows', 'lies', 'objects', 'pickle', 'pipe'])
def test_a_recording_that_would_not_fit_is_refused(one_case, monkeypatch, damage):
    pack = one_case('oft_tiny')
    path = pack / 'case0.npz'
    if damage == 'grows':
        monkeypatch.setattr(golden, 'PACK_BYTES', path.stat().st_size)
        np.savez_compressed(path, images_u8=np.zeros(1 << 24, np.uint8))
    elif damage == 'lies':
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            stream, {'descr': '<f8', 'fortran_order': False, 'shape': (1 << 50, 1 << 10)})
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('images_u8.npy', stream.getvalue())
    elif damage == 'objects':
        np.savez(path, images_u8=np.array([None, {}]))
    else:
        path.unlink()
        if damage == 'pipe':
            os.mkfifo(path)
        else:
            path.write_bytes(pickle.dumps({'a': 1}))
    with pytest.raises(ValueError, match=r'case0\.npz .*\.$'):
        list(compare_pack(CHECKPOINT, pack))


@pytest.mark.parametrize(('name', 'value', 'text'), [
    ('images_u8', np.zeros(3, np.uint8), 'has shape'),
    ('images_u8', np.array(['a']), 'does not fit this checkpoint'),
    ('proprio_raw', np.zeros((2, 2, 2)), 'does not fit this checkpoint'),
    ('prompt_ids', np.array([[1, 2]]), 'does not fit this checkpoint'),
    ('prompt_ids', np.array([10**9]), 'does not fit this checkpoint'),
])
def test_an_array_that_does_not_fit_is_a_failed_stage(one_case, name, value, text):
    pack = one_case('oft_tiny')
    arrays = dict(np.load(pack / 'case0.npz'))
    np.savez(pack / 'case0.npz', **{**arrays, name: value})
    assert text in ' '.join(c.text for c in compare_pack(CHECKPOINT, pack))


def test_a_chunk_that_nobody_could_act_on_is_refused(one_case):
    pack = one_case('oft_tiny')
    np.savez(pack / 'case0.npz', actions=np.zeros((10**5, 7), np.uint8), images_u8=np.zeros(1))
    with pytest.raises(ValueError, match='has a chunk of 100000 actions'):
        list(compare_pack(CHECKPOINT, pack))


@pytest.mark.parametrize(('file', 'content'), [
    ('prompt_ids.json', b'{'), ('prompt_ids.json', b'{}'), ('prompt_ids.json', b'[5]'),
    ('prompt_ids.json', b'[{"instruction": 5}]'), ('prompt_ids.json', b'[' * 100_000),
    ('prompt_ids.json', b'[{"instruction": "go", "prompt": "", "prompt_ids": [-1]}]'),
    ('shapes_256.png', b'no picture'),
])
def test_pictures_and_prompts_of_a_pack_are_read_as_carefully(one_case, file, content):
    pack = one_case('preprocess')
    (pack / file).write_bytes(content)
    with pytest.raises(ValueError, match=file):
        list(compare_pack(CHECKPOINT, pack))


def test_a_picture_larger_than_a_cameras_is_not_decoded(one_case, monkeypatch):
    pack = one_case('preprocess')
    monkeypatch.setattr(golden_images, 'IMAGE_PIXELS', 256 * 256 - 1)
    with pytest.raises(ValueError, match='has 256 x 256 pixels'):
        list(compare_pack(CHECKPOINT, pack))


def test_errors_and_tolerances():
    reference = np.array([1.0, -4.0])
    close = compare('stage', relative(0.01), np.array([1.0, -4.03]), reference, 'case')
    assert (close.error, close.tolerance) == (pytest.approx(0.03), pytest.approx(0.04))
    assert close.ok
    assert not compare('stage', relative(0.01), np.array([np.nan, -4.0]), reference, '').ok
    assert not compare('stage', exact, np.zeros(3), np.zeros(4), '').ok
    worst = worst_by_stage([close, replace(close, error=0.02), Comparison('b', 1.0, 0.0, '')])
    assert [c.error for c in worst] == [close.error, 1.0]
    assert [c.ok for c in worst] == [True, False]
