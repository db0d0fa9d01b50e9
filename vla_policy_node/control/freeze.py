"""A camera that keeps stamping the same picture is as blind as one that has stopped."""

import hashlib
import threading

import numpy as np

from vla_policy_node.control.hold import Hold, HoldReason


def picture_digest(data: bytes | memoryview | np.ndarray) -> bytes:
    """Return 8 bytes that change when the picture does.

    Give it the bytes as they were received (compressed or not). Worker thread: it reads the whole
    picture, a few ms at 640x480, with the interpreter lock released.
    """
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data).data
    return hashlib.blake2b(data, digest_size=8).digest()


class FreezeDetector:
    """Counts identical consecutive pictures per camera.

    `max_identical` is how many pictures in a row may be equal to the one before; one more is a
    hold. 0 turns the detector off, which a noise-free simulation of a still scene needs. The
    verdict clears itself with the first picture that differs.
    """

    def __init__(self, max_identical: int):
        if max_identical < 0:
            raise ValueError(
                f'max_identical is {max_identical}; use 0 (off) or the number of repeats to allow.'
            )
        self._max_identical = max_identical
        self._lock = threading.Lock()
        self._digests: dict[str, bytes] = {}
        self._repeats: dict[str, int] = {}

    def observe(self, camera: str, picture: bytes | memoryview | np.ndarray) -> None:
        """Record the picture of one accepted pair, as it was received (worker thread)."""
        if not self._max_identical:
            return
        digest = picture_digest(picture)
        with self._lock:
            same = self._digests.get(camera) == digest
            self._digests[camera] = digest
            self._repeats[camera] = self._repeats.get(camera, 0) + 1 if same else 0

    def health(self) -> Hold | None:
        """Return a hold that names the frozen camera, or None (any thread)."""
        if not self._max_identical:
            return None
        with self._lock:
            for camera, repeats in self._repeats.items():
                if repeats > self._max_identical:
                    return Hold(HoldReason.INPUT_FROZEN, camera)
        return None

    def reset(self) -> None:
        """Forget all pictures (any thread)."""
        with self._lock:
            self._digests.clear()
            self._repeats.clear()
