"""From a camera image to the tensor the vision encoders take, as OpenVLA-OFT's evaluation code
does it.

The order is binding: JPEG round trip, lanczos3 resize, centre crop, one normalisation for each
vision encoder. Policies were trained on images that went through the first two, and details that
look like taste (which inverse DCT the decoder uses, where values are rounded) change up to 80 % of
the pixels.

'fast' gives that up: crop and resize in one pass, no JPEG. `docs/speed.md` says what it changes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.reading import shown

JPEG_QUALITY = 95
JPEG_FAST_DCT = True  # the inverse DCT of the decoder: the fast integer one
LANCZOS_RADIUS = 3  # source pixels, where the picture does not shrink
LEVELS = 255.5  # times 0 to 1, and truncated, gives uint8
CROP_AREA = 0.9  # fraction of the image that the centre crop keeps

# 'exact' is what policies were evaluated with, 'fast' takes a fraction of its time.
PREPROCESSING = ('exact', 'fast')

TRANSFORMS = {  # by the names of `checkpoints.config_file`
    'none': lambda image: image,
    'rotate_180': lambda image: image[::-1, ::-1],
    'mirror_horizontal': lambda image: image[:, ::-1],
}


def check_preprocessing(preprocessing: str) -> None:
    """Raise ValueError for a kind of preprocessing that there is not."""
    if preprocessing not in PREPROCESSING:
        raise ValueError(
            f'preprocessing must be one of {", ".join(PREPROCESSING)}, not {preprocessing!r}.')


class Normaliser:
    """Turns uint8 pictures into three normalised channels for each vision encoder.

    Pictures may be on any device; `to` takes the constants there.
    """

    def __init__(
        self, document: Mapping, device: torch.device | str = 'cpu', encoders: int = 2
    ):
        """Read the constants from a parsed `preprocessor_config.json`.

        `tvf_normalize_params` holds the constants used in training; the `means` and `stds`
        beside it are the same before rounding to bfloat16.
        """
        mean, std = normalisation(document, encoders)
        self._mean, self._std = (
            torch.tensor(values, device=device, dtype=torch.float32).reshape(-1, 1, 1)
            for values in (mean, std)
        )
        self._document, self._encoders = document, encoders

    def __call__(self, images: Tensor) -> Tensor:
        """[..., H, W, 3] RGB in levels from 0 to 255 -> [..., 3 encoders, H, W] float32."""
        rgb = images.movedim(-1, -3).contiguous().float().div_(255)
        return torch.cat([rgb] * self._encoders, dim=-3).sub_(self._mean).div_(self._std)

    def to(self, device: torch.device | str) -> Normaliser:
        """Return the same one for pictures on another device."""
        return Normaliser(self._document, device, self._encoders)


def normalisation(
    document: Mapping, encoders: int = 2
) -> tuple[list[list[float]], list[list[float]]]:
    """Mean and deviation of R, G and B for each vision encoder, in levels from 0 to 1.

    ValueError for a `preprocessor_config.json` with which no vision encoder sees a picture.
    """
    name, key = 'preprocessor_config.json', 'tvf_normalize_params'
    values = Entries(document, name).value(key)
    if not isinstance(values, list) or len(values) != encoders:
        count = {1: 'one object', 2: 'two objects'}.get(encoders, f'{encoders} objects')
        raise ValueError(
            f'{name} has {key} {shown(values)}; it must be a list of {count}, one for each '
            'vision encoder.'
        )
    entries = [Entries(value, name, f'{key}[{index}]') for index, value in enumerate(values)]
    return (
        [encoder.numbers('mean', 3, -10, 10) for encoder in entries],
        [encoder.numbers('std', 3, 1e-3, 10) for encoder in entries],
    )


class ImagePreprocessor:
    """Turns one camera image into the picture that the vision encoders see, and that into
    channels.

    center_crop: cut out the central 0.9 of the area. preprocessing: one of PREPROCESSING.
    encoders: vision encoders, each with a normalisation of its own.
    """

    def __init__(
        self, document: Mapping, image_px: int, center_crop: bool, preprocessing: str = 'exact',
        encoders: int = 2,
    ):
        """Read the normalisation from a parsed `preprocessor_config.json`, see `Normaliser`.

        With `"resize": "bicubic"` images are resized as CogACT does, by Pillow and without the
        JPEG round trip. ValueError for a kind of preprocessing that there is not.
        """
        check_preprocessing(preprocessing)
        self.normaliser = Normaliser(document, encoders=encoders)
        self._bicubic = document.get('resize') == 'bicubic'
        self._image_px = image_px
        self._center_crop = center_crop
        self._fast = preprocessing == 'fast'

    def __call__(self, image: np.ndarray, transform: str = 'none') -> Tensor:
        """[H, W, 3] uint8 RGB -> [3 encoders, image_px, image_px] float32."""
        return self.normalise(self.picture(image, transform))

    def picture(self, image: np.ndarray, transform: str = 'none') -> np.ndarray:
        """[H, W, 3] uint8 RGB -> [image_px, image_px, 3] uint8: all but the normalisation."""
        image = TRANSFORMS[transform](image)
        if self._fast:
            return crop_and_resize(image, self._image_px, self._center_crop)
        if image.shape[:2] != (self._image_px, self._image_px):
            if self._bicubic:
                pixels = Image.fromarray(np.ascontiguousarray(image))
                image = np.array(pixels.resize((self._image_px,) * 2, Image.Resampling.BICUBIC))
            else:
                image = resize(jpeg_round_trip(image), self._image_px)
        return center_crop(image) if self._center_crop else image

    def normalise(self, image: np.ndarray) -> Tensor:
        """[H, W, 3] uint8 RGB -> [3 encoders, H, W] float32."""
        return self.normaliser(torch.from_numpy(np.ascontiguousarray(image)))

    def crop_of(self, height: int, width: int) -> tuple[float, float, float, float]:
        """x, y, width, height of what the vision encoders see, as fractions of an image."""
        side = math.sqrt(CROP_AREA) if self._center_crop else 1.0
        return ((1 - side) / 2, (1 - side) / 2, side, side)


def jpeg_round_trip(image: np.ndarray) -> np.ndarray:
    """Compress and decompress as TensorFlow's defaults do, bit for bit on x86.

    Pillow's encoder gives TensorFlow's coefficients; its decoder does not, because TensorFlow
    decodes with the fast integer DCT, which simplejpeg can be told to use.
    """
    stream = io.BytesIO()
    pixels = Image.fromarray(np.ascontiguousarray(image))
    pixels.save(stream, 'JPEG', quality=JPEG_QUALITY, subsampling='4:2:0')
    return simplejpeg.decode_jpeg(stream.getvalue(), fastdct=JPEG_FAST_DCT)


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """[H, W, 3] uint8 -> [side, side, 3] uint8, lanczos3 with antialiasing, aspect not kept.

    Rounds half to even and clips once, at the end: a resampler that rounds between its two
    passes, like Pillow's, differs by up to 25.
    """
    return resample(image, side).round().clip(0, 255).astype(np.uint8)


def resample(image: np.ndarray, side: int) -> np.ndarray:
    """[H, W, 3] uint8 -> [side, side, 3] float32, not rounded and not clipped.

    Adds up tap by tap in float32, first the rows and then the columns, as TensorFlow does: in any
    other order, values half-way between two levels round differently.
    """
    values = _resample_rows(image.astype(np.float32), side)
    return _resample_rows(values.swapaxes(0, 1), side).swapaxes(0, 1)


def _resample_rows(values: np.ndarray, side: int) -> np.ndarray:
    """[H, W, 3] float32 -> [side, W, 3] float32."""
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    result = np.zeros((side, flat.shape[1]), np.float32)
    addend = np.empty_like(result)
    for rows, weights in zip(*_lanczos3(len(flat), side), strict=True):
        np.take(flat, rows, axis=0, out=addend, mode='clip')
        addend *= weights[:, None]
        result += addend
    return result.reshape(side, *values.shape[1:])


def crop_and_resize(image: np.ndarray, side: int, crop: bool) -> np.ndarray:
    """[H, W, 3] uint8 -> [side, side, 3] uint8 in one pass: what `exact` sees, nearly.

    A triangle filter as wide as the reduction: closer to lanczos3 followed by the bilinear crop
    than sharper filters are. Pictures more than twice too large are halved by averaging first.
    """
    height, width = image.shape[:2]
    low = (1 - math.sqrt(CROP_AREA)) / 2 if crop else 0.0
    high = 1 - low
    picture = Image.fromarray(np.ascontiguousarray(image)).resize(
        (side, side), Image.Resampling.BILINEAR,
        box=(low * width, low * height, high * width, high * height), reducing_gap=1.0,
    )
    return np.asarray(picture)


def center_crop(image: np.ndarray) -> np.ndarray:
    """Cut out the central 0.9 of the area and stretch it to the old size, bilinearly.

    Float32 throughout and truncation of 255.5 x instead of rounding, as in TensorFlow.
    """
    return (np.clip(crop_center(image), 0, 1) * np.float32(LEVELS)).astype(np.uint8)


def crop_center(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 -> same shape in float32, 0 to 1: the crop before it becomes uint8."""
    low_row, high_row, down = _crop_taps(image.shape[0])
    low_column, high_column, right = _crop_taps(image.shape[1])
    values = image.astype(np.float32) * np.float32(1 / 255)
    left = values[:, low_column]
    values = left + (values[:, high_column] - left) * right[:, None]
    top = values[low_row]
    return top + (values[high_row] - top) * down[:, None, None]


@lru_cache(maxsize=16)
def _lanczos3(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and weights of the taps of each output row, both [taps, target]; weights sum to 1.

    Float32 throughout, in TensorFlow's order of operations.
    """
    one, half, radius, pi = (np.float32(value) for value in (1, 0.5, LANCZOS_RADIUS, np.pi))
    step = one / (np.float32(target) / np.float32(source))
    stretch = max(step, one)
    centres = (np.arange(target, dtype=np.float32) + half) * step
    first, last = (
        to_integer(centres + reach * radius * stretch - half).clip(0, source - 1).astype(np.intp)
        for to_integer, reach in ((np.ceil, -one), (np.floor, one))
    )
    places = first + np.arange((last - first).max() + 1)[:, None]
    x = np.abs((places.astype(np.float32) + half - centres) * (one / stretch))

    def sine(angle: np.ndarray) -> np.ndarray:
        return np.sin(angle.astype(np.float64)).astype(np.float32)

    nonzero = np.maximum(x, np.float32(1e-6))
    weights = radius * sine(pi * x) * sine(pi * x / radius) / (pi * pi * nonzero * nonzero)
    weights[x <= np.float32(1e-3)] = 1
    weights[(x > radius) | (places > last)] = 0
    total = np.zeros(target, np.float32)
    for tap in weights:
        total += tap
    return places, weights * (one / total)


@lru_cache(maxsize=16)
def _crop_taps(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower neighbour, upper neighbour and weight of the upper one, for each output pixel."""
    last, side, one = np.float32(size - 1), np.sqrt(np.float32(CROP_AREA)), np.float32(1)
    offset = (one - side) / np.float32(2)
    where = offset * last + np.arange(size, dtype=np.float32) * side
    low = np.floor(where)
    return low.astype(np.intp), np.ceil(where).astype(np.intp), where - low
