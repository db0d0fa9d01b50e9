"""Demonstrations on disk: one file each, read frame by frame.

`demonstrations.json`: `format` (1), `suite`, `layout`, `cameras` (names), `image_px`, `labels_px`,
`frame_every`, `noise`, `retarget`, `versions`. Those that were imported have no `noise` and so on
but `fps`; `state` and `actions`, the names of the numbers; `pictures`, 'png' where they came
without loss; and `after_end` 'hold' where the last action goes on after the end. `labels_px` 0:
nobody labelled them, so that they have no objects and no target.

`dataset_statistics.json`: see `dataset_statistics`.

`episode-<seed, 7 digits>.safetensors`, for T control steps at 20 Hz of which F were rendered, in a
scene with O objects:

| tensor | | |
|---|---|---|
| `proprio` | [T, 8] float32 | before each action: position (m), axis-angle (rad), fingers (m) |
| `action` | [T, 7] float32 | what the expert wanted: LIBERO's units, gripper 1 open, 0 closed |
| `executed` | [T, 7] float32 | what was done: the same with noise and pushes |
| `frame_step` | [F] int32 | the control step that each frame was taken before, ascending |
| `object_position` | [F, O, 3] float32 | m, in the world |
| `<camera>.jpeg` | [bytes] uint8 | F upright RGB images, JPEG of quality 95, one after the other |
| `<camera>.jpeg_offset` | [F + 1] int64 | where each begins, and the end of the last |
| `<camera>.png` | [bytes] uint8 | instead of them, with `png_offset`: the same without loss |
| `<camera>.segments` | [bytes] uint8 | F label images, PNG: 0 or 1 + index into `segments` |
| `<camera>.segments_offset` | [F + 1] int64 | as above |
| `asked` | [T] int32 | where the instruction changes: index into `instructions` of the header |

Its header holds strings: `suite`, `task_id`, `layout`, `seed`, `noise`, `success`, `instruction`,
`target`, and as JSON lists `objects` and `segments`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vla_policy_node.checkpoints.reading import read_json
from vla_policy_node.outputs.files import allow_umask, draft_name, write_text
from vla_policy_node.training.stored_pictures import (
    JPEG,
    LABELS,
    PNG,
    PictureError,
    decoded,
    encode,
    labels,
    packed,
)

FORMAT = 1
DOCUMENT = 'demonstrations.json'
SCATTERED = 'scattered'  # layout of still scenes, whose actions mean nothing
HOLD = 'hold'
# Of an action in the policy's convention.
GRIPPER = 6


@dataclass(frozen=True)
class Demonstration:
    """One recorded episode, as the module's table says; images and labels still as pixels.

    images, labels: per camera, F times [H, W, 3] uint8 RGB and [h, w] uint8.
    """

    proprio: np.ndarray
    action: np.ndarray
    executed: np.ndarray
    frame_step: Sequence[int]
    object_position: np.ndarray
    images: Mapping[str, Sequence[np.ndarray]]
    labels: Mapping[str, Sequence[np.ndarray]]
    suite: str
    task_id: int
    layout: str
    seed: int
    noise: float
    success: bool
    instruction: str
    target: str
    objects: Sequence[str]
    segments: Sequence[str]


@dataclass(frozen=True)
class Frame:
    """What was seen before one control step, what it was about, and what the expert then did.

    images: per camera [H, W, 3] uint8 RGB. labels: per camera [h, w] uint8, 0 or 1 + index into
    `segments`, no cameras if nobody labelled anything: then there are no objects, and no target.
    proprio: [8]. actions: [K, 7], the policy's convention; has_actions is False where they mean
    nothing. suite: of the task. objects: names; object_position: [O, 3] m. target: one
    of `objects`.
    """

    images: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    proprio: np.ndarray
    actions: np.ndarray
    instruction: str
    target: str
    objects: tuple[str, ...]
    object_position: np.ndarray
    segments: tuple[str, ...]
    suite: str
    has_actions: bool = True


def episode_path(directory: Path, seed: int) -> Path:
    """Return where the demonstration of a layout seed is kept."""
    return directory / f'episode-{seed:07d}.safetensors'


def write_demonstration(directory: Path, demonstration: Demonstration) -> Path:
    """Write one demonstration, whole or not at all; return its path.

    ValueError with one sentence if the disk is full or the folder gone.
    """
    d = demonstration
    tensors = {
        'proprio': np.asarray(d.proprio, np.float32),
        'action': np.asarray(d.action, np.float32),
        'executed': np.asarray(d.executed, np.float32),
        'frame_step': np.asarray(d.frame_step, np.int32),
        'object_position': np.asarray(d.object_position, np.float32),
    }
    for camera in d.images:
        tensors |= packed(f'{camera}.{JPEG}', [encode(image) for image in d.images[camera]])
        tensors |= packed(f'{camera}.{LABELS}', [
            cv2.imencode('.png', image)[1].tobytes() for image in d.labels[camera]])
    header = {
        'suite': d.suite,
        'task_id': str(d.task_id),
        'layout': d.layout,
        'seed': str(d.seed),
        'noise': str(d.noise),
        'success': 'true' if d.success else 'false',
        'instruction': d.instruction,
        'target': d.target,
        'objects': json.dumps(list(d.objects)),
        'segments': json.dumps(list(d.segments)),
    }
    return write_episode(directory, d.seed, tensors, header)


def write_episode(
    directory: Path, seed: int, tensors: Mapping[str, np.ndarray], header: Mapping[str, str]
) -> Path:
    """Write what the module's table says, whole or not at all; return its path.

    ValueError with one sentence if the disk is full or the folder gone.
    """
    path = episode_path(directory, seed)
    unfinished = path.with_suffix(f'.{os.getpid()}.tmp')
    try:
        # In the order of the memory, whatever it is, the values would be written.
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
                  unfinished, {**header})
    except (SafetensorError, OSError) as error:
        raise ValueError(f'{directory} cannot be written to: {error}.') from error
    allow_umask(unfinished)
    unfinished.replace(path)
    return path


class Demonstrations:
    """Frames of a folder of demonstrations, in any order, each read from disk when asked for.

    Holds no open file: give it to as many processes and threads as you like.

    has_labels: whether there are label images, and objects that instructions are about.
    """

    def __init__(self, directory: Path, chunk_length: int = 8) -> None:
        """Read the index; ValueError with one sentence if the folder cannot be used."""
        self.directory = Path(directory)
        self.document = read_document(self.directory)
        self.episodes = sorted(self.directory.glob('episode-*.safetensors'))
        if not self.episodes:
            raise ValueError(f'{directory} holds no demonstrations yet; run vla demos first.')
        self._chunk_length = chunk_length
        self._pictures = PNG if self.document.get('pictures') == PNG else JPEG
        self._holds = self.document.get('after_end') == HOLD
        self.has_labels = self.document.get('labels_px') != 0
        steps = [self.read(episode, 'frame_step') for episode in range(len(self.episodes))]
        # [frames, 2]: episode, and frame in the episode.
        self.frames = np.array([
            (episode, frame) for episode, at in enumerate(steps) for frame in range(len(at))
        ])

    def __len__(self) -> int:
        """Return how many frames there are."""
        return len(self.frames)

    def read(self, episode: int, tensor: str) -> np.ndarray:
        """Return one whole tensor of an episode, e.g. all its actions."""
        with _opened(self.episodes[episode]) as file:
            return file.get_tensor(tensor)

    def header(self, episode: int) -> dict[str, str]:
        """Return the header of an episode."""
        with _opened(self.episodes[episode]) as file:
            return file.metadata()

    def picture(self, index: int, camera: str) -> np.ndarray:
        """Return what a camera saw in a frame."""
        episode, frame = self.frames[index]
        with _opened(self.episodes[episode]) as file:
            return decoded(file, camera, frame, self._pictures)

    def instructions(self, episode: int) -> list[str]:
        """Return what was asked for in each control step."""
        with _opened(self.episodes[episode]) as file:
            steps = file.get_slice('action').get_shape()[0]
            return [_instruction(file, file.metadata(), step) for step in range(steps)]

    def load(self, index: int, pictures: bool = True) -> Frame:
        """Return one frame; ValueError with one sentence if its file is damaged.

        pictures: False leaves images and labels out.
        """
        episode, frame = self.frames[index]
        with _opened(self.episodes[episode]) as file:
            header = file.metadata()
            step = int(file.get_slice('frame_step')[frame:frame + 1][0])
            cameras = self.document['cameras'] if pictures else ()
            actions = _rows(file, 'action', step, self._chunk_length)
            return Frame(
                images={camera: decoded(file, camera, frame, self._pictures)
                        for camera in cameras},
                labels={camera: labels(file, camera, frame) for camera in cameras
                        if self.has_labels},
                proprio=file.get_slice('proprio')[step:step + 1][0],
                actions=pad_chunk(actions, self._chunk_length, self._holds),
                instruction=_instruction(file, header, step),
                target=header['target'],
                objects=tuple(json.loads(header['objects'])),
                object_position=file.get_slice('object_position')[frame:frame + 1][0],
                segments=tuple(json.loads(header['segments'])),
                suite=header['suite'],
                has_actions=header['layout'] != SCATTERED,
            )


def pad_chunk(actions: np.ndarray, length: int, holds: bool = False) -> np.ndarray:
    """[n, 7], n >= 1 -> [length, 7]: after the end the hand stands still, the gripper stays.

    holds: [n, A] of any kind, of which the last one goes on.
    """
    still = actions[-1:].copy()
    if not holds:
        still[0, :GRIPPER] = 0
    return np.concatenate([actions, np.repeat(still, length - len(actions), axis=0)])


def write_document(directory: Path, document: Mapping) -> None:
    """Say what the folder, new or empty, holds; ValueError if it already holds something else."""
    path = directory / DOCUMENT
    if path.is_file():
        present = read_document(directory)
        for name in document:
            if name != 'versions' and present.get(name) != document[name]:
                raise ValueError(
                    f'{directory} holds demonstrations with {name} {present.get(name)!r}, not '
                    f'{document[name]!r}; choose the same options or another folder.')
        return
    others = {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()
    if others - {draft_name(DOCUMENT)}:
        raise ValueError(
            f'{directory} holds other files, such as {min(others)}, and no {DOCUMENT}; choose a '
            'new folder.')
    directory.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(document, indent=2) + '\n')


def read_document(directory: Path) -> dict:
    """Return what the folder says it holds; ValueError if it is none of ours."""
    path = directory / DOCUMENT
    try:
        document = read_json(path)
    except ValueError as error:
        raise ValueError(
            f'{directory} is no folder of demonstrations; make one with vla demos.') from error
    if document.get('format') != FORMAT:
        raise ValueError(
            f'{path} has format {document.get("format")}, this version reads {FORMAT}; record '
            'the demonstrations again.')
    return document


@contextmanager
def _opened(path: Path) -> Iterator:
    try:
        with safe_open(path, 'numpy') as file:
            yield file
    except (SafetensorError, OSError, PictureError) as error:
        raise ValueError(
            f'{path} is damaged or was cut short; delete it and run the same vla demos again.'
        ) from error


def _instruction(file, header: Mapping[str, str], step: int) -> str:
    if 'instructions' not in header:
        return header['instruction']
    return json.loads(header['instructions'])[int(file.get_slice('asked')[step:step + 1][0])]


def _rows(file, name: str, start: int, count: int) -> np.ndarray:
    """Rows from `start`, at most `count`; safetensors refuses a slice beyond the end."""
    rows = file.get_slice(name)
    return rows[start:min(start + count, rows.get_shape()[0])]
