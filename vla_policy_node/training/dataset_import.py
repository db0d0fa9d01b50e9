"""A LeRobot dataset v3 becomes a folder of demonstrations, all of it or nothing.

Episodes are written into a hidden folder beside the target, each whole or not at all, so that an
interrupted import goes on; the folder gets its name when the last one is there.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_policy_node.checkpoints.reading import plain
from vla_policy_node.lerobot.info import INFO
from vla_policy_node.lerobot.reader import LeRobotReader
from vla_policy_node.outputs.files import allow_umask, write_text
from vla_policy_node.outputs.listing import look
from vla_policy_node.outputs.whole import check_place
from vla_policy_node.training.dataset_choice import DatasetChoice, Numbers
from vla_policy_node.training.dataset_extras import Extras
from vla_policy_node.training.dataset_statistics import write_statistics
from vla_policy_node.training.dataset_work import at_work, work_folder
from vla_policy_node.training.demonstrations import (
    DOCUMENT,
    FORMAT,
    Demonstrations,
    episode_path,
    write_episode,
)
from vla_policy_node.training.stored_pictures import JPEG, PNG, encode, packed

FRESH = 'fresh_pictures'  # feature: whether the pictures of a row were taken for it
LONGEST_STEPS = 10**6  # of an episode
_MOST_PICTURES_BYTES = 4 << 30  # of an episode, which is in memory until it is written


@dataclass(frozen=True)
class Imported:
    """One episode that is there. new: written in this run."""

    number: int
    rows: int
    new: bool


class DatasetImport:
    """An import that is possible: what `run` will do was checked.

    Raises ValueError with one sentence, here and while it runs.
    """

    def __init__(self, dataset: LeRobotReader, choice: DatasetChoice, out: Path, name: str,
                 episodes: range | None = None):
        """name: of the data set in statistics. episodes: which ones, None for all."""
        self._dataset, self._choice, self._out = dataset, choice, out
        self.episodes = dataset.episodes[episodes.start:episodes.stop] if episodes else (
            dataset.episodes)
        if out.exists():
            raise ValueError(f"'{out}' is there already; name a new folder with --out.")
        check_place(out)
        self._work = work_folder(out, 'importing')
        self._whole = self._work / 'whole'
        self._extras = Extras.of(dataset, choice)
        lossless = all(not dataset.info.features[key].is_video for key in choice.cameras.values())
        self._pictures = PNG if lossless else JPEG
        self._document = self._describe(name)

    def run(self) -> Generator[Imported, None, None]:
        """Write what is missing and yield every episode; at the end the folder is in its place."""
        recipe = {
            'dataset': str(self._dataset.folder.resolve()),
            'info': look(self._dataset.folder / INFO)['sha256'],
            'choice': self._choice.document(), 'document': self._document,
            'episodes': [self.episodes[0].number, len(self.episodes)]}
        with at_work(self._work, recipe, self._out, 'whole/episode-*.safetensors'):
            self._whole.mkdir(exist_ok=True)
            for stale in self._whole.glob('episode-*.tmp'):  # of a process that was killed
                stale.unlink()
            for entry in self.episodes:
                path = episode_path(self._whole, self._seed(entry.number))
                new = not path.is_file()
                if new:
                    self._write(entry.number)
                yield Imported(entry.number, entry.length, new)
            self._finish()

    def _describe(self, name: str) -> dict:
        info, choice = self._dataset.info, self._choice
        if self._extras:
            return {**self._extras.document, 'cameras': [*choice.cameras],
                    'pictures': self._pictures}
        return {
            'format': FORMAT, 'suite': name, 'layout': 'recorded', 'labels_px': 0,
            'cameras': [*choice.cameras], 'fps': info.fps, 'state': [*choice.state.names],
            'actions': [*choice.actions.names], 'pictures': self._pictures,
            'after_end': choice.after_end, 'robot': info.robot}

    def _seed(self, number: int) -> int:
        return self._extras.seeds[number] if self._extras else number

    def _write(self, number: int) -> None:
        dataset, choice = self._dataset, self._choice
        place = f'{dataset.folder}, episode {number}'
        keys = [key for key in (choice.state.key, choice.actions.key) if key]
        fresh_is_told = FRESH in dataset.info.features
        rows = dataset.rows(number, [*keys, *([FRESH] if fresh_is_told else [])])
        length = len(rows['index'])
        if length > LONGEST_STEPS:
            raise ValueError(f'{place} has {length:,} rows; at most {LONGEST_STEPS:,} are read.')
        fresh = rows[FRESH].astype(bool) if fresh_is_told else np.ones(length, bool)
        if not fresh[0]:
            raise ValueError(f'{place} begins with a picture of no time ({FRESH} is false); '
                             'record it again.')
        tensors = {
            'proprio': _picked(rows, choice.state, length, place),
            'action': _picked(rows, choice.actions, length, place),
            'frame_step': np.flatnonzero(fresh).astype(np.int32)}
        for name, key in choice.cameras.items():
            files, size = [], 0
            pictures = dataset.pictures(number, key)
            for picture, is_fresh in zip(pictures, fresh, strict=True):
                if is_fresh:
                    files.append(encode(picture, self._pictures))
                    size += len(files[-1])
                    if size > _MOST_PICTURES_BYTES:
                        raise ValueError(f'{place} has more pictures of {plain(key)} than fit '
                                         'into memory; split the episode.')
            tensors |= packed(f'{name}.{self._pictures}', files)
        if self._extras:
            more, header = self._extras.load(number, tensors['frame_step'], [*choice.cameras])
        else:
            frames = len(tensors['frame_step'])
            more = {'executed': tensors['action'],
                    'object_position': np.zeros((frames, 0, 3), np.float32)}
            header = {
                'suite': self._document['suite'], 'task_id': str(int(rows['task_index'][0])),
                'layout': self._document['layout'], 'seed': str(number), 'noise': '0',
                'success': 'true', 'instruction': dataset.task_of(rows), 'target': '',
                'objects': '[]', 'segments': '[]'}
            asked, turns = np.unique(rows['task_index'], return_inverse=True)
            if len(asked) > 1:
                more['asked'] = turns.astype(np.int32)
                header['instructions'] = json.dumps([dataset.tasks[task] for task in asked])
        write_episode(self._whole, self._seed(number), {**tensors, **more}, header)

    def _finish(self) -> None:
        """Move what is whole into its place, in one step."""
        write_text(self._whole / DOCUMENT, json.dumps(self._document, indent=2) + '\n')
        write_statistics(Demonstrations(self._whole))
        allow_umask(self._whole)
        self._whole.rename(self._out.resolve())


def _picked(
    rows: dict[str, np.ndarray], numbers: Numbers, length: int, place: str
) -> np.ndarray:
    if not numbers.key:
        return np.zeros((length, 0), np.float32)
    with np.errstate(over='ignore'):  # what is too large for float32 is not finite there
        values = rows[numbers.key].reshape(length, -1)[:, list(numbers.places)].astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f'{place}: {plain(numbers.key)} has numbers that are not finite; leave '
                         'the episode out of the dataset.')
    return values
