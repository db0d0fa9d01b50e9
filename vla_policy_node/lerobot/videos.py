"""Pictures in the videos of a dataset, and videos from pictures.

The episodes of a camera follow each other in one file. The picture of a row is the one whose time
differs by less than TOLERANCE_S from the episode's beginning plus the row's own time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vla_policy_node.checkpoints.reading import MB, foreign, regular_file
from vla_policy_node.lerobot.info import MOST_PX
from vla_policy_node.lerobot.libraries import video

TOLERANCE_S = 1e-4
_MOST_BYTES = 64 * 1024 * MB
_MOST_PIXELS = 1 << 25  # of one picture


def read_pictures(path: Path, times_s: Sequence[float]) -> Iterator[np.ndarray]:
    """Yield [H, W, 3] uint8 RGB for each of the ascending times in a file.

    ValueError with one sentence if there is no picture at one of them, or the file is damaged.
    """
    library = video()
    if not path.exists():
        raise ValueError(f'{path} is missing; download the dataset again, with all of its files.')
    regular_file(path, _MOST_BYTES)
    # By its form, not by what the file pretends to be: a list of other files is none.
    with foreign(path, 'is no MP4 video, or is damaged; download it again'):
        container = library.open(str(path.absolute()), format='mp4')
    with container:
        if not container.streams.video:
            raise ValueError(f'{path} holds no video; download it again.')
        stream = container.streams.video[0]
        _check_size(path, stream.codec_context.width, stream.codec_context.height)
        stream.thread_type = 'AUTO'
        wanted = iter(times_s)
        time_s = next(wanted, None)
        if time_s is None:
            return
        with foreign(path, 'cannot be searched; download it again'):
            container.seek(max(0, round(time_s / stream.time_base) - 1), stream=stream)
        frames = container.decode(stream)
        while time_s is not None:
            with foreign(path, f'is damaged near {time_s:.2f} s; download it again'):
                frame = next(frames, None)
            at_s = None if frame is None or frame.pts is None else float(
                frame.pts * stream.time_base)
            if frame is None or (at_s is not None and at_s >= time_s + TOLERANCE_S):
                raise ValueError(
                    f'{path} has no picture at {time_s:.4f} s, where a row needs one (within '
                    f'{TOLERANCE_S * 1e3:g} ms); take the original file, or record it again.')
            if at_s is not None and abs(at_s - time_s) < TOLERANCE_S:
                _check_size(path, frame.width, frame.height)
                with foreign(path, f'is damaged near {time_s:.2f} s; download it again'):
                    picture = frame.to_ndarray(format='rgb24')
                yield picture
                time_s = next(wanted, None)


def _check_size(path: Path, width: int, height: int) -> None:
    if not (0 < width <= MOST_PX and 0 < height <= MOST_PX and width * height <= _MOST_PIXELS):
        raise ValueError(f'{path} has pictures of {width} x {height}; at most '
                         f'{_MOST_PIXELS:,} pixels are decoded.')
