"""Detects frozen cameras: stamps that advance while the picture stays the same.

Compared are samples of the decoded picture, so that what surrounds the pixels on the wire (stamps,
`frame_id`, padding, another compression) says nothing. Samples, not means: the noise of a sensor
is what tells a still scene from a still picture, and a mean takes it away.
"""

from collections import deque

import numpy as np

# Samples that may differ in a picture that counts as the same: a clock or a counter, drawn over a
# frozen picture, covers less. Of a real camera far more differ from frame to frame: with noise of
# 0.5 grey levels (the least that 8-bit cameras show in light) 87 % of raw pixels, 34 % after JPEG
# of quality 80 or 95 read at an eighth; with 0.25 levels, 20 %. See test_control_cameras.py.
MAX_CHANGED_SHARE = 0.05
# A driver that hands out the same few buffers in turn shows one of the last distinct pictures.
PICTURES_REMEMBERED = 6
# Black and white are where the noise is cut off: clipped samples are the same in every picture.
_CLIPPED_LOW, _CLIPPED_HIGH = 2, 253
# Fewer samples than that, between black and white, say nothing about noise.
_LEAST_USEFUL_SHARE = 0.05


class FreezeDetector:
    """Tells how long one camera has not shown anything new, in its own stamps.

    Stamps that go back do not count, nor do they start the count again: that a clock jumps makes
    no picture new.
    `timeout_ns`: stamps that span so much without a changed picture are a frozen camera; 0 turns
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
        """Go on where another left off, with the timeout of this one."""
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
