"""What the field `format` of a CompressedImage says about the colours in the JPEG or PNG.

image_transport writes `ENCODING; jpeg compressed STORED`: the publisher's encoding, and the
channel order that it gave to the compressor. Others write `jpeg` or `png`, and the colours
are then stored in the usual order.
"""

from __future__ import annotations

from functools import lru_cache

from vla_policy_node.wire.encodings import ENCODINGS
from vla_policy_node.wire.picture_size import ImageError

# How the numbers of a decoded picture lie; other results are Bayer encodings.
USUAL, SWAPPED = 'usual', 'swapped'
_DEPTH = ('16uc1', '32fc1', '16sc1', '64fc1', 'compresseddepth')


@lru_cache(maxsize=64)
def stored_as(text: str) -> str:
    """Return USUAL, SWAPPED (red and blue) or the Bayer encoding whose mosaic is stored.

    Raises ImageError for depth, and for colours of which only the brightness was stored.
    """
    encoding, _, rest = (part.strip() for part in text.partition(';'))
    if any(name in text.lower() for name in _DEPTH):
        raise ImageError(
            f"The compressed image format '{text[:80]}' is that of a depth picture; name the "
            'topic of the colour camera.')
    stored = rest.partition('compressed')[2].strip()
    if encoding.startswith('bayer_') and encoding in ENCODINGS:
        return USUAL if stored.startswith(('bgr', 'rgb')) else encoding
    if stored.startswith('rgb'):
        return SWAPPED
    if stored.startswith('mono') and encoding in ENCODINGS and not encoding.startswith('mono'):
        raise ImageError(
            f"The compressed image format '{text[:80]}' stores the brightness of {encoding} "
            'alone; publish it with its colours.')
    return USUAL
