"""Reads a LeRobot dataset v3, episode by episode, and checks what it says of itself."""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vla_policy_node.checkpoints.reading import listed, plain, shown
from vla_policy_node.lerobot.info import (
    AUTOMATIC,
    MOST_PX,
    TASKS_PATH,
    DatasetInfo,
    Feature,
    read_info,
)
from vla_policy_node.lerobot.tables import RefusedTableError, numbers, opened, pictures
from vla_policy_node.lerobot.videos import TOLERANCE_S, read_pictures

_LONGEST_TASK = 4096  # bytes, as of an instruction
_MOST_TASKS = 10**6
# The text is the index of a pandas table, under whatever name it was saved.
_TASK_NAMES = ('task', '__index_level_0__')


@dataclass(frozen=True)
class EpisodeEntry:
    """What `meta/episodes` says of one episode.

    chunk, file: of its rows, which have the indices from `start` to before `stop`. videos: camera
    key -> chunk, file, and when it begins in there (s).
    """

    number: int
    chunk: int
    file: int
    start: int
    stop: int
    videos: Mapping[str, tuple[int, int, float]]

    @property
    def length(self) -> int:
        """How many rows it has."""
        return self.stop - self.start


class LeRobotReader:
    """A dataset in a folder: its description at once, its rows when asked for.

    remarks: sentences about what it says wrongly of itself, where the truth could be found.
    Raises ValueError with one sentence, here and while reading, for what cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.info: DatasetInfo = read_info(self.folder)
        self.remarks: list[str] = []
        self._kept: dict[tuple[Path, tuple[str, ...]], dict[str, np.ndarray]] = {}
        self.tasks = _read_tasks(self.folder / TASKS_PATH)
        self.episodes = self._read_episodes()

    def rows(self, number: int, keys: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Return the numbers of an episode: of the features named, and the automatic ones.

        Checked: that these are its rows, in their order and at their times.
        """
        episode = self.episodes[number]
        path, first, columns = self._find(episode, tuple(keys))
        rows = {key: values[first:first + episode.length] for key, values in columns.items()}
        place = f'{path}, episode {number}'
        if (rows['episode_index'] != number).any():
            raise ValueError(f'{place}: rows of another episode are among its own; download the '
                             'dataset again.')
        frames = np.arange(episode.length)
        if (rows['frame_index'] != frames).any():
            raise ValueError(f'{place}: frame_index does not count from 0; download the dataset '
                             'again.')
        off_s = np.abs(rows['timestamp'].astype(np.float64) - frames / self.info.fps)
        # float32 of a long episode is coarser than the tolerance itself.
        if not (off_s <= TOLERANCE_S + np.spacing(np.float32(frames[-1] / self.info.fps))).all():
            raise ValueError(
                f'{place}: row {int(off_s.argmax())} is {off_s.max():.4f} s from its time at '
                f'{self.info.fps:g} rows per second; give info.json the fps that was recorded.')
        tasks = rows['task_index']
        if tasks.min() < 0 or tasks.max() >= len(self.tasks):
            raise ValueError(f'{place}: task_index {int(tasks.max())} is not in {TASKS_PATH}, '
                             f'which has {len(self.tasks)} tasks; download the dataset again.')
        return rows

    def task_of(self, rows: Mapping[str, np.ndarray]) -> str:
        """Return what was asked for in most rows of an episode, the first one of as many."""
        counted = Counter(rows['task_index'].tolist())
        return self.tasks[counted.most_common(1)[0][0]]

    def pictures(self, number: int, key: str) -> Iterator[np.ndarray]:
        """Yield the pictures of a camera in an episode, [H, W, 3] uint8 RGB, one for each row."""
        episode = self.episodes[number]
        if key not in self.info.cameras:
            raise ValueError(f'{self.folder} has no camera {plain(key)}; it has '
                             f'{listed(self.info.cameras) or "none"}.')
        if self.info.features[key].is_video:
            chunk, file, begins_s = episode.videos[key]
            times = begins_s + np.arange(episode.length) / self.info.fps
            yield from read_pictures(self.info.video_file(key, chunk, file), times.tolist())
            return
        path, first, _ = self._find(episode, ())
        count = 0
        for data in pictures(path, key, first, first + episode.length):
            count += 1
            yield decode_picture(data, f'{path}, {plain(key)} of episode {number}')
        if count != episode.length:
            raise ValueError(f'{path} has {count} pictures of {plain(key)} in episode {number}, '
                             f'and {episode.length} rows; download it again.')

    def data_files(self) -> list[Path]:
        """Return the files of rows that episodes name, in order."""
        return [self.info.data_file(chunk, file) for chunk, file in sorted(
            {(episode.chunk, episode.file) for episode in self.episodes})]

    def _find(
        self, episode: EpisodeEntry, keys: tuple[str, ...]
    ) -> tuple[Path, int, dict[str, np.ndarray]]:
        """Return the file that holds an episode, at which row, and columns of the whole file.

        Where the metadata name a file without these rows, all are searched for them.
        """
        named = self.info.data_file(episode.chunk, episode.file)
        # A link to nowhere is said to be one.
        is_there = os.path.lexists(named)
        searched = [named] if is_there else []
        searched += [path for path in self.data_files() if path != named]
        for path in searched:
            index = self._columns(path, ())['index'] if os.path.lexists(path) else np.empty(0)
            at = np.flatnonzero(index == episode.start)
            if len(at) == 1 and np.array_equal(
                    index[at[0]:at[0] + episode.length], np.arange(episode.start, episode.stop)):
                if path != named:
                    self._remark(f'meta/episodes names {named.name} of {named.parent.name} for '
                                 f'rows that are in {path.name} of {path.parent.name}; they were '
                                 'read there.')
                return path, int(at[0]), self._columns(path, keys)
        raise ValueError(
            f'{named} {"does not hold" if is_there else "is missing; it should hold"} the rows '
            f'{episode.start} to {episode.stop - 1} of episode {episode.number}, and no other '
            'file does; download the dataset again.')

    def _columns(self, path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Read columns of a whole file; the last ones stay, since episodes are read in order."""
        if (path, keys) not in self._kept:
            features = self.info.features
            for key in keys:
                if key not in features:
                    raise ValueError(f'{self.folder} has no feature {plain(key)}; it has '
                                     f'{listed(features)}.')
            chosen = dict.fromkeys((*AUTOMATIC, *keys))
            while len(self._kept) > 1:
                self._kept.pop(next(iter(self._kept)))
            self._kept[path, keys] = numbers(
                path, [features[key] for key in chosen], self.info.frames)
        return self._kept[path, keys]

    def _remark(self, sentence: str) -> None:
        if sentence not in self.remarks:
            self.remarks.append(sentence)

    def _read_episodes(self) -> list[EpisodeEntry]:
        found: dict[int, EpisodeEntry] = {}
        shards = sorted(self.folder.glob('meta/episodes/chunk-*/file-*.parquet'))
        if not shards:
            raise ValueError(f'{self.folder} has no meta/episodes/chunk-*/file-*.parquet; '
                             'download the dataset again, with all of its files.')
        videos = [key for key, feature in self.info.cameras.items() if feature.is_video]
        for path in shards:
            for entry in _read_shard(path, videos, self.info.episodes):
                if entry.number in found:
                    raise ValueError(f'{path} has episode {entry.number} once more; download the '
                                     'dataset again.')
                found[entry.number] = entry
        missing = [number for number in range(self.info.episodes) if number not in found]
        if missing or len(found) != self.info.episodes:
            raise ValueError(
                f'{self.folder} has {self.info.episodes} episodes and meta/episodes describes '
                f'{len(found)}; download the dataset again, with all files of meta/episodes.')
        if not found:
            raise ValueError(f'{self.folder} has no episodes.')
        episodes = [found[number] for number in range(len(found))]
        expected = 0
        for entry in episodes:
            if entry.start != expected or entry.stop <= entry.start:
                raise ValueError(
                    f'{self.folder}: episode {entry.number} has the rows {entry.start} to '
                    f'{entry.stop - 1} where {expected} is next, so meta/episodes is damaged; '
                    'download the dataset again.')
            expected = entry.stop
        if expected != self.info.frames:
            raise ValueError(
                f'{self.folder} has {self.info.frames:,} rows by meta/info.json and {expected:,} '
                'by meta/episodes; download the dataset again.')
        return episodes


def _read_shard(path: Path, videos: Sequence[str], most: int) -> list[EpisodeEntry]:
    whole = ['episode_index', 'data/chunk_index', 'data/file_index', 'dataset_from_index',
             'dataset_to_index',
             *(f'videos/{key}/{part}' for key in videos for part in ('chunk_index', 'file_index'))]
    features = [Feature(key, 'int64', (1,)) for key in whole]
    features += [Feature(f'videos/{key}/from_timestamp', 'float64', (1,)) for key in videos]
    columns = numbers(path, features, most)
    entries = []
    for row in range(len(columns['episode_index'])):
        values = {key: column[row].item() for key, column in columns.items()}
        if not all(0 <= value < 2**40 for value in values.values()):  # nor NaN
            raise ValueError(f'{path} has a negative or endless number in row {row}; download it '
                             'again.')
        entries.append(EpisodeEntry(
            values['episode_index'], values['data/chunk_index'], values['data/file_index'],
            values['dataset_from_index'], values['dataset_to_index'],
            {key: (values[f'videos/{key}/chunk_index'], values[f'videos/{key}/file_index'],
                   values[f'videos/{key}/from_timestamp']) for key in videos}))
    return entries


def _read_tasks(path: Path) -> list[str]:
    """Return the tasks by their index."""
    with opened(path, _TASK_NAMES) as file:
        count = file.metadata.num_rows
        if count > _MOST_TASKS:
            raise RefusedTableError(
                f'{path} has {count:,} tasks; at most {_MOST_TASKS:,} are read.')
        names = file.schema_arrow.names
        text = next((name for name in _TASK_NAMES if name in names), '')
        if 'task_index' not in names or not text:
            raise RefusedTableError(f'{path} must have the columns task_index and task, not '
                                    f'{listed(names)}; take the original file.')
        tasks = {}
        for batch in file.iter_batches(1024, columns=['task_index', text]):
            # One text at a time: they may be longer than they should be.
            for row in zip(batch.column('task_index'), batch.column(text), strict=True):
                number, task = (cell.as_py() for cell in row)
                if not isinstance(task, str) or len(task.encode()) > _LONGEST_TASK:
                    raise RefusedTableError(f'{path} has the task {shown(task)}, which is no text '
                                            f'of at most {_LONGEST_TASK} bytes.')
                tasks[number] = task
    if tasks.keys() != {*range(count)} or not tasks:
        raise ValueError(f'{path} does not number its {count} tasks from 0; take the original '
                         'file.')
    return [tasks[number] for number in range(count)]


def decode_picture(data: bytes, place: str) -> np.ndarray:
    """Decode a PNG or JPEG to [H, W, 3] uint8 RGB, as LeRobot does, unless it is too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=['PNG', 'JPEG']) as image:
                if max(image.size) > MOST_PX:
                    raise ValueError(f'it has {image.size[0]} x {image.size[1]} pixels')
                return np.asarray(image.convert('RGB'))
    except Exception as error:  # damaged bytes make the library raise anything
        raise ValueError(f'{place}: a picture cannot be decoded ({plain(error)}); download it '
                         'again.') from error
