"""What our demonstrations hold and a LeRobot dataset has no place for.

In an exported dataset the folder EXTRAS has `demonstrations.json`, as in the folder it comes from,
and for each episode a file with the rest of its tensors and its header: what was executed, where
objects were, and their label images. LeRobot does not look at it; without it, the same dataset is
imported as anybody's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from vla_policy_node.checkpoints.reading import foreign, regular_file
from vla_policy_node.lerobot.info import ACTION, STATE
from vla_policy_node.lerobot.reader import LeRobotReader
from vla_policy_node.outputs.files import draft
from vla_policy_node.training.dataset_choice import DatasetChoice
from vla_policy_node.training.demonstrations import DOCUMENT, read_document
from vla_policy_node.training.stored_pictures import LABELS

EXTRAS = 'vla_policy_node'
TENSORS = ('executed', 'object_position')
_TEXTS = ('suite', 'task_id', 'layout', 'seed', 'noise', 'success', 'instruction', 'target',
          'objects', 'segments')
_MOST_BYTES = 4 << 30
_STATE, _ACTIONS = 8, 7
_DAMAGED = 'does not belong to its episode; download the dataset again, or remove its folder'


def extras_path(folder: Path, number: int) -> Path:
    """Return where the extras of an episode are, in a dataset."""
    return folder / EXTRAS / f'episode-{number:06d}.safetensors'


def write_extras(
    folder: Path, number: int, tensors: Mapping[str, np.ndarray], header: Mapping[str, str]
) -> None:
    """Write those of one episode."""
    with draft(extras_path(folder, number)) as partial:
        save_file({**tensors}, partial, {**header})


class Extras:
    """Those of a dataset. document: of the demonstrations. seeds: of each episode."""

    def __init__(self, folder: Path, episodes: int):
        self._folder = folder
        self.document = dict(read_document(folder / EXTRAS))
        cameras = self.document.get('cameras')
        if not (isinstance(cameras, list) and all(isinstance(name, str) for name in cameras)
                and all(isinstance(self.document.get(name), str) for name in ('suite', 'layout'))):
            raise ValueError(f'{folder / EXTRAS / DOCUMENT} does not name suite, layout and '
                             'cameras; download the dataset again, or remove its folder.')
        self.seeds = []
        for number in range(episodes):
            seed = self._header(number)['seed']
            if not (seed.isascii() and seed.isdigit() and len(seed) <= 9):
                raise ValueError(f'{extras_path(folder, number)} {_DAMAGED}.')
            self.seeds.append(int(seed))
        if len(set(self.seeds)) < episodes:
            raise ValueError(f'{folder / EXTRAS} has two episodes of one seed; download the '
                             'dataset again, or remove that folder.')

    @classmethod
    def of(cls, dataset: LeRobotReader, choice: DatasetChoice) -> Extras | None:
        """Return those of a dataset, None if it has none or if other numbers are taken of it."""
        if not (dataset.folder / EXTRAS / DOCUMENT).exists():
            return None
        extras = cls(dataset.folder, len(dataset.episodes))
        whole = ((choice.state, STATE, _STATE), (choice.actions, ACTION, _ACTIONS))
        same = set(choice.cameras) <= set(extras.document['cameras']) and all(
            numbers.key == key and numbers.places == tuple(range(size))
            for numbers, key, size in whole)
        return extras if same else None

    def _header(self, number: int) -> dict[str, str]:
        path = extras_path(self._folder, number)
        regular_file(path, _MOST_BYTES)
        with foreign(path, _DAMAGED), safe_open(path, 'numpy') as file:
            header = file.metadata()
            return {name: header[name] for name in _TEXTS}

    def load(
        self, number: int, frame_step: np.ndarray, cameras: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Return the tensors of an episode and its header; ValueError if they do not belong to it.

        frame_step: [F] of the rows that have pictures.
        """
        header = self._header(number)
        path, frames = extras_path(self._folder, number), len(frame_step)
        labels = [f'{camera}.{LABELS}' for camera in cameras]
        names = [*TENSORS, *(name for each in labels for name in (each, f'{each}_offset'))]
        with foreign(path, _DAMAGED):
            objects, segments = (json.loads(header[name]) for name in ('objects', 'segments'))
            with safe_open(path, 'numpy') as file:
                tensors = {name: file.get_tensor(name) for name in names}
            for name in labels:
                offset = tensors[f'{name}_offset']
                _require(offset.dtype == np.int64 and offset.shape == (frames + 1,)
                         and offset[0] == 0 and (np.diff(offset) > 0).all()
                         and offset[-1] == len(tensors[name]) and tensors[name].dtype == np.uint8)
            _require(all(isinstance(part, list) and all(isinstance(name, str) for name in part)
                         for part in (objects, segments)))
            _require(header['target'] in objects and set(objects) <= set(segments))
            _require(tensors['object_position'].shape == (frames, len(objects), 3))
            _require(tensors['executed'].ndim == 2 and tensors['executed'].shape[1] == _ACTIONS)
            for name in TENSORS:
                _require(tensors[name].dtype == np.float32 and np.isfinite(tensors[name]).all())
        return tensors, header


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError
