"""Writes pictures of an episode as a video that plays without extra software."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image


class OverlayVideo:
    """Writes pictures of one size as a video: `.mp4` for players, `.gif` or `.webp` for pages.

    MP4 is written as it comes; the other two are kept in memory until `close`. Use it in a
    `with` block, from one thread.
    """

    def __init__(self, path: Path | str, fps: float) -> None:
        self._path = Path(path)
        self._fps = fps
        self._size = None
        self._writer = None
        self._frames = []
        if self._path.suffix not in ('.mp4', '.gif', '.webp'):
            raise ValueError(f"A video is .mp4, .gif or .webp, not '{self._path.suffix}'.")

    def add(self, image: np.ndarray) -> None:
        """Append an [H, W, 3] uint8 RGB picture; a size other than the first's is refused."""
        image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]  # codecs want even
        size = image.shape[1::-1]
        if self._size is None:
            self._size = size
            self._open()
        if size != self._size:
            raise ValueError(f'The video has pictures of {self._size} pixels, not {size}.')
        if self._writer is not None:
            self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        else:
            self._frames.append(Image.fromarray(image))

    def close(self) -> None:
        """Finish the file. Without a picture there is none."""
        if self._writer is not None:
            self._writer.release()
        elif self._frames:
            self._write_page_video()
        self._writer, self._frames = None, []

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.suffix != '.mp4':
            return
        codec = cv2.VideoWriter_fourcc(*'mp4v')
        self._writer = cv2.VideoWriter(str(self._path), codec, self._fps, self._size)
        if not self._writer.isOpened():
            raise OSError(f'OpenCV cannot write {self._path}; name a .gif or .webp instead.')

    def _write_page_video(self) -> None:
        frames = self._frames
        if self._path.suffix == '.gif':
            # One palette for all: what does not move stays the same and costs no bytes.
            sample = np.vstack([np.asarray(frame) for frame in frames[:: len(frames) // 8 + 1]])
            palette = Image.fromarray(sample[::2, ::2]).quantize(128)
            frames = [frame.quantize(palette=palette, dither=0) for frame in frames]
        frames[0].save(
            self._path,
            save_all=True,
            append_images=frames[1:],
            duration=round(1000 / self._fps),
            loop=0,
            quality=75,
        )

    def __enter__(self) -> OverlayVideo:
        return self

    def __exit__(self, *_exception) -> None:
        self.close()
