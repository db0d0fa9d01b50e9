"""The supported colour and grey image encodings, and how OpenCV converts each to RGB.

Names and layouts are those of sensor_msgs/image_encodings.hpp. Encodings without defined colours
are left out: depth (16UC1, 32FC1) and channels of any other meaning. 8UC3 has none either, but in
practice it comes from OpenCV, whose order is blue, green, red.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

_Convert = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Encoding:
    """One encoding.

    channels: numbers per pixel. convert: pixels [H, W, C] to RGB [H, W, 3] uint8; None: they are
    RGB. bits: of a number, 8 or 16. multiple: of width and height, in px. smallest: side, in px.
    extra_rows: rows of colour that follow, per row. direct: whether the first numbers of a pixel
    are the colours of that pixel, in any order.
    """

    channels: int
    convert: _Convert | None
    bits: int = 8
    multiple: tuple[int, int] = (1, 1)
    smallest: int = 1
    extra_rows: float = 0.0
    direct: bool = True


def _by(code: int) -> _Convert:
    return partial(cv2.cvtColor, code=code)


# OpenCV calls a Bayer pattern by its second row and column, ROS by its first.
_BAYER = {'rggb': cv2.COLOR_BayerBG2RGB, 'bggr': cv2.COLOR_BayerRG2RGB,
          'gbrg': cv2.COLOR_BayerGR2RGB, 'grbg': cv2.COLOR_BayerGB2RGB}
_UYVY = Encoding(2, _by(cv2.COLOR_YUV2RGB_UYVY), multiple=(2, 1), direct=False)
_YUYV = Encoding(2, _by(cv2.COLOR_YUV2RGB_YUY2), multiple=(2, 1), direct=False)

_PLAIN = {
    'rgb8': Encoding(3, None),
    'bgr8': Encoding(3, _by(cv2.COLOR_BGR2RGB)),
    'rgba8': Encoding(4, _by(cv2.COLOR_RGBA2RGB)),
    'bgra8': Encoding(4, _by(cv2.COLOR_BGRA2RGB)),
    'mono8': Encoding(1, _by(cv2.COLOR_GRAY2RGB)),
    **{f'bayer_{name}8': Encoding(1, _by(code), smallest=3, direct=False)
       for name, code in _BAYER.items()},
}
ENCODINGS = {
    **_PLAIN,
    '8UC3': _PLAIN['bgr8'],
    # Of 16 bits the upper ones count, as where OpenCV reads a PNG of 16 bits.
    **{f'{name[:-1]}16': Encoding(about.channels, about.convert, 16, smallest=about.smallest,
                                  direct=about.direct)
       for name, about in _PLAIN.items()},
    'yuv422': _UYVY, 'uyvy': _UYVY, 'yuv422_yuy2': _YUYV, 'yuyv': _YUYV,
    'nv12': Encoding(1, _by(cv2.COLOR_YUV2RGB_NV12), multiple=(2, 2), extra_rows=0.5,
                     direct=False),
    'nv21': Encoding(1, _by(cv2.COLOR_YUV2RGB_NV21), multiple=(2, 2), extra_rows=0.5,
                     direct=False),
}


def mosaic_to_rgb(pixels: np.ndarray, encoding: str) -> np.ndarray:
    """Return RGB [H, W, 3] of a Bayer mosaic [H, W]."""
    return cv2.cvtColor(pixels, _BAYER[encoding.removeprefix('bayer_')[:4]])
