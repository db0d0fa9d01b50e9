"""`meta/info.json` of a LeRobot dataset: what its rows hold, and where its files are."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.reading import plain, read_json, shown
from vla_policy_node.outputs.listing import is_inside

INFO = 'meta/info.json'
VERSION = 'v3.0'
DATA_PATH = 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
VIDEO_PATH = 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4'
EPISODES_PATH = 'meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
TASKS_PATH = 'meta/tasks.parquet'
STATS_PATH = 'meta/stats.json'
CHUNKS_SIZE = 1000
DATA_MB, VIDEO_MB = 100, 200
STATE, ACTION, CAMERA = 'observation.state', 'action', 'observation.images.'
# Columns that every dataset has, of one number each.
AUTOMATIC = {
    'timestamp': 'float32', 'frame_index': 'int64', 'episode_index': 'int64', 'index': 'int64',
    'task_index': 'int64'}

MOST_EPISODES, MOST_FRAMES = 10**6, 10**9
MOST_PX = 8192  # of a side of a picture
_MOST_FEATURES, _MOST_NUMBERS = 256, 1 << 16
_LONGEST_PATH = 200
_PICTURES = ('image', 'video')
DEPTH = 'depth'  # what such a feature of distances is taken for
_PLACE = re.compile(r'\{(chunk_index|file_index|video_key)(?::0?(\d{1,2})d)?\}')


@dataclass(frozen=True)
class Feature:
    """What one column holds. shape: of a row; names: of its numbers, none if nobody says."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()

    @property
    def is_camera(self) -> bool:
        """Whether it is pictures."""
        return self.dtype in _PICTURES

    @property
    def is_video(self) -> bool:
        """Whether its pictures lie in a video instead of in the table."""
        return self.dtype == 'video'

    @property
    def size(self) -> int:
        """How many numbers a row has."""
        return math.prod(self.shape)

    @property
    def camera(self) -> str:
        """How its camera is called: the last part of the key."""
        return self.key.removeprefix(CAMERA)


@dataclass(frozen=True)
class DatasetInfo:
    """The part of `meta/info.json` that reading needs."""

    folder: Path
    fps: float
    features: Mapping[str, Feature]
    episodes: int
    frames: int
    data_path: str
    video_path: str
    robot: str

    @property
    def cameras(self) -> dict[str, Feature]:
        """Cameras by their keys."""
        return {key: feature for key, feature in self.features.items() if feature.is_camera}

    def data_file(self, chunk: int, file: int) -> Path:
        """Return where rows lie."""
        return self._place(self.data_path, '', chunk, file)

    def video_file(self, key: str, chunk: int, file: int) -> Path:
        """Return where the pictures of a camera lie."""
        return self._place(self.video_path, key, chunk, file)

    def _place(self, template: str, key: str, chunk: int, file: int) -> Path:
        name = fill(template, key, chunk, file)
        if not is_inside(name):
            raise ValueError(f'{self.folder / INFO} puts files at {plain(name)}, which is not '
                             'inside of the dataset; take the original file.')
        return self.folder / name


def fill(template: str, key: str, chunk: int, file: int) -> str:
    """Put a camera and two numbers into a template of paths, as `str.format` would."""
    values: dict[str, Any] = {'video_key': key, 'chunk_index': chunk, 'file_index': file}
    return _PLACE.sub(
        lambda found: f'{values[found[1]]:0{found[2]}d}' if found[2] else str(values[found[1]]),
        template)


def read_info(folder: Path) -> DatasetInfo:
    """Read and check it; ValueError with one sentence for what is no dataset of this version."""
    path = folder / INFO
    if not folder.exists():
        raise ValueError(
            f"There is no folder '{folder}'. If that is a name at the hub, download it first: "
            f'`hf download --repo-type dataset {plain(folder)} --local-dir FOLDER`.')
    if not os.path.lexists(path):
        raise ValueError(
            f'{folder} has no {INFO}, so it is no whole dataset of LeRobot; name the folder that '
            'holds meta/, data/ and videos/.')
    document = read_json(path)
    entries = Entries(document, str(path))
    version = document.get('codebase_version')
    if version != VERSION:
        raise ValueError(_other_version(folder, version))
    for key in ('features', 'total_episodes', 'total_frames'):
        if key not in entries:
            raise ValueError(f'{path} has no entry {key!r}; take the original file.')
    features = entries.inside('features')
    names = features.names()
    if len(names) > _MOST_FEATURES:
        raise ValueError(f'{path} has {len(names)} features; {_MOST_FEATURES} are read at most.')
    if strange := [name for name in names if not name.isprintable()]:
        raise ValueError(f'{path} has the feature {shown(strange[0])}, whose name cannot be '
                         'printed; take the original file.')
    read = {name: _feature(features.inside(name), name) for name in names}
    for name, dtype in AUTOMATIC.items():
        if name not in read or read[name].size != 1:
            raise ValueError(f'{path} has no feature {name!r} of one number ({dtype}), as every '
                             'dataset of LeRobot has; take the original file.')
    fps = document.get('fps')
    if type(fps) not in (int, float) or not 0.01 <= fps <= 10_000:
        raise ValueError(f'{path}: fps must be a number of rows per second, not {shown(fps)}.')
    return DatasetInfo(
        folder=folder, fps=fps, features=read,
        episodes=entries.integer('total_episodes', 0, MOST_EPISODES),
        frames=entries.integer('total_frames', 0, MOST_FRAMES),
        data_path=_template(path, document, 'data_path', DATA_PATH),
        video_path=_template(path, document, 'video_path', VIDEO_PATH),
        robot=str(document.get('robot_type') or '')[:200])


def _feature(entry: Entries, key: str) -> Feature:
    dtype, shape = entry.value('dtype', None), entry.value('shape', None)
    if not isinstance(dtype, str):
        raise entry.error('dtype', 'the name of a type', dtype)
    if not isinstance(shape, list) or not 1 <= len(shape) <= 4 or not all(
            type(side) is int and 0 < side <= _MOST_NUMBERS for side in shape):
        raise entry.error('shape', 'a list of one to four sizes', shape)
    if dtype in _PICTURES and _is_depth(entry, shape):
        dtype = DEPTH
    feature = Feature(key, dtype, tuple(shape), _names(entry.value('names', None)))
    if feature.is_camera or dtype == DEPTH:
        if max(shape) > MOST_PX:
            raise entry.error('shape', f'pictures of {MOST_PX} pixels a side at most', shape)
    elif feature.size > _MOST_NUMBERS:
        raise entry.error('shape', f'{_MOST_NUMBERS} numbers a row at most', shape)
    return feature


def _is_depth(entry: Entries, shape: list[int]) -> bool:
    """Whether pictures are no colours but distances, which no policy here looks at."""
    said = entry.value('info', None)
    marked = isinstance(said, Mapping) and any(
        said.get(name) is True for name in ('is_depth_map', 'video.is_depth_map'))
    return marked or 3 not in (shape[0], shape[-1])


def _names(names: object) -> tuple[str, ...]:
    """Read names of numbers: a list, lists in an object as older recorders wrote them, or places.
    """
    if isinstance(names, Mapping) and [*names.values()] == [*range(len(names))]:
        names = [*names]
    if isinstance(names, Mapping):
        lists = [part for part in names.values() if isinstance(part, list)]
        names = [name for part in lists for name in part] if len(lists) == len(names) else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(name[:200] for name in names)


def _template(path: Path, document: Mapping, key: str, usual: str) -> str:
    template = document.get(key) or usual  # a dataset without videos has null
    if not isinstance(template, str) or len(template) > _LONGEST_PATH or re.search(
            r'[{}]', _PLACE.sub('', template)):
        raise ValueError(f'{path}: {key} must be like {usual!r}, not {shown(template)}.')
    return template


def _other_version(folder: Path, version: object) -> str:
    if isinstance(version, str) and re.fullmatch(r'v[12]\.\d', version):
        return (f'{folder} is a dataset of LeRobot {version}, and {VERSION} is read; convert it '
                'with LeRobot: `python -m lerobot.scripts.convert_dataset_v21_to_v30 '
                f'--repo-id=OWNER/NAME --root={folder} --push-to-hub=false`.')
    return (f'{folder / INFO} says codebase_version {shown(version)}, and {VERSION} is read; '
            'take a dataset of that version.')
