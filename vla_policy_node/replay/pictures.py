"""Video and stills of what the policies looked at and which tokens they kept."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from vla_policy_node.drawing.overlay import draw_overlay, enlarged, highlight, put_text
from vla_policy_node.replay.bag import Bag
from vla_policy_node.replay.compare import PairedInference
from vla_policy_node.replay.stamps import samples
from vla_policy_node.replay.topics import BagTopics
from vla_policy_node.replay.trace import Trace, TracedInference
from vla_policy_node.wire.cdr import read_compressed_image, read_image, stamp_of
from vla_policy_node.wire.images import decode_compressed, decode_image

# Of a long bag the video shows every n-th inference.
MOST_VIDEO_FRAMES = 3000
_VIEW_WIDTH_PX = 960  # of one policy's cameras side by side
_LABEL_PX = 30  # height of capital letters above a view in a file
Images = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ShownMoment:
    """A moment on the page; pictures: for each policy the text above, a JPEG, what is seen."""

    rank: int
    pictures: tuple[tuple[str, bytes, str], ...]
    caption: str


def moments(
    bag: Bag, topics: BagTopics, shown: Sequence[Sequence[TracedInference]]
) -> Iterator[tuple[int, Images]]:
    """Yield index and decoded pictures of what is shown together, in the order of the bag.

    shown: the inferences of each moment. If two looked at different pictures of one camera, that
    of the first one counts.
    Reads the bag once more and holds no more pictures than one observation needs.
    """
    names = topics.streams.cameras
    cameras = {topic: stream for topic, stream in topics.inputs.items() if stream in names}
    wanted: dict[str, dict[int, list[int]]] = {camera: {} for camera in names}
    counts = []
    for index, inferences in enumerate(shown):
        stamps_ns = dict(ChainMap(*(dict(i.camera_stamps_ns) for i in inferences)))
        counts.append(len(stamps_ns))
        for camera, stamp_ns in stamps_ns.items():
            wanted[camera].setdefault(stamp_ns, []).append(index)
    found: dict[int, dict[str, np.ndarray]] = {}
    only_cameras = replace(topics, inputs=cameras)
    for topic, _, raw in samples(bag, only_cameras):
        camera = cameras[topic]
        try:
            indices = wanted[camera].pop(stamp_of(raw), ())
        except ValueError:
            continue
        for index in indices:
            images = found.setdefault(index, {})
            images[camera] = _decode(raw, topics.streams.is_compressed(camera))
            if len(images) == counts[index]:
                yield index, found.pop(index)


def _decode(raw: bytes, compressed: bool) -> np.ndarray:
    if compressed:
        return decode_compressed(read_compressed_image(raw))
    return decode_image(read_image(raw))


def draw_moment(
    images: Images, traces: Sequence[Trace], inferences: Sequence[TracedInference], remark: str
) -> np.ndarray:
    """Return the cameras side by side, one row per policy, with the tokens that it kept."""
    drawn = []
    for trace, inference in zip(traces, inferences, strict=True):
        pictures = []
        for camera, selection in trace.selections(inference).items():
            kept = selection.kept
            lines = [f'{trace.label}: {int(kept.sum())} of {kept.size} tokens of {camera}', remark]
            pictures.append(draw_overlay(
                images[camera], kept, selection.crop, selection.camera_transform, lines))
        drawn.append(pictures)
    # All of one height, though one policy may look at a larger camera than the other.
    height = max(p.shape[0] for pictures in drawn for p in pictures)
    rows = [np.hstack([_padded(p, height) for p in pictures]) for pictures in drawn]
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])


def _padded(picture: np.ndarray, height: int) -> np.ndarray:
    return np.pad(picture, ((0, height - picture.shape[0]), (0, 0), (0, 0)))


def describe(seconds: float, inference: TracedInference, pair: PairedInference | None) -> str:
    """Return the line under a frame of the video; without wall times, so it is reproducible."""
    apart = ''
    if pair is not None:
        apart = (f'differ by {pair.translation_m * 1e3:.1f} mm, '
                 f'{pair.rotation_rad * 1e3:.1f} mrad   ')
    return f'{seconds:.2f} s   {apart}"{inference.instruction}"'


def show_moment(
    images: Images, traces: Sequence[Trace], pair: PairedInference, rank: int, seconds: float,
    path: Path,
) -> ShownMoment:
    """Return a moment in which two policies differ, for the page; write it to a JPEG too."""
    views, pictures = [], []
    for trace, inference in zip(traces, (pair.first, pair.second), strict=True):
        view = _view(images, trace, inference)
        counts = ', '.join(
            f'{camera.replace("_", " ")} {int(s.kept.sum())} of {s.kept.size}'
            for camera, s in trace.selections(inference).items())
        views.append(_labelled(view, f'{trace.label}: {counts}'))
        pictures.append((
            f'{trace.label}: tokens of {counts}', _jpeg(view, path.name),
            f'What the cameras saw at {seconds:.2f} s, with the tokens that {trace.label} kept '
            'clear and all others dimmed.'))
    height = max(view.shape[0] for view in views)
    path.write_bytes(_jpeg(np.hstack([_padded(view, height) for view in views]), path.name))
    return ShownMoment(rank, tuple(pictures), _caption(traces, pair, rank, seconds))


def _caption(traces: Sequence[Trace], pair: PairedInference, rank: int, seconds: float) -> str:
    openings = [trace.metric(inference.actions)[1] > 0.5
                for trace, inference in zip(traces, (pair.first, pair.second), strict=True)]
    length = min(map(len, openings))
    apart = int((openings[0][:length] != openings[1][:length]).sum())
    return (f'{rank}. At {seconds:.2f} s, "{pair.first.instruction}": the chunks are '
            f'{pair.distance:.3f} action units apart, at most {pair.translation_m * 1e3:.1f} mm '
            f'and {pair.rotation_rad * 1e3:.1f} mrad; the gripper differs in {apart} of {length} '
            'elements.')


def _view(images: Images, trace: Trace, inference: TracedInference) -> np.ndarray:
    """Return a policy's cameras side by side, with the tokens that it kept, without any text."""
    parts = [highlight(enlarged(images[camera]), s.kept, s.crop, s.camera_transform)
             for camera, s in trace.selections(inference).items()]
    height = max(part.shape[0] for part in parts)
    view = np.hstack([_padded(part, height) for part in parts])
    if view.shape[1] > _VIEW_WIDTH_PX:
        factor = _VIEW_WIDTH_PX / view.shape[1]
        view = cv2.resize(view, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return view


def _labelled(view: np.ndarray, text: str) -> np.ndarray:
    band = np.full((2 * _LABEL_PX, view.shape[1], 3), 255, np.uint8)
    put_text(band, text, _LABEL_PX // 2, round(1.5 * _LABEL_PX), _LABEL_PX, (0, 0, 0),
             view.shape[1] - _LABEL_PX)
    return np.vstack([band, view])


def _jpeg(picture: np.ndarray, name: str) -> bytes:
    done, data = cv2.imencode('.jpg', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR),
                              [cv2.IMWRITE_JPEG_QUALITY, 82])
    if not done:
        raise OSError(f'OpenCV cannot write {name}.')
    return data.tobytes()
