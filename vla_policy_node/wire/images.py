"""Converts image messages to RGB arrays, and samples them for comparison.

All functions are pure and may be called from any thread. Images of rclpy have the same fields as
the serialised ones and work as well.
"""

from pathlib import Path

import cv2
import numpy as np

from vla_policy_node.control.cameras import Shape
from vla_policy_node.control.views import GRID
from vla_policy_node.wire.cdr import SerialisedCompressedImage, SerialisedImage
from vla_policy_node.wire.compressed_format import SWAPPED, USUAL, stored_as
from vla_policy_node.wire.encodings import ENCODINGS, mosaic_to_rgb
from vla_policy_node.wire.picture_size import ImageError, compressed_size

# Slightly more than 3840 x 2160: the largest picture, and so the largest allocation.
MAX_PIXELS = 8_400_000


def decode_image(msg: SerialisedImage) -> np.ndarray:
    """Return the image as [H, W, 3] uint8 RGB, contiguous, padded rows (`step`) honoured.

    An unpadded rgb8 image is not copied: the array shares the memory of `msg.data`.
    Raises ImageError for an unsupported encoding, an empty image, or too few bytes.
    """
    pixels = _pixels(msg)
    convert = ENCODINGS[msg.encoding].convert
    if convert is None:
        return np.ascontiguousarray(pixels)
    return convert(pixels)


def sample_image(msg: SerialisedImage) -> tuple[Shape, np.ndarray]:
    """Return size and encoding, and GRID x GRID samples [GRID, GRID, 3] uint8 of the pixels.

    Takes some 20 microseconds whatever the size, where a pixel holds its colours; a Bayer or YUV
    picture is converted as a whole. Raises ImageError as `decode_image`.
    """
    pixels, encoding = _pixels(msg), ENCODINGS[msg.encoding]
    if not encoding.direct and encoding.convert is not None:
        pixels = encoding.convert(pixels)
    return Shape(msg.width, msg.height, msg.encoding), _sample(pixels)


def _pixels(msg: SerialisedImage) -> np.ndarray:
    """Return the pixels [H, W, C] uint8, of 8 bits as a view of the bytes. Raises ImageError."""
    encoding = ENCODINGS.get(msg.encoding)
    if encoding is None:
        raise ImageError(
            f"Image encoding '{msg.encoding}' is not supported; publish one of "
            f'{", ".join(ENCODINGS)}.'
        )
    height, width, step = msg.height, msg.width, msg.step
    if height == 0 or width == 0:
        raise ImageError(f'The {msg.encoding} image is empty ({width}x{height} pixels).')
    if height * width > MAX_PIXELS:
        raise ImageError(
            f'The {msg.encoding} image has {width}x{height} pixels; more than '
            f'{MAX_PIXELS / 1e6:g} million are refused.'
        )
    if width % encoding.multiple[0] or height % encoding.multiple[1] or min(
            width, height) < encoding.smallest:
        raise ImageError(f'An image of {width}x{height} pixels cannot be {msg.encoding}.')
    row_bytes = width * encoding.channels * encoding.bits // 8
    if step < row_bytes:
        raise ImageError(
            f'The {msg.encoding} image has step {step}, but a row of {width} pixels needs '
            f'{row_bytes} bytes.'
        )
    rows = height + round(height * encoding.extra_rows)
    # The padding of the last row may be missing: it is never read.
    needed = (rows - 1) * step + row_bytes
    if len(msg.data) < needed:
        raise ImageError(
            f'The {msg.encoding} image of {width}x{height} pixels is truncated: '
            f'{len(msg.data)} of {needed} bytes.'
        )
    # Of 16 bits, the upper byte of each number.
    wide = encoding.bits // 8
    offset = wide - 1 if not msg.is_bigendian else 0
    return np.ndarray((rows, width, encoding.channels), np.uint8, msg.data, offset,
                      strides=(step, wide * encoding.channels, wide))


def _sample(pixels: np.ndarray) -> np.ndarray:
    """Return samples [GRID, GRID, 3] of pixels [H, W, C], without what is transparent."""
    rows, columns = ((2 * np.arange(GRID) + 1) * side // (2 * GRID) for side in pixels.shape[:2])
    samples = pixels[rows[:, None], columns, :3]
    return samples if samples.shape[2] == 3 else np.repeat(samples, 3, axis=2)


def decode_compressed(msg: SerialisedCompressedImage) -> np.ndarray:
    """Return a JPEG or PNG image as [H, W, 3] uint8 RGB; grey images are expanded.

    Colours lie as the field `format` says. Raises ImageError if OpenCV cannot read the bytes, if
    they claim more than MAX_PIXELS or if `format` says that there are no colours; nothing is
    allocated before the claim is checked.
    """
    compressed_size(msg.data, MAX_PIXELS)
    stored = stored_as(msg.format)
    if stored == USUAL:
        return cv2.cvtColor(_decode(msg, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    if stored == SWAPPED:
        return _decode(msg, cv2.IMREAD_COLOR)
    return mosaic_to_rgb(_decode(msg, cv2.IMREAD_GRAYSCALE), stored)


def sample_compressed(msg: SerialisedCompressedImage) -> tuple[Shape, np.ndarray]:
    """Return size and format, and GRID x GRID samples [GRID, GRID, 3] uint8 of the pixels.

    JPEG is decoded at an eighth of its size where that leaves enough (1280x720: 0.8 to 1.7 ms),
    PNG as a whole (13 ms). Raises ImageError as `decode_compressed`.
    """
    kind, width, height = compressed_size(msg.data, MAX_PIXELS)
    swapped = stored_as(msg.format) == SWAPPED
    enough = [flag for divisor, flag in (
        (8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4),
        (2, cv2.IMREAD_REDUCED_COLOR_2)) if min(width, height) >= divisor * GRID]
    flag = enough[0] if enough and kind == 'jpeg' else cv2.IMREAD_COLOR
    samples = _sample(_decode(msg, flag))
    return Shape(width, height, kind), samples[..., ::-1] if swapped else samples


def read_reference(path: str) -> np.ndarray:
    """Return samples [GRID, GRID, 3] uint8 of a picture file, JPEG or PNG.

    Raises ValueError with one sentence if there is none.
    """
    try:
        with Path(path).open('rb') as file:
            data = file.read(MAX_PIXELS * 4)
        return sample_compressed(SerialisedCompressedImage(0, '', '', memoryview(data)))[1]
    except (OSError, ImageError) as error:
        raise ValueError(f"The reference picture '{path}' cannot be read: {error}") from error


def _decode(msg: SerialisedCompressedImage, flag: int) -> np.ndarray:
    data = np.frombuffer(msg.data, np.uint8)
    try:
        bgr = cv2.imdecode(data, flag)
    except cv2.error:
        bgr = None
    if bgr is None:
        raise ImageError(
            f"The {data.size} bytes of compressed image format '{msg.format}' cannot be decoded; "
            'publish jpeg or png.'
        )
    return bgr
