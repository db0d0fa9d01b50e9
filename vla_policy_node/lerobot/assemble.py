"""Finished episodes become a LeRobot dataset v3: its files, as LeRobot lays them out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vla_policy_node.lerobot.info import (
    AUTOMATIC,
    CHUNKS_SIZE,
    DATA_MB,
    DATA_PATH,
    EPISODES_PATH,
    INFO,
    STATS_PATH,
    TASKS_PATH,
    VERSION,
    VIDEO_MB,
    VIDEO_PATH,
    Feature,
    fill,
)
from vla_policy_node.lerobot.libraries import arrow, parquet
from vla_policy_node.lerobot.moments import NAMES, describe, merge
from vla_policy_node.lerobot.parts import DatasetPlan, EpisodePart, EpisodeParts
from vla_policy_node.lerobot.videos import describe_video, join_videos

_MB = 1 << 20
_DICTIONARY_BYTES = 64 * _MB  # a picture that is held for some rows is stored once
_EPISODES_TOGETHER = 100  # rows of meta/episodes in a row group


def assemble(
    parts: EpisodeParts, count: int, folder: Path,
    limits_mb: tuple[int, int] = (DATA_MB, VIDEO_MB), chunks_size: int = CHUNKS_SIZE,
    on_episode: Callable[[], None] = lambda: None,
) -> None:
    """Write a dataset of `count` finished episodes into an empty folder; info.json comes last.

    limits_mb: largest files of rows and of videos. chunks_size: files in a folder.
    """
    plan = parts.plan
    tasks: dict[str, int] = {}
    entries = []
    with _RowFiles(folder, plan, limits_mb[0], chunks_size) as rows:
        first = 0
        for number in range(count):
            part = parts.read(number)
            length = len(part.tasks)
            numbered = [tasks.setdefault(task, len(tasks)) for task in part.tasks]
            automatic = _automatic(plan, number, first, length, numbered)
            place = rows.add(part.rows, automatic)
            statistics = {**part.statistics,
                          **{key: describe(values) for key, values in automatic.items()}}
            entries.append(_entry(number, part, first, place, statistics))
            first += length
            on_episode()
    for feature in plan.cameras:
        if feature.is_video:
            _join(parts, feature, entries, folder, limits_mb[1], chunks_size)
    _write_tasks(folder / TASKS_PATH, tasks)
    _write_episodes(folder, plan, entries)
    keys = [feature.key for feature in _columns(plan)]
    stats = {key: merge([entry['statistics'][key] for entry in entries]) for key in keys}
    _write_json(folder / STATS_PATH, {
        key: {name: value.tolist() for name, value in each.items()}
        for key, each in stats.items()})
    _write_json(folder / INFO, _info(plan, count, first, len(tasks), limits_mb, chunks_size))


def _columns(plan: DatasetPlan) -> list[Feature]:
    return [*plan.features, *(Feature(key, dtype, (1,)) for key, dtype in AUTOMATIC.items())]


def _automatic(
    plan: DatasetPlan, number: int, first: int, length: int, tasks: list[int]
) -> dict[str, np.ndarray]:
    """Return the columns that every dataset has; LeRobot takes statistics of times as float64."""
    frames = np.arange(length)
    return {
        'timestamp': frames / plan.fps, 'frame_index': frames,
        'episode_index': np.full(length, number), 'index': first + frames,
        'task_index': np.array(tasks, np.int64)}


def _entry(
    number: int, part: EpisodePart, first: int, place: tuple[int, int],
    statistics: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, Any]:
    return {
        'episode_index': number, 'tasks': [*dict.fromkeys(part.tasks)],
        'length': len(part.tasks), 'data/chunk_index': place[0], 'data/file_index': place[1],
        'dataset_from_index': first, 'dataset_to_index': first + len(part.tasks),
        'statistics': statistics}


class _RowFiles:
    """The files of rows: one row group an episode, the next file when one would be too large."""

    def __init__(self, folder: Path, plan: DatasetPlan, limit_mb: int, chunks_size: int):
        self._folder, self._plan = folder, plan
        self._limit, self._chunks_size = limit_mb * _MB, chunks_size
        self._stack = ExitStack()
        self._writer: Any = None
        self._file, self._frames = -1, 0
        self._path = folder

    def __enter__(self) -> _RowFiles:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add(self, rows: Any, automatic: Mapping[str, np.ndarray]) -> tuple[int, int]:
        """Write an episode; return chunk and file."""
        for key, values in automatic.items():
            rows = rows.append_column(key, arrow().array(values.astype(AUTOMATIC[key])))
        length = rows.num_rows
        if self._writer:
            size = self._path.stat().st_size
            if size + size / max(1, self._frames) * length >= self._limit:
                self._stack.close()
                self._writer = None
        place = divmod(self._file + (self._writer is None), self._chunks_size)
        if self._writer is None:
            self._file, self._frames = self._file + 1, 0
            self._path = _made(self._folder / fill(DATA_PATH, '', *place))
            schema = rows.schema.with_metadata({'huggingface': _hugging_face(self._plan)})
            self._writer = self._stack.enter_context(parquet().ParquetWriter(
                self._path, schema, compression='snappy', use_dictionary=True,
                dictionary_pagesize_limit=_DICTIONARY_BYTES))
        self._writer.write_table(rows, row_group_size=length)
        self._frames += length
        return place


def _join(
    parts: EpisodeParts, feature: Feature, entries: list[dict], folder: Path, limit_mb: int,
    chunks_size: int,
) -> None:
    """Write the videos of a camera, and into the entries where each episode is."""
    for file, group in enumerate(_grouped(parts, feature, entries, limit_mb * _MB)):
        place = divmod(file, chunks_size)
        starts, frames = [], 0
        for entry in group:
            starts.append(Fraction(frames, parts.plan.fps))
            frames += entry['length']
            prefix = f'videos/{feature.key}'
            entry |= {
                f'{prefix}/chunk_index': place[0], f'{prefix}/file_index': place[1],
                f'{prefix}/from_timestamp': float(starts[-1]),
                f'{prefix}/to_timestamp': frames / parts.plan.fps}
        path = _made(folder / fill(VIDEO_PATH, feature.key, *place))
        join_videos([parts.video(entry['episode_index'], feature) for entry in group], starts,
                    path)


def _grouped(
    parts: EpisodeParts, feature: Feature, entries: list[dict], limit: int
) -> Iterator[list[dict]]:
    """Yield the episodes that go into one file."""
    group: list[dict] = []
    size = 0
    for entry in entries:
        more = parts.video(entry['episode_index'], feature).stat().st_size
        if group and size + more >= limit:
            yield group
            group, size = [], 0
        group.append(entry)
        size += more
    yield group


def _write_tasks(path: Path, tasks: Mapping[str, int]) -> None:
    """Write them as pandas writes a table whose index is called `task`; readers need that."""
    module = arrow()
    table = module.table({'task_index': module.array([*tasks.values()], module.int64()),
                          'task': module.array([*tasks], module.string())})
    text = {'pandas_type': 'unicode', 'numpy_type': 'object'}
    described = {
        'index_columns': ['task'],
        'column_indexes': [{'name': None, 'field_name': None, **text,
                            'metadata': {'encoding': 'UTF-8'}}],
        'columns': [
            {'name': 'task_index', 'field_name': 'task_index', 'pandas_type': 'int64',
             'numpy_type': 'int64', 'metadata': None},
            {'name': 'task', 'field_name': 'task', **text, 'metadata': None}],
        'attributes': {}, 'creator': {'library': 'pyarrow', 'version': module.__version__},
        'pandas_version': '2.3.3'}
    parquet().write_table(
        table.replace_schema_metadata({'pandas': json.dumps(described)}), _made(path))


def _write_episodes(folder: Path, plan: DatasetPlan, entries: list[dict]) -> None:
    module = arrow()
    path = _made(folder / fill(EPISODES_PATH, '', 0, 0))
    kinds = {'tasks': module.list_(module.string())}
    cameras = {feature.key for feature in plan.cameras}
    for feature in _columns(plan):
        for name in NAMES:
            number = module.int64() if name == 'count' else module.float64()
            depth = 3 if feature.key in cameras and name != 'count' else 1
            for _ in range(depth):
                number = module.list_(number)
            kinds[f'stats/{feature.key}/{name}'] = number
    rows = [{
        **{key: value for key, value in entry.items() if key != 'statistics'},
        **{f'stats/{key}/{name}': each[name].tolist()
           for key, each in entry['statistics'].items() for name in NAMES},
        'meta/episodes/chunk_index': 0, 'meta/episodes/file_index': 0} for entry in entries]
    order = [*(key for key in rows[0] if not key.startswith(('stats/', 'meta/'))),
             *(key for key in kinds if key != 'tasks'),
             *(key for key in rows[0] if key.startswith('meta/'))]
    schema = module.schema([(key, kinds.get(key) or (
        module.float64() if key.endswith('_timestamp') else module.int64())) for key in order])
    parquet().write_table(module.Table.from_pylist(rows, schema), path, compression='snappy',
                          row_group_size=_EPISODES_TOGETHER)


def _info(
    plan: DatasetPlan, episodes: int, frames: int, tasks: int, limits_mb: tuple[int, int],
    chunks_size: int,
) -> dict[str, Any]:
    features: dict[str, Any] = {}
    for feature in _columns(plan):
        described: dict[str, Any] = {
            'dtype': feature.dtype, 'shape': [*feature.shape],
            'names': [*feature.names] if feature.names else None}
        if feature.is_camera:
            described['names'] = ['height', 'width', 'channels']
        if feature.is_video:
            described['info'] = describe_video(feature, plan.fps)
        features[feature.key] = described
    has_videos = any(feature.is_video for feature in plan.cameras)
    return {
        'codebase_version': VERSION, 'fps': plan.fps, 'features': features,
        'total_episodes': episodes, 'total_frames': frames, 'total_tasks': tasks,
        'chunks_size': chunks_size, 'data_files_size_in_mb': limits_mb[0],
        'video_files_size_in_mb': limits_mb[1], 'data_path': DATA_PATH,
        'video_path': VIDEO_PATH if has_videos else None, 'robot_type': plan.robot or None,
        'splits': {'train': f'0:{episodes}'}}


def _hugging_face(plan: DatasetPlan) -> str:
    """Return what the library `datasets` keeps with a table: the kinds of its columns."""
    kinds: dict[str, Any] = {}
    for feature in _columns(plan):
        if feature.is_video:
            continue
        value: dict[str, Any] = {'dtype': feature.dtype, '_type': 'Value'}
        if feature.is_camera:
            value = {'_type': 'Image'}
        elif feature.size > 1:
            value = {'feature': value, 'length': feature.size, '_type': 'List'}
        kinds[feature.key] = value
    return json.dumps({'info': {'features': kinds}})


def _write_json(path: Path, document: Mapping) -> None:
    _made(path).write_text(json.dumps(document, indent=4, ensure_ascii=False) + '\n',
                           encoding='utf-8')


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
