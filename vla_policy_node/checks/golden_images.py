"""Recorded preprocessing: from camera image to vision encoder input, and prompt ids."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from vla_policy_node import families
from vla_policy_node.checkpoints.config_file import MAX_VOCABULARY
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.layout import read_normalisation
from vla_policy_node.checkpoints.reading import MB, foreign, plain, read_json, regular_file, shown
from vla_policy_node.checks.findings import (
    Comparison,
    Rule,
    absolute,
    as_array,
    compare,
    exact,
    share_of_differing,
)
from vla_policy_node.checks.prompts import uses_llama2_tokenizer
from vla_policy_node.encoding import preprocess
from vla_policy_node.encoding.preprocess import ImagePreprocessor
from vla_policy_node.encoding.prompt import end_with_empty, prompt_text
from vla_policy_node.families import read_model_config
from vla_policy_node.nn.config import TokenIds

Recording = Mapping[str, np.ndarray]
IMAGE_BYTES, IMAGE_PIXELS = 64 * MB, 16_000_000
STEP, SHARE = absolute(1.01), share_of_differing(0.01)
_FORM = re.compile(r'(.*?)(?:_stride(\d+)|_center(\d+)|_(sha256))?$')


def is_recording(arrays: Recording) -> bool:
    """Whether these arrays are of one image's preprocessing."""
    return any(key.startswith(('jpeg_', 'resized_', 'cropped_')) for key in arrays)


def compare_images(
    directory: Path, pack: Path, recordings: Mapping[str, Recording]
) -> Iterator[Comparison]:
    """Compare every image of the pack, in the sizes it was recorded in, and every prompt."""
    if recordings:
        document = read_normalisation(directory)
        for name, recording in recordings.items():
            path = pack / f'{name}.png'
            if not path.is_file():
                yield Comparison('image', np.inf, 0.0, name, f'has no {path.name} beside it')
                continue
            try:
                yield from _compare_image(_read_image(path), recording, document, name)
            except (IndexError, KeyError, RuntimeError, TypeError, OverflowError) as error:
                reason = plain(next(iter(str(error).splitlines()), type(error).__name__))
                yield Comparison('image', np.inf, 0.0, name, f'cannot be compared: {reason}')
    if (pack / 'prompt_ids.json').is_file():
        yield from _compare_prompts(directory, pack)


def _read_image(path: Path) -> np.ndarray:
    """[H, W, 3] uint8; ValueError for a picture that is damaged or larger than a camera's."""
    regular_file(path, IMAGE_BYTES)
    with foreign(path, 'is no picture that can be read'), Image.open(path) as file:
        width, height = file.size
        if width * height <= IMAGE_PIXELS:
            return np.array(file.convert('RGB'))
    raise ValueError(f'{path} has {width} x {height} pixels; a recording has at most 16 million.')


def _compare_image(
    image: np.ndarray, recording: Recording, document: Mapping, case: str
) -> Iterator[Comparison]:
    """Every step begins at the reference's result of the one before where that is complete."""
    side = _side(recording)

    def step(stage, rule, value, stem):
        return _compare_step(stage, rule, value, recording, stem, case)

    if 'jpeg_bytes' in recording:
        decoded = _decode_jpeg(recording['jpeg_bytes'].tobytes())
        yield from step('JPEG decoder', exact, decoded, 'jpeg_decoded')
    scaled = image.shape[:2] != (side, side)
    if scaled:
        image = preprocess.jpeg_round_trip(image)
        yield from step('JPEG round trip', exact, image, 'jpeg_decoded')
        resampled = preprocess.resample(image, side)
        yield from step('resize, before rounding', absolute(5e-3), resampled, 'resized_float')
        image = preprocess.resize(image, side)
        yield from step('resize [levels]', STEP, image, f'resized_{side}')
        yield from step('resize [share]', SHARE, image, f'resized_{side}')
    if not scaled or f'resized_{side}' in recording:
        image = recording.get(f'resized_{side}', image)
        crop = preprocess.crop_center(image)
        yield from step('crop, before rounding', absolute(1e-5), crop, 'cropped_float')
        yield from step('crop', exact, preprocess.center_crop(image), f'cropped_{side}')
    else:
        crop = preprocess.center_crop(image)
        yield from step('crop of own resize [levels]', STEP, crop, f'cropped_{side}')
        yield from step('crop of own resize [share]', SHARE, crop, f'cropped_{side}')
    crop = recording.get(f'cropped_{side}', preprocess.center_crop(image))
    preprocessor = ImagePreprocessor(document, side, center_crop=False)
    pixels = preprocessor(crop).numpy()
    yield from step('normalisation', absolute(1e-5), pixels, 'pixel_values')
    if 'pixel_values_channel_mean_std' in recording:
        moments = np.stack([pixels.mean((1, 2)), pixels.std((1, 2))])
        reference = recording['pixel_values_channel_mean_std']
        yield compare('normalisation', absolute(1e-3), moments, reference, case)
    for name in sorted(recording):
        if not name.startswith(('jpeg_', 'resized_', 'cropped_', 'pixel_values')):
            yield Comparison(
                'recording', np.inf, 0.0, case, f'has an array {name!r} not known here'
            )


def _decode_jpeg(content: bytes) -> np.ndarray:
    height, width, *_ = simplejpeg.decode_jpeg_header(content)
    if width * height > IMAGE_PIXELS:
        raise ValueError(f'The recorded JPEG has {width} x {height} pixels; record a smaller one.')
    return simplejpeg.decode_jpeg(content, fastdct=True)


def _compare_step(
    stage: str, rule: Rule, value: np.ndarray, recording: Recording, stem: str, case: str
) -> Iterator[Comparison]:
    """Compare with each form in which a step is recorded: whole, a part of it, its sha256."""
    for key, reference in recording.items():
        known, stride, center, sha = _FORM.fullmatch(key).groups()
        if known != stem:
            continue
        if sha:
            if rule is exact:
                differs = _sha256(value) != str(reference)
                text = 'differs somewhere in the image' if differs else ''
                yield Comparison(stage, float(differs), 0.0, case, text)
            continue
        part = value
        if stride:
            part = value[_strided(value, int(stride))]
        elif center:
            part = _center(value, int(center))
        yield compare(stage, rule, part, reference, case)


def _sha256(value: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()


def _strided(value: np.ndarray, stride: int) -> tuple:
    """Every stride-th row and column: of [H, W, 3] images and of [6, H, W] tensors."""
    every = slice(None, None, stride)
    return (every, every) if value.shape[-1] == 3 else (slice(None), every, every)


def _center(value: np.ndarray, side: int) -> np.ndarray:
    top, left = ((length - side) // 2 for length in value.shape[:2])
    return value[top : top + side, left : left + side]


def _side(recording: Recording) -> int:
    """Side of the images that the vision encoders take, which the names of the arrays state."""
    for key in recording:
        if match := re.match(r'(?:cropped|resized)_(\d+)', key):
            return int(match[1])
    return as_array(recording['pixel_values']).shape[-1]


def _compare_prompts(directory: Path, pack: Path) -> Iterator[Comparison]:
    """The words, the id that is appended, and the ids themselves if the tokenizer is Llama-2's."""
    path = pack / 'prompt_ids.json'
    entries = [Entries(entry, str(path)) for entry in read_json(path, kind=list)]
    config = read_model_config(directory)
    encoder = None
    if uses_llama2_tokenizer(directory, config):
        encoder = families.of(config).load_prompt(directory, config)
    for entry in entries:
        instruction, expected = entry.word('instruction'), _ids(entry, 'prompt_ids')
        case = f'prompt {shown(instruction)}'
        same = float(prompt_text(instruction) != entry.word('prompt'))
        yield Comparison('prompt text', same, 0.0, case)
        ids = end_with_empty(_ids(entry, 'tokenizer_ids'), TokenIds().empty)
        yield compare('prompt: trailing id', exact, ids, expected, case)
        if encoder is not None:
            yield compare('prompt ids', exact, encoder.encode(instruction), expected, case)


def _ids(entry: Entries, key: str) -> list[int]:
    ids = entry.value(key)
    if not isinstance(ids, list) or not ids or not all(
        type(number) is int and 0 <= number < MAX_VOCABULARY for number in ids
    ):
        raise entry.error(key, 'a list of token ids', ids)
    return ids


