"""Images and prompts reach the model as in the public OpenVLA-OFT evaluation code.

Reference data: test/data/preprocess/README.md.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vla_policy_node.encoding import preprocess
from vla_policy_node.encoding.prompt import (
    as_in_training,
    end_with_empty,
    prompt_text,
    vicuna_text,
)
from vla_policy_node.runtime.small import NORMALISATION

DATA = Path(__file__).parents[1] / 'data' / 'preprocess'
NAMES = ('gradient_480x640', 'noise_256', 'shapes_224', 'shapes_256', 'shapes_480x640')
SCALED = tuple(name for name in NAMES if name != 'shapes_224')


def load(name):
    with Image.open(DATA / f'{name}.png') as image:
        return np.array(image.convert('RGB')), np.load(DATA / f'{name}.npz')


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def assert_within_one_on_few(value, reference):
    difference = np.abs(value.astype(int) - reference)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.01


@pytest.mark.parametrize('name', SCALED)
def test_jpeg_round_trip_is_bit_exact(name):
    image, golden = load(name)
    assert sha256(preprocess.jpeg_round_trip(image)) == str(golden['jpeg_decoded_sha256'])


@pytest.mark.parametrize('name', SCALED)
def test_resize(name):
    image, golden = load(name)
    resized = preprocess.resize(preprocess.jpeg_round_trip(image), 224)
    if 'resized_224' in golden:
        assert_within_one_on_few(resized, golden['resized_224'])
    else:
        assert_within_one_on_few(resized[::2, ::2], golden['resized_224_stride2'])


@pytest.mark.parametrize('name', [name for name in NAMES if name != 'gradient_480x640'])
def test_center_crop_is_bit_exact(name):
    image, golden = load(name)
    resized = golden.get('resized_224', image)
    assert sha256(preprocess.center_crop(resized)) == str(golden['cropped_224_sha256'])


@pytest.mark.parametrize('name', NAMES)
def test_whole_pipeline(name):
    image, golden = load(name)
    pixels = preprocess.ImagePreprocessor(NORMALISATION, 224, center_crop=True)(image).numpy()
    one_step = 1.01 / 255 / np.array([0.2236, 0.2236, 0.2236, 0.5, 0.5, 0.5]).reshape(6, 1, 1)
    reference = golden['pixel_values' if 'pixel_values' in golden else 'pixel_values_stride8']
    stride = 224 // reference.shape[-1]
    difference = np.abs(pixels[:, ::stride, ::stride] - reference)
    assert (difference <= one_step).all()
    assert (difference > 1e-6).mean() <= 0.01
    moments = np.stack([pixels.mean((1, 2)), pixels.std((1, 2))])
    np.testing.assert_allclose(moments, golden['pixel_values_channel_mean_std'], atol=1e-3)


def test_an_image_of_the_right_size_is_neither_compressed_nor_resized(monkeypatch):
    monkeypatch.setattr(preprocess, 'jpeg_round_trip', None)
    image, golden = load('shapes_224')
    pixels = preprocess.ImagePreprocessor(NORMALISATION, 224, center_crop=True)(image)
    np.testing.assert_allclose(pixels, golden['pixel_values'], rtol=0, atol=1e-6)


def test_transforms_move_the_corner():
    image = np.zeros((224, 224, 3), np.uint8)
    image[0, 0] = 255
    preprocessor = preprocess.ImagePreprocessor(NORMALISATION, 224, center_crop=False)
    brightest = {
        name: divmod(int(preprocessor(image, name)[0].argmax()), 224)
        for name in preprocess.TRANSFORMS
    }
    assert brightest == {
        'none': (0, 0),
        'rotate_180': (223, 223),
        'mirror_horizontal': (0, 223),
    }


def test_the_crop_covers_nine_tenths_of_the_area():
    x, y, width, height = preprocess.ImagePreprocessor(NORMALISATION, 224, True).crop_of(480, 640)
    assert width * height == pytest.approx(0.9)
    assert (x, y) == pytest.approx(((1 - width) / 2, (1 - height) / 2))
    assert preprocess.ImagePreprocessor(NORMALISATION, 224, False).crop_of(9, 9) == (0, 0, 1, 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 255))
def test_a_plain_image_stays_plain(height, width, level):
    image = np.full((height, width, 3), level, np.uint8)
    assert (preprocess.resize(image, 64) == level).all()


def test_normalisation_is_that_of_each_encoder():
    image = np.full((224, 224, 3), 255, np.uint8)
    pixels = preprocess.ImagePreprocessor(NORMALISATION, 224, center_crop=False)(image)
    expected = [
        (1 - mean) / std
        for encoder in NORMALISATION['tvf_normalize_params']
        for mean, std in zip(encoder['mean'], encoder['std'], strict=True)
    ]
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor(expected))


@pytest.mark.parametrize('entry', json.loads((DATA / 'prompt_ids.json').read_text()))
def test_prompt(entry):
    assert prompt_text(entry['instruction']) == entry['prompt']
    assert end_with_empty(entry['tokenizer_ids'], 29871) == entry['prompt_ids']
    assert end_with_empty(entry['prompt_ids'], 29871) == entry['prompt_ids']


@pytest.mark.parametrize('typed', [
    'Pick up the milk', '  pick up the milk\n', '\tpick up the milk\r\n\r\n',
    'pick up\nthe milk', 'pick up \r\n  THE milk\u2028'])
def test_an_instruction_reaches_the_prompt_as_data_sets_have_it(typed):
    assert prompt_text(typed) == (
        'In: What action should the robot take to pick up the milk?\nOut:')


def test_openvla_v01_is_spoken_to_as_vicuna_is():
    assert vicuna_text(' Pick up the milk\n') == (
        'A chat between a curious user and an artificial intelligence assistant. The assistant '
        "gives helpful, detailed, and polite answers to the user's questions. USER: What action "
        'should the robot take to pick up the milk? ASSISTANT:')


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_tidying_an_instruction_twice_changes_nothing_more(typed):
    tidy = as_in_training(typed)
    assert as_in_training(tidy) == tidy == tidy.strip()
    assert len(tidy.splitlines()) <= 1


@pytest.mark.parametrize('name', ['shapes_480x640', 'shapes_256'])
@pytest.mark.parametrize('crop', [False, True])
def test_fast_preprocessing_shows_nearly_the_same_picture(name, crop):
    image, _ = load(name)
    exact, fast = (
        preprocess.ImagePreprocessor(NORMALISATION, 224, crop, kind).picture(image).astype(int)
        for kind in preprocess.PREPROCESSING)
    assert fast.shape == exact.shape
    assert np.abs(fast - exact).mean() < 3
    # The picture is in its place: moved by a pixel, it agrees less well.
    for axis in (0, 1):
        assert np.abs(np.roll(fast, 1, axis) - exact).mean() > np.abs(fast - exact).mean()


def test_an_unknown_preprocessing_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match="one of exact, fast, not 'quick'"):
        preprocess.ImagePreprocessor(NORMALISATION, 224, True, 'quick')
