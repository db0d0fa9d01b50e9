"""Video and stills of what the policies looked at and which tokens they kept."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from vla_policy_node.drawing.overlay import draw_overlay
from vla_policy_node.replay.bag import Bag
from vla_policy_node.replay.compare import PairedInference
from vla_policy_node.replay.stamps import samples
from vla_policy_node.replay.topics import BagTopics
from vla_policy_node.replay.trace import Trace, TracedInference
from vla_policy_node.wire.cdr import read_compressed_image, read_image, stamp_of
from vla_policy_node.wire.images import decode_compressed, decode_image

# Of a long bag the video shows every n-th inference.
MOST_VIDEO_FRAMES = 3000
_STILL_WIDTH_PX = 1600
Images = Mapping[str, np.ndarray]


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
    """Return the line under a picture; without wall times, so that it is reproducible."""
    apart = ''
    if pair is not None:
        apart = (f'differ by {pair.translation_m * 1e3:.1f} mm, '
                 f'{pair.rotation_rad * 1e3:.1f} mrad   ')
    return f'{seconds:.2f} s   {apart}"{inference.instruction}"'


def write_still(path: Path, picture: np.ndarray, policies: int) -> None:
    """Write a picture of `draw_moment` as JPEG, with the policies side by side."""
    picture = np.hstack(np.split(picture, policies))
    if picture.shape[1] > _STILL_WIDTH_PX:
        factor = _STILL_WIDTH_PX / picture.shape[1]
        picture = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode('.jpg', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR),
                              [cv2.IMWRITE_JPEG_QUALITY, 82])
    if not done:
        raise OSError(f'OpenCV cannot write {path.name}.')
    path.write_bytes(data.tobytes())
