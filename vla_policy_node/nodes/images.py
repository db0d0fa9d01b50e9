"""Image messages to RGB arrays and back, and stamps read without deserialising.

All functions are pure and may be called from any thread.
"""

import array
import struct

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

# encoding -> bytes per pixel, OpenCV conversion to RGB (sensor_msgs/image_encodings.hpp)
_ENCODINGS = {
    'rgb8': (3, None),
    'bgr8': (3, cv2.COLOR_BGR2RGB),
    'rgba8': (4, cv2.COLOR_RGBA2RGB),
    'bgra8': (4, cv2.COLOR_BGRA2RGB),
    'mono8': (1, cv2.COLOR_GRAY2RGB),
}
# Representation identifier of plain CDR -> byte order (DDSI-RTPS 2.5, section 10.2)
_CDR_BYTE_ORDER = {b'\x00\x00': '>', b'\x00\x01': '<'}


class ImageError(ValueError):
    """An image message that cannot be turned into pixels."""


def decode_image(msg: Image) -> np.ndarray:
    """Return the image as [H, W, 3] uint8 RGB, contiguous, padded rows (`step`) honoured.

    An unpadded rgb8 image is not copied: the array shares the memory of `msg.data`.
    Raises ImageError for an unsupported encoding, an empty image, or too few bytes.
    """
    if msg.encoding not in _ENCODINGS:
        supported = ', '.join(_ENCODINGS)
        raise ImageError(
            f"Image encoding '{msg.encoding}' is not supported; publish one of {supported}."
        )
    channels, conversion = _ENCODINGS[msg.encoding]
    height, width, step = msg.height, msg.width, msg.step
    if height == 0 or width == 0:
        raise ImageError(f'The {msg.encoding} image is empty ({width}x{height} pixels).')
    if step < width * channels:
        raise ImageError(
            f'The {msg.encoding} image has step {step}, but a row of {width} pixels needs '
            f'{width * channels} bytes.'
        )
    # The padding of the last row may be missing: nothing in it is ever read.
    needed = (height - 1) * step + width * channels
    if len(msg.data) < needed:
        raise ImageError(
            f'The {msg.encoding} image of {width}x{height} pixels is truncated: '
            f'{len(msg.data)} of {needed} bytes.'
        )
    pixels = np.ndarray((height, width, channels), np.uint8, msg.data, strides=(step, channels, 1))
    if conversion is None:
        return np.ascontiguousarray(pixels)
    return cv2.cvtColor(pixels, conversion)


def decode_compressed(msg: CompressedImage) -> np.ndarray:
    """Return a JPEG or PNG image as [H, W, 3] uint8 RGB; grey images are expanded.

    Raises ImageError if the bytes are no image that OpenCV can read.
    """
    data = np.frombuffer(msg.data, np.uint8)
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:  # no bytes, or a header that promises an absurd size
        bgr = None
    if bgr is None:
        raise ImageError(
            f"The {data.size} bytes of compressed image format '{msg.format}' cannot be decoded; "
            'publish jpeg or png.'
        )
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def to_image_message(rgb: np.ndarray, header: Header) -> Image:
    """Return [H, W, 3] uint8 RGB as an rgb8 message with unpadded rows."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ImageError(
            f'An rgb8 message needs [H, W, 3] uint8 pixels, got {list(rgb.shape)} {rgb.dtype}.'
        )
    height, width, channels = rgb.shape
    # array('B', view) goes element by element (640x480: 56 ms instead of 0.1 ms), and so does
    # the assignment of bytes where rclpy checks its fields.
    data = array.array('B')
    data.frombytes(np.ascontiguousarray(rgb).data.cast('B'))
    msg = Image(header=header, height=height, width=width, encoding='rgb8')
    msg.step = width * channels
    msg.data = data
    return msg


def stamp_of(raw: bytes) -> int:
    """Return the stamp [ns] of a serialised message whose first field is a Header.

    The layout is 4 bytes of CDR encapsulation, int32 seconds, uint32 nanoseconds.
    Raises ImageError if the encapsulation is not plain CDR or the message is too short.
    """
    byte_order = _CDR_BYTE_ORDER.get(bytes(raw[:2]))
    if byte_order is None or len(raw) < 12:
        raise ImageError(
            'The serialised message does not begin with a plain CDR header; '
            'use a middleware that sends plain CDR.'
        )
    seconds, nanoseconds = struct.unpack_from(f'{byte_order}iI', raw, 4)
    return seconds * 1_000_000_000 + nanoseconds
