"""Pictures and label images in a file of a demonstration: encoded, packed and found again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import simplejpeg

JPEG_QUALITY = 95
JPEG, PNG, LABELS = 'jpeg', 'png', 'segments'  # parts of the names of tensors


class PictureError(Exception):
    """A picture cannot be decoded; the library's reason."""


def encode(image: np.ndarray, kind: str = JPEG) -> bytes:
    """[H, W, 3] uint8 RGB -> a file of it, 'jpeg' or 'png'."""
    if kind == PNG:
        return cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=JPEG_QUALITY, colorsubsampling='420')


def packed(name: str, parts: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Put files of pictures behind each other, as tensors of an episode."""
    return {name: np.frombuffer(b''.join(parts), np.uint8),
            f'{name}_offset': np.cumsum([0, *map(len, parts)], dtype=np.int64)}


def decoded(file: Any, camera: str, frame: int, kind: str) -> np.ndarray:
    """Return a picture of an episode that is open, [H, W, 3] uint8 RGB."""
    if kind == PNG:
        data = np.frombuffer(_part(file, f'{camera}.{PNG}', frame), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
        if image is None:
            raise PictureError('no picture')
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    try:
        return simplejpeg.decode_jpeg(_part(file, f'{camera}.{JPEG}', frame), fastdct=True)
    except ValueError as error:
        raise PictureError(str(error)) from error


def labels(file: Any, camera: str, frame: int) -> np.ndarray:
    """Return a label image of an episode that is open, [h, w] uint8."""
    data = np.frombuffer(_part(file, f'{camera}.{LABELS}', frame), np.uint8)
    found = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if found is None:
        raise PictureError('no labels')
    return found


def _part(file: Any, name: str, frame: int) -> bytes:
    start, end = file.get_slice(f'{name}_offset')[frame:frame + 2]
    return file.get_slice(name)[int(start):int(end)].tobytes()
