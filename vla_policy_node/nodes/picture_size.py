"""The size of a JPEG or PNG picture from its first bytes, before anything is decoded.

A few kB of PNG can claim, and fill, gigabytes; a JPEG that ends early is decoded to half a picture
of grey. Both are found here.
"""

import struct

from vla_policy_node.nodes.cdr import MessageError

_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8\xff'
_JPEG_END = b'\xff\xd9'
# Markers of a frame header (ITU-T T.81, table B.1): SOF0 to SOF15 without DHT, JPG and DAC.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers that no length follows, and the end: none belongs before the frame header. Decoders step
# over them otherwise than over a segment, and would come to another frame header than we do.
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})
# Segments before the frame header: tables, comments, a thumbnail in parts. Real files have ten.
_MOST_SEGMENTS = 200


class ImageError(MessageError):
    """An image message that cannot be turned into pixels."""


def compressed_size(data: bytes | memoryview, max_pixels: int) -> tuple[str, int, int]:
    """Return kind ('jpeg' or 'png'), width and height in px. Raises ImageError."""
    data = bytes(data)
    if data.startswith(_PNG):
        kind, width, height = 'png', *_png_size(data)
    elif data.startswith(_JPEG):
        kind, width, height = 'jpeg', *_jpeg_size(data)
    else:
        raise ImageError('The bytes are neither a JPEG nor a PNG picture; publish jpeg or png.')
    if width == 0 or height == 0:
        raise ImageError(f'The {kind} picture is empty ({width}x{height} pixels).')
    if width * height > max_pixels:
        raise ImageError(
            f'The {kind} picture claims {width}x{height} pixels; more than '
            f'{max_pixels / 1e6:g} million are refused.')
    return kind, width, height


def _png_size(data: bytes) -> tuple[int, int]:
    if len(data) < 24 or data[12:16] != b'IHDR' or b'IEND' not in data[-4096:]:
        raise ImageError('The png picture is truncated.')
    return struct.unpack_from('>II', data, 16)


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    for _ in range(_MOST_SEGMENTS):
        while data[at:at + 2] == b'\xff\xff':  # fill bytes
            at += 1
        if len(data) < at + 9 or data[at] != 0xFF:
            break
        if data[at + 1] in _FRAME_HEADERS:
            if data.rfind(_JPEG_END) < at:
                break
            height, width = struct.unpack_from('>HH', data, at + 5)
            return width, height
        length = struct.unpack_from('>H', data, at + 2)[0]
        if data[at + 1] in _WITHOUT_LENGTH or length < 2:
            break
        at += 2 + length
    raise ImageError('The jpeg picture is truncated or has no size.')
