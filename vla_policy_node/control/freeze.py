"""Detects frozen cameras: stamps advance while the image stays the same.

It compares samples of the decoded picture, so that nothing around the pixels on the wire (stamps,
`frame_id`, padding, another compression) matters. Samples, not means: sensor noise is what tells a
still scene from a frozen picture, and a mean averages it out.
"""

from collections import deque

import numpy as np

# Samples that may differ in a picture that counts as the same: a clock or a counter, drawn over a
# frozen picture, covers less. Of a real camera far more differ from frame to frame: with noise of
# 0.5 grey levels (the least that 8-bit cameras show in light) 87 % of raw pixels, 34 % after JPEG
# of quality 80 or 95 read at an eighth; with 0.25 levels, 20 %. See test_control_cameras.py.
MAX_CHANGED_SHARE = 0.05
# A driver that cycles through the same few buffers repeats one of the last distinct pictures.
PICTURES_REMEMBERED = 6
# Noise is clipped at black and white: such samples are the same in every picture.
_CLIPPED_LOW, _CLIPPED_HIGH = 2, 253
# With fewer samples than this between black and white, nothing can be said about noise.
_LEAST_USEFUL_SHARE = 0.05


class FreezeDetector:
    """Tracks for how long one camera has shown nothing new, by its own stamps.

    Stamps that go back neither count nor restart the count: a clock that jumps does not make a
    picture new.
    `timeout_ns`: a camera is frozen after stamps span this much without a changed picture; 0 turns
    the detector off, which a noise-free simulation of a still scene needs. The verdict clears
    itself with the first picture that differs. One thread at a time.
    """

    def __init__(self, timeout_ns: int):
        if timeout_ns < 0:
            raise ValueError(
                f'freeze_timeout_s is {timeout_ns / 1e9:g}; use 0 (off) or a time in seconds.')
        self._timeout_ns = timeout_ns
        self._pictures: deque[np.ndarray] = deque(maxlen=PICTURES_REMEMBERED)
        self._stamp_ns = self._unchanged_ns = 0

    def observe(self, stamp_ns: int, samples: np.ndarray) -> bool:
        """Take the samples [N, M, 3] uint8 of a frame; return whether the camera is frozen."""
        if not self._timeout_ns:
            return False
        known = any(is_same_picture(samples, picture) for picture in reversed(self._pictures))
        if not known:
            self._pictures.append(samples)
            self._unchanged_ns = 0
        else:
            self._unchanged_ns += max(0, stamp_ns - self._stamp_ns)
        self._stamp_ns = stamp_ns
        return self._unchanged_ns >= self._timeout_ns

    def follow(self, former: 'FreezeDetector') -> None:
        """Continue where another detector left off, with this one's timeout."""
        self._pictures = former._pictures.copy()
        self._stamp_ns, self._unchanged_ns = former._stamp_ns, former._unchanged_ns


def is_same_picture(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two sets of samples [N, M, 3] uint8 show one and the same picture."""
    differs = (first != second).any(axis=-1)
    changed = np.count_nonzero(differs)
    if changed > differs.size * MAX_CHANGED_SHARE:
        return False
    clipped = ((first <= _CLIPPED_LOW) | (first >= _CLIPPED_HIGH)).all(axis=-1) & ~differs
    useful = differs.size - np.count_nonzero(clipped)
    if useful < differs.size * _LEAST_USEFUL_SHARE:
        return True
    return changed <= useful * MAX_CHANGED_SHARE
