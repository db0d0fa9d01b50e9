"""Reads the size of a JPEG or PNG from its first bytes, before anything is decoded.

A few kB of PNG can claim, and fill, gigabytes; a truncated JPEG decodes to a half-grey picture.
Both are detected here.
"""

import struct

from vla_policy_node.wire.cdr import MessageError

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
# Bytes 0xFF before a marker. Writers that align segments put a few; nothing but those would be
# stepped through for seconds.
_MOST_FILL_BYTES = 16
# Bytes that are searched at once for the end of a JPEG, from the back: it is found in the first.
_PIECE = 65_536


class ImageError(MessageError):
    """An image message that cannot be turned into pixels."""


def compressed_size(data: bytes | memoryview, max_pixels: int) -> tuple[str, int, int]:
    """Return kind ('jpeg' or 'png'), width and height in px. Raises ImageError."""
    data = memoryview(data)  # megabytes, of which some hundred bytes are read: no copy
    if data[:len(_PNG)] == _PNG:
        kind, width, height = 'png', *_png_size(data)
    elif data[:len(_JPEG)] == _JPEG:
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


def _png_size(data: memoryview) -> tuple[int, int]:
    if len(data) < 24 or data[12:16] != b'IHDR' or b'IEND' not in bytes(data[-4096:]):
        raise ImageError('The png picture is truncated.')
    return struct.unpack_from('>II', data, 16)


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    at = 2
    for _ in range(_MOST_SEGMENTS):
        for _ in range(_MOST_FILL_BYTES):
            if data[at:at + 2] == b'\xff\xff':
                at += 1
        if len(data) < at + 9 or data[at] != 0xFF:
            break
        if data[at + 1] in _FRAME_HEADERS:
            if not _ends(data[at:]):
                break
            height, width = struct.unpack_from('>HH', data, at + 5)
            return width, height
        length = struct.unpack_from('>H', data, at + 2)[0]
        if data[at + 1] in _WITHOUT_LENGTH or length < 2:
            break
        at += 2 + length
    raise ImageError('The jpeg picture is truncated or has no size.')


def _ends(data: memoryview) -> bool:
    """Return whether the marker of a JPEG's end is anywhere in the data."""
    return any(_JPEG_END in bytes(data[max(0, end - _PIECE - 1):end])
               for end in range(len(data), 0, -_PIECE))
