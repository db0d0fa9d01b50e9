"""From a camera image to the tensor the towers take, as OpenVLA-OFT's evaluation code does it.

The order is binding: JPEG round trip, lanczos3 resize, centre crop, two normalisations. Policies
were trained on images that went through the first two, and details that look like taste (which
inverse DCT the decoder uses, where values are rounded) change up to 80 % of the pixels.
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

JPEG_QUALITY = 95
CROP_AREA = 0.9  # fraction of the image that the centre crop keeps

TRANSFORMS = {
    'none': lambda image: image,
    'rotate_180': lambda image: image[::-1, ::-1],
    'mirror_horizontal': lambda image: image[:, ::-1],
}


class ImagePreprocessor:
    """Turns one camera image into six normalised channels."""

    def __init__(self, document: Mapping, image_px: int, center_crop: bool):
        """Read the normalisation from a parsed `preprocessor_config.json`.

        `tvf_normalize_params` holds the constants used in training; the `means` and `stds`
        beside it are the same before rounding to bfloat16.
        """
        towers = document['tvf_normalize_params']
        self._mean = torch.tensor([tower['mean'] for tower in towers]).reshape(6, 1, 1)
        self._std = torch.tensor([tower['std'] for tower in towers]).reshape(6, 1, 1)
        self._image_px = image_px
        self._center_crop = center_crop

    def __call__(self, image: np.ndarray, transform: str = 'none') -> Tensor:
        """[H, W, 3] uint8 RGB -> [6, image_px, image_px] float32."""
        image = TRANSFORMS[transform](image)
        if image.shape[:2] != (self._image_px, self._image_px):
            image = resize(jpeg_round_trip(image), self._image_px)
        if self._center_crop:
            image = center_crop(image)
        rgb = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
        return (rgb.repeat(2, 1, 1) - self._mean) / self._std

    @property
    def crop(self) -> tuple[float, float, float, float]:
        """x, y, width, height of what the towers see, as fractions of the image."""
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
    return simplejpeg.decode_jpeg(stream.getvalue(), fastdct=True)


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """[H, W, 3] uint8 -> [side, side, 3] uint8, lanczos3 with antialiasing, aspect not kept.

    Rounds half to even and clips once, at the end: a resampler that rounds between its two
    passes, like Pillow's, differs by up to 25.
    """
    planes = torch.from_numpy(image).permute(2, 0, 1).float()
    rows = _lanczos3(image.shape[0], side)
    columns = _lanczos3(image.shape[1], side)
    resized = rows @ planes @ columns.T
    return resized.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def center_crop(image: np.ndarray) -> np.ndarray:
    """Cut out the central 0.9 of the area and stretch it to the old size, bilinearly.

    Float32 throughout and truncation of 255.5 x instead of rounding, as in TensorFlow.
    """
    low_row, high_row, down = _crop_taps(image.shape[0])
    low_column, high_column, right = _crop_taps(image.shape[1])
    values = image.astype(np.float32) * np.float32(1 / 255)
    left = values[:, low_column]
    values = left + (values[:, high_column] - left) * right[:, None]
    top = values[low_row]
    values = top + (values[high_row] - top) * down[:, None, None]
    return (np.clip(values, 0, 1) * np.float32(255.5)).astype(np.uint8)


@lru_cache(maxsize=16)
def _lanczos3(source: int, target: int) -> Tensor:
    """[target, source] float32 resampling weights; each row sums to one."""
    step = source / target
    stretch = max(step, 1.0)
    centres = (np.arange(target) + 0.5) * step - 0.5
    distance = np.abs(np.arange(source) - centres[:, None]) / stretch
    weights = np.where(distance < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True)).float()


@lru_cache(maxsize=16)
def _crop_taps(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower neighbour, upper neighbour and weight of the upper one, for each output pixel."""
    last, side, one = np.float32(size - 1), np.sqrt(np.float32(CROP_AREA)), np.float32(1)
    offset = (one - side) / np.float32(2)
    where = offset * last + np.arange(size, dtype=np.float32) * side
    low = np.floor(where)
    return low.astype(np.intp), np.ceil(where).astype(np.intp), where - low
