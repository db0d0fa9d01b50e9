"""Pictures in the videos of a dataset, and videos from pictures.

The episodes of a camera follow each other in one file. The picture of a row is the one whose time
differs by less than TOLERANCE_S from the episode's beginning plus the row's own time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from vla_policy_node.checkpoints.reading import MB, foreign, regular_file
from vla_policy_node.common.priority import same_priority
from vla_policy_node.common.scoped import environment
from vla_policy_node.lerobot.info import MOST_PX, Feature
from vla_policy_node.lerobot.libraries import video

TOLERANCE_S = 1e-4
_MOST_BYTES = 64 * 1024 * MB
_MOST_PIXELS = 1 << 25  # of one picture
_LEAST_PX = 64  # of a side that AV1 encodes


def read_pictures(path: Path, times_s: Sequence[float]) -> Iterator[np.ndarray]:
    """Yield [H, W, 3] uint8 RGB for each of the ascending times in a file.

    ValueError with one sentence if there is no picture at one of them, or the file is damaged.
    """
    library = video()
    if not os.path.lexists(path):
        raise ValueError(f'{path} is missing; download the dataset again, with all of its files.')
    regular_file(path, _MOST_BYTES)
    # By its form, not by what the file pretends to be: a list of other files is none.
    with foreign(path, 'is no MP4 video, or is damaged; download it again'):
        container = library.open(str(path.absolute()), format='mp4')
    with container:
        if not container.streams.video:
            raise ValueError(f'{path} holds no video; download it again.')
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ValueError(f'{path} is of a codec that this PyAV does not decode; download it '
                             'again, or encode it as AV1 or H.264.')
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


@dataclass(frozen=True)
class Codec:
    """An encoder, and how LeRobot names and sets what it makes."""

    encoder: str
    name: str
    options: Mapping[str, int]


# LeRobot's own settings for AV1: every other picture can be found without its neighbours.
_CODECS = (
    Codec('libsvtav1', 'av1', {'g': 2, 'crf': 30, 'preset': 12}),
    Codec('libx264', 'h264', {'g': 2, 'crf': 23, 'bf': 0}))
_PIXELS = 'yuv420p'
_QUIET = {'SVT_LOG': '1'}  # errors only; otherwise the encoder tells of each of its settings


def codec() -> Codec:
    """Return the first that this PyAV can encode; ValueError if it has none of them."""
    library = video()
    for one in _CODECS:
        if one.encoder in library.codecs_available:
            return one
    raise ValueError('This PyAV encodes neither AV1 nor H.264; `pip install av`, or write '
                     'pictures without loss by --images.')


def describe_video(feature: Feature, fps: int) -> dict[str, object]:
    """Return what info.json says of the videos of a camera."""
    height, width, channels = feature.shape
    chosen = codec()
    return {
        'video.height': height, 'video.width': width, 'video.codec': chosen.name,
        'video.pix_fmt': _PIXELS, 'video.fps': fps, 'video.channels': channels,
        'has_audio': False, **{f'video.{name}': value for name, value in chosen.options.items()},
        'video.video_backend': 'pyav', 'is_depth_map': False}


def check_encodable(feature: Feature) -> None:
    """Raise ValueError with one sentence for a size of pictures that cannot be encoded."""
    height, width, _ = feature.shape
    if height % 2 or width % 2 or min(height, width) < _LEAST_PX:
        raise ValueError(
            f'{feature.key} has pictures of {width} x {height}, and videos need even sides of at '
            f'least {_LEAST_PX}; write pictures without loss by --images.')


class VideoWriter:
    """Encodes pictures of one camera, one after the other. A context manager."""

    def __init__(self, path: Path, fps: int, feature: Feature):
        """ValueError with one sentence for a size that cannot be encoded."""
        check_encodable(feature)
        height, width, _ = feature.shape
        self._library, chosen = video(), codec()
        self._container = self._library.open(str(path), 'w', format='mp4')
        self._stream = self._container.add_stream(
            chosen.encoder, fps,
            options={name: str(value) for name, value in chosen.options.items()})
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = _PIXELS
        with environment(**_QUIET), same_priority():
            self._stream.codec_context.open()
        self._count = 0

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self._container.mux(self._stream.encode())
        self._container.close()

    def add(self, picture: np.ndarray) -> None:
        """Encode [H, W, 3] uint8 RGB."""
        frame = self._library.VideoFrame.from_ndarray(picture, 'rgb24')
        frame.pts = self._count
        self._count += 1
        self._container.mux(self._stream.encode(frame))


def join_videos(parts: Sequence[Path], starts_s: Sequence[Fraction], path: Path) -> None:
    """Put videos of one encoder behind each other without encoding them again.

    starts_s: when each begins in the whole.
    """
    library = video()
    with library.open(str(path), 'w', format='mp4', options={'movflags': 'faststart'}) as joined:
        stream = None
        for part, start_s in zip(parts, starts_s, strict=True):
            with library.open(str(part), format='mp4') as single:
                source = single.streams.video[0]
                if stream is None:
                    stream = joined.add_stream_from_template(source, opaque=True)
                    stream.time_base = source.time_base
                shift = round(start_s / source.time_base)
                for packet in single.demux(source):
                    if packet.dts is not None:
                        packet.pts += shift
                        packet.dts += shift
                        packet.stream = stream
                        joined.mux(packet)
