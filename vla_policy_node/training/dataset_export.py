"""Demonstrations become a LeRobot dataset v3; what LeRobot has no place for lies beside.

A row is a control step. Where pictures were taken less often, the last one is held and the feature
FRESH says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np

from vla_policy_node.checkpoints.reading import plain
from vla_policy_node.lerobot.assemble import assemble
from vla_policy_node.lerobot.info import ACTION, CAMERA, STATE, Feature
from vla_policy_node.lerobot.parts import FINISHED, DatasetPlan, EpisodeParts
from vla_policy_node.lerobot.videos import check_encodable
from vla_policy_node.outputs.whole import check_place, check_target, whole_folder
from vla_policy_node.policy.interface import END_EFFECTOR_DELTA, END_EFFECTOR_STATE
from vla_policy_node.training.dataset_extras import EXTRAS, TENSORS, write_extras
from vla_policy_node.training.dataset_import import FRESH, Imported
from vla_policy_node.training.dataset_work import at_work, work_folder
from vla_policy_node.training.demonstrations import DOCUMENT, SCATTERED, Demonstrations
from vla_policy_node.training.stored_pictures import LABELS

COMMAND = 'vla dataset export'
WORLD_HZ, WORLD_ROBOT = 20, 'panda'  # of demonstrations that do not say


class DatasetExport:
    """An export that is possible; resumed if it was begun.

    lossless: pictures as PNG in the table, instead of videos. Raises ValueError with one sentence,
    here and while it runs.
    """

    def __init__(self, demonstrations: Demonstrations, out: Path, lossless: bool, robot: str = ''):
        self._demos, self._out = demonstrations, out
        check_place(out)
        check_target(out, COMMAND)
        self._work = work_folder(out, 'exporting')
        self.steps = [len(demonstrations.read(episode, 'action'))  # control steps of each episode
                      for episode in range(len(demonstrations.episodes))]
        self.plan = self._plan(lossless, robot)
        self._parts = EpisodeParts(self._work, self.plan)

    def run(self) -> Generator[Imported, None, None]:
        """Write what is missing and yield every episode; then the dataset gets its name."""
        episodes = self._demos.episodes
        recipe = {
            'demonstrations': str(self._demos.directory.resolve()),
            'document': self._demos.document, 'plan': repr(self.plan),
            'episodes': [[path.name, path.stat().st_mtime_ns] for path in episodes]}
        count = len(episodes)
        with at_work(self._work, recipe, self._out, FINISHED):
            for number, length in enumerate(self.steps):
                new = not self._parts.has(number)
                if new:
                    self._write(number, length)
                yield Imported(number, length, new)
            with whole_folder(self._out, COMMAND) as folder:
                assemble(self._parts, count, folder)
                if self._demos.has_labels:
                    self._write_extras(folder, count)

    def _plan(self, lossless: bool, robot: str) -> DatasetPlan:
        demos, document = self._demos, self._demos.document
        if document.get('layout') == SCATTERED:
            raise ValueError(f'{demos.directory} holds still pictures without actions, which '
                             'LeRobot has no datasets of; name demonstrations.')
        fps = document.get('fps', WORLD_HZ)
        if fps != int(fps):
            raise ValueError(f'{demos.directory} has {fps:g} steps per second; LeRobot takes '
                             'whole numbers.')
        moves = tuple(quantity.name for quantity in END_EFFECTOR_DELTA)
        state = tuple(quantity.name for quantity in END_EFFECTOR_STATE)
        features = [
            _vector(STATE, document.get('state', state), demos.read(0, 'proprio').shape[1]),
            _vector(ACTION, document.get('actions', moves), demos.read(0, 'action').shape[1])]
        features = [feature for feature in features if feature.size]
        if any(len(demos.read(episode, 'frame_step')) < length
               for episode, length in enumerate(self.steps)):
            features.append(Feature(FRESH, 'bool', (1,)))
        first = demos.load(0)
        features += [Feature(f'{CAMERA}{camera}', 'image' if lossless else 'video', picture.shape)
                     for camera, picture in first.images.items()]
        for feature in features:
            if feature.is_video:
                check_encodable(feature)
        return DatasetPlan(int(fps), tuple(features), robot or document.get('robot', WORLD_ROBOT))

    def _write(self, number: int, length: int) -> None:
        demos = self._demos
        fresh = np.zeros(length, bool)
        fresh[demos.read(number, 'frame_step')] = True
        if not length or not fresh[0]:
            raise ValueError(f'{demos.episodes[number]} has no picture of its first step; delete '
                             'it and run the same vla demos again.')
        rows = {STATE: demos.read(number, 'proprio'), ACTION: demos.read(number, 'action'),
                FRESH: fresh}
        frames = np.flatnonzero(demos.frames[:, 0] == number)
        cameras = {feature.key: held(self._pictures(frames, feature.camera), fresh)
                   for feature in self.plan.cameras}
        self._parts.write(number, rows, demos.instructions(number), cameras)

    def _pictures(self, frames: np.ndarray, camera: str) -> Iterator[np.ndarray]:
        for frame in frames:
            yield self._demos.picture(int(frame), camera)

    def _write_extras(self, folder: Path, count: int) -> None:
        (folder / EXTRAS).mkdir()
        shutil.copyfile(self._demos.directory / DOCUMENT, folder / EXTRAS / DOCUMENT)
        cameras = self._demos.document['cameras']
        names = [*TENSORS, *(f'{camera}.{LABELS}{end}' for camera in cameras
                             for end in ('', '_offset'))]
        for number in range(count):
            write_extras(folder, number, {name: self._demos.read(number, name) for name in names},
                         self._demos.header(number))


def held(pictures: Iterator[np.ndarray], fresh: np.ndarray) -> Iterator[np.ndarray]:
    """Yield a picture for each row: the last one, the same object, where there is no fresh one."""
    picture = None
    for is_fresh in fresh:
        if is_fresh:
            picture = next(pictures)
        assert picture is not None
        yield picture


def _vector(key: str, names: object, size: int) -> Feature:
    if not isinstance(names, (list, tuple)) or len(names) != size:
        raise ValueError(f'{DOCUMENT} names {plain(names)} for {size} numbers of {key}; import '
                         'the demonstrations again.')
    return Feature(key, 'float32', (size,), tuple(map(str, names)))


