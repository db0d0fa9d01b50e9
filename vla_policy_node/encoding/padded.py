"""Pictures for pi0, pi0.5 and SmolVLA: shrunk with their aspect kept, and the rest is black.

Three conventions, of which a checkpoint was trained with one: going by how its files are laid out,
openpi's or LeRobot's. They differ by up to a fifth of a picture's range where it shrinks a lot.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from vla_policy_node.encoding.preprocess import (
    TRANSFORMS,
    Normaliser,
    check_preprocessing,
)

# Pixels from -1 to 1, for the one vision encoder.
MINUS_ONE_TO_ONE = {'tvf_normalize_params': [{'mean': [0.5] * 3, 'std': [0.5] * 3}]}


@dataclass(frozen=True)
class Padding:
    """How a picture is fitted.

    antialias: by Pillow's bilinear filter, which averages what it shrinks and rounds to levels;
    else by the two nearest rows and columns, unrounded. centred: black on all sides, else on the
    left and the top.
    """

    antialias: bool
    centred: bool


PADDINGS = {
    'openpi': Padding(antialias=True, centred=True),
    'lerobot': Padding(antialias=False, centred=True),  # pi0 and pi0.5
    'smolvla': Padding(antialias=False, centred=False),
}


def fit(shape: tuple[int, int], target: tuple[int, int], centred: bool) -> tuple[int, ...]:
    """Rows and columns of the shrunk picture, and those of black above and left of it.

    Truncated, as all three implementations do: sizes that no float divides evenly lose a row.
    """
    ratio = max(shape[1] / target[1], shape[0] / target[0])
    height, width = (max(1, int(length / ratio)) for length in shape)
    share = 2 if centred else 1
    return height, width, (target[0] - height) // share, (target[1] - width) // share


def resize_with_padding(
    image: np.ndarray, target: tuple[int, int], padding: Padding, fast: bool = False
) -> np.ndarray:
    """[H, W, 3] uint8 -> [*target, 3] in levels from 0 to 255: uint8, or float32 if not rounded.

    fast: rounded anyway, and halved before if it is more than twice too large.
    """
    if image.shape[:2] == target:
        return image
    image = np.ascontiguousarray(image)
    height, width, top, left = fit(image.shape[:2], target, padding.centred)
    if padding.antialias:
        picture = np.asarray(Image.fromarray(image).resize(
            (width, height), Image.Resampling.BILINEAR, reducing_gap=1.0 if fast else None))
    elif fast:
        picture = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    else:
        channels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        shrunk = interpolate(channels, (height, width), mode='bilinear', align_corners=False)
        picture = shrunk[0].clamp_(0, 255).permute(1, 2, 0).numpy()
    result = np.zeros((*target, 3), picture.dtype)
    result[top:top + height, left:left + width] = picture
    return result


class PaddedPreprocessor:
    """As `encoding.preprocess.ImagePreprocessor`, for families with one vision encoder.

    What `picture` returns is float32 where the convention does not round; both go to the device
    and through `normaliser` there.
    """

    def __init__(self, padding: str, image_px: int, preprocessing: str = 'exact'):
        """padding: one of PADDINGS. ValueError for a kind of preprocessing that there is not."""
        check_preprocessing(preprocessing)
        self.normaliser = Normaliser(MINUS_ONE_TO_ONE, encoders=1)
        self._padding = PADDINGS[padding]
        self._target = image_px, image_px
        self._fast = preprocessing == 'fast'

    def __call__(self, image: np.ndarray, transform: str = 'none') -> Tensor:
        """[H, W, 3] uint8 RGB -> [3, image_px, image_px] float32 from -1 to 1."""
        return self.normalise(self.picture(image, transform))

    def picture(self, image: np.ndarray, transform: str = 'none') -> np.ndarray:
        """[H, W, 3] uint8 RGB -> [image_px, image_px, 3] in levels: all but the normalisation."""
        return resize_with_padding(
            TRANSFORMS[transform](image), self._target, self._padding, self._fast)

    def fitted(self, image: np.ndarray, side_px: int, labels: bool) -> np.ndarray:
        """[H, W(, 3)] uint8 -> a square of uint8, for training, which keeps pictures in bytes.

        labels: the values are names, not brightnesses; where a picture is black there are none.
        """
        if not labels:
            fitted = resize_with_padding(image, (side_px, side_px), self._padding)
            return np.rint(fitted).astype(np.uint8)
        target = side_px, side_px
        height, width, top, left = fit(image.shape, target, self._padding.centred)
        result = np.zeros(target, np.uint8)
        result[top:top + height, left:left + width] = cv2.resize(
            image, (width, height), interpolation=cv2.INTER_NEAREST)
        return result

    def normalise(self, image: np.ndarray) -> Tensor:
        """[H, W, 3] in levels -> [3, H, W] float32."""
        return self.normaliser(torch.from_numpy(np.ascontiguousarray(image)))

    def crop_of(self, height: int, width: int) -> tuple[float, float, float, float]:
        """x, y, width, height of the square as fractions of an image: outside of it is black."""
        if (height, width) == self._target:
            return (0.0, 0.0, 1.0, 1.0)
        rows, columns, top, left = fit((height, width), self._target, self._padding.centred)
        return (-left / columns, -top / rows,
                self._target[1] / columns, self._target[0] / rows)
