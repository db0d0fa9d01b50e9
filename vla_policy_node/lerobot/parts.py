"""Episodes of a dataset that is being written, each whole or not there, in a folder of their own.

An episode is `episode-<number>.parquet` with its rows and, lossless, its pictures; a video for
each camera otherwise; and `episode-<number>.npz`, written last, with its statistics and tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vla_policy_node.checkpoints.reading import plain
from vla_policy_node.lerobot.info import Feature
from vla_policy_node.lerobot.libraries import arrow, parquet
from vla_policy_node.lerobot.moments import describe, describe_pictures, sampled, thinned
from vla_policy_node.lerobot.videos import VideoWriter
from vla_policy_node.outputs.files import draft

_MOST_PICTURES_BYTES = 4 << 30  # of an episode without videos, which is in memory as it is written
FINISHED = 'episode-*.npz'  # pattern: what an episode has when it is whole
_TASKS = 'tasks'  # in the .npz, beside '<feature>/<statistic>'
_TURNS = 'turns'


@dataclass(frozen=True)
class DatasetPlan:
    """What a dataset is to hold. features: numbers, then cameras, in the order of columns."""

    fps: int
    features: tuple[Feature, ...]
    robot: str

    @property
    def cameras(self) -> tuple[Feature, ...]:
        """The features that are pictures."""
        return tuple(feature for feature in self.features if feature.is_camera)


@dataclass(frozen=True)
class EpisodePart:
    """A finished episode. tasks: [rows] text. statistics: feature -> name -> array."""

    rows: Any
    tasks: list[str]
    statistics: dict[str, dict[str, np.ndarray]]
    videos: dict[str, Path]


class EpisodeParts:
    """The finished episodes in a folder; no two processes may write into it."""

    def __init__(self, folder: Path, plan: DatasetPlan):
        self.folder, self.plan = folder, plan

    def has(self, number: int) -> bool:
        """Whether an episode is there."""
        return self._path(number, '.npz').is_file()

    def write(
        self, number: int, rows: Mapping[str, np.ndarray], tasks: Sequence[str],
        pictures: Mapping[str, Iterable[np.ndarray]],
    ) -> None:
        """Write an episode of N rows.

        rows: key -> [N] or [N, size]. tasks: [N]. pictures: camera key -> N of [H, W, 3] uint8
        RGB, of which one at a time is in memory. ValueError with one sentence if they are of
        another size than the plan says, or as many as do not fit into memory.
        """
        module, count = arrow(), len(tasks)
        columns, statistics = {}, {}
        for feature in self.plan.features:
            if feature.is_camera:
                source = self._sized(feature, pictures[feature.key], count)
                columns[feature.key], statistics[feature.key] = self._take(
                    number, feature, source, count)
            else:
                values = np.asarray(rows[feature.key], feature.dtype)
                columns[feature.key] = _column(module, values, feature)
                statistics[feature.key] = describe(values)
        table = module.table({key: column for key, column in columns.items()
                              if column is not None})
        with draft(self._path(number, '.parquet')) as partial:
            parquet().write_table(table, partial, compression='none')
        known = [*dict.fromkeys(tasks)]
        stored: dict[str, Any] = {
            f'{key}/{name}': value for key, each in statistics.items()
            for name, value in each.items()}
        stored |= {_TASKS: np.array(known),
                   _TURNS: np.array([known.index(task) for task in tasks])}
        with draft(self._path(number, '.npz')) as partial, partial.open('wb') as stream:
            np.savez(stream, **stored)

    def read(self, number: int) -> EpisodePart:
        """Return a finished episode."""
        statistics: dict[str, dict[str, np.ndarray]] = {}
        with np.load(self._path(number, '.npz'), allow_pickle=False) as stored:
            tasks = stored[_TASKS][stored[_TURNS]].tolist()
            for name in stored.files:
                key, _, statistic = name.rpartition('/')
                if key:
                    statistics.setdefault(key, {})[statistic] = stored[name]
        videos = {feature.key: self.video(number, feature)
                  for feature in self.plan.cameras if feature.is_video}
        return EpisodePart(parquet().read_table(self._path(number, '.parquet')), tasks, statistics,
                           videos)

    def _take(
        self, number: int, feature: Feature, pictures: Iterator[np.ndarray], count: int
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """Keep the pictures of one camera; return their column, None for a video, and moments."""
        chosen = {*sampled(count)}
        kept: list[np.ndarray] = []
        files: list[dict[str, object]] = []
        size, last, data = 0, None, b''

        def counted() -> Iterator[np.ndarray]:
            for row, picture in enumerate(pictures):
                if row in chosen:
                    kept.append(thinned(picture))
                yield picture

        if feature.is_video:
            with draft(self.video(number, feature)) as partial, VideoWriter(
                    partial, self.plan.fps, feature) as video:
                for picture in counted():
                    video.add(picture)
            return None, describe_pictures(kept)
        for picture in counted():
            if picture is not last:  # else it is held, and need not be packed again
                data = cv2.imencode('.png', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
                last, size = picture, size + len(data)
            files.append({'bytes': data, 'path': f'frame-{len(files):06d}.png'})
            if size > _MOST_PICTURES_BYTES:
                raise ValueError(
                    f'Episode {number} has more pictures of {plain(feature.key)} than fit into '
                    'memory without loss; write videos instead, without --images.')
        module = arrow()
        kind = module.struct([('bytes', module.binary()), ('path', module.string())])
        return module.array(files, kind), describe_pictures(kept)

    def _sized(
        self, feature: Feature, pictures: Iterable[np.ndarray], count: int
    ) -> Iterator[np.ndarray]:
        seen = 0
        for picture in pictures:
            seen += 1
            if picture.shape != feature.shape:
                raise ValueError(
                    f'A picture of {plain(feature.key)} has {picture.shape[1]} x '
                    f'{picture.shape[0]} pixels and earlier ones {feature.shape[1]} x '
                    f'{feature.shape[0]}; a dataset has one size a camera, so write two.')
            yield picture
        if seen != count:
            raise ValueError(f'{plain(feature.key)} has {seen} pictures for {count} rows.')

    def video(self, number: int, feature: Feature) -> Path:
        """Return where the video of an episode is."""
        place = self.plan.cameras.index(feature)
        return self._path(number, f'.{place}.mp4')

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f'episode-{number:06d}{suffix}'


def _column(module: Any, values: np.ndarray, feature: Feature) -> Any:
    if feature.size == 1:
        return module.array(values.reshape(-1))
    flat = module.array(np.ascontiguousarray(values).reshape(-1))
    return module.FixedSizeListArray.from_arrays(flat, feature.size)


