"""Random crops and colours for training images, as in OpenVLA-OFT's fine-tuning.

Its recipe: a crop of 0.9 of the area at a random place, then brightness 0.2, contrast 0.8 to
1.2, saturation 0.8 to 1.2, hue 0.05 (openvla-oft, `image_aug`). At run time the crop is central.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from vla_policy_node.encoding.preprocess import CROP_AREA

SIDE = math.sqrt(CROP_AREA)


def draw_crop(shift: float, rng: np.random.Generator) -> tuple[float, float]:
    """Upper left corner (x, y) of a crop, as fractions of the image.

    shift: how far from the centre it may lie; 1 is anywhere in the image, 0 the centre.
    """
    centre = (1 - SIDE) / 2
    return tuple(centre + centre * shift * rng.uniform(-1, 1, 2))


def cut(image: np.ndarray, corner: tuple[float, float], side_px: int, labels: bool) -> np.ndarray:
    """Cut the crop out of [H, W(, 3)] and stretch it to a square of `side_px`.

    labels: the values are names, not brightnesses; nothing is interpolated.
    """
    size = np.array(image.shape[1::-1])
    # Pixel centres of the first and last output pixel lie on those of the crop, as at run time.
    scale = SIDE * (size - 1) / (side_px - 1) if not labels else SIDE * size / side_px
    offset = np.array(corner) * (size - 1 if not labels else size)
    if labels:
        offset += scale / 2 - 0.5
    matrix = np.array([[scale[0], 0, offset[0]], [0, scale[1], offset[1]]])
    mode = cv2.INTER_NEAREST if labels else cv2.INTER_LINEAR
    return cv2.warpAffine(
        image, matrix, (side_px, side_px), flags=mode | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE)


def cut_out(image: np.ndarray, corner: tuple[float, float]) -> np.ndarray:
    """Cut the crop out of [H, W(, 3)] as it is, whole pixels, for those who fit it themselves."""
    size = np.array(image.shape[:2])
    rows, columns = np.maximum(1, (SIDE * size).round().astype(int))
    top, left = (np.array(corner[::-1]) * size).round().astype(int)
    return image[top : top + rows, left : left + columns]


def jitter_colours(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """[H, W, 3] uint8 RGB -> same. strength: 1 is the recipe above, 0 nothing."""
    if strength == 0:
        return image
    brightness = 0.2 * strength * rng.uniform(-1, 1)
    contrast, saturation = 1 + 0.2 * strength * rng.uniform(-1, 1, 2)
    hue = 0.05 * strength * rng.uniform(-1, 1)
    values = image / np.float32(255) + np.float32(brightness)
    mean = values.mean(axis=(0, 1))
    values = np.clip((values - mean) * contrast + mean, 0, 1).astype(np.float32)
    hsv = cv2.cvtColor(values, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * hue) % 360
    hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 1)
    return (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255 + 0.5).astype(np.uint8)
