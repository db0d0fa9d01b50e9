"""Recorded bags become a LeRobot dataset v3: one episode for each goal, or stretch of one."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vla_policy_node.lerobot.assemble import assemble
from vla_policy_node.lerobot.info import ACTION, CAMERA, STATE, Feature
from vla_policy_node.lerobot.parts import FINISHED, DatasetPlan, EpisodeParts
from vla_policy_node.lerobot.videos import check_encodable
from vla_policy_node.outputs.whole import check_place, check_target, whole_folder
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.dataset_rows import BagEpisode, BagRequest, BagRows, read_rows
from vla_policy_node.training.dataset_import import FRESH, Imported
from vla_policy_node.training.dataset_work import at_work, work_folder
from vla_policy_node.wire.cdr import read_compressed_image, read_image
from vla_policy_node.wire.images import decode_compressed, decode_image

COMMAND = 'vla dataset from-bag'


@dataclass(frozen=True, eq=False)
class _Source:
    path: Path
    rows: BagRows


class BagDataset:
    """A dataset of these bags that is possible; resumed if it was begun.

    Reads through all bags. lossless: pictures as PNG in the tables, instead of videos. Raises
    ValueError with one sentence, here and while it runs.
    """

    def __init__(self, bags: Sequence[Path], request: BagRequest, out: Path, lossless: bool):
        check_place(out)
        check_target(out, COMMAND)
        self._out, self._request = out, request
        self._sources = []
        for path in bags:
            with Bag(path) as bag:
                self._sources.append(_Source(path, read_rows(bag, request)))
        self.plan = self._plan(lossless)
        self._work = work_folder(out, 'writing')
        self._parts = EpisodeParts(self._work, self.plan)
        self.broken = 0  # pictures that could not be decoded, so that the one before was held

    @property
    def lengths(self) -> list[int]:
        """Rows of each episode."""
        return [len(episode.state) for source in self._sources for episode in source.rows.episodes]

    @property
    def notes(self) -> list[str]:
        """A sentence for all that is odd, with the bag that it is about."""
        return [f'{source.path}: {note}' for source in self._sources for note in source.rows.notes]

    def run(self) -> Generator[Imported, None, None]:
        """Write what is missing and yield every episode; then the dataset gets its name."""
        recipe = {
            'bags': [_identity(source.path) for source in self._sources],
            'request': asdict(self._request), 'plan': repr(self.plan), 'lengths': self.lengths}
        with at_work(self._work, recipe, self._out, FINISHED):
            number = 0
            for source in self._sources:
                with closing(_Pictures(source)) as pictures:
                    for episode in source.rows.episodes:
                        length = len(episode.state)
                        new = not self._parts.has(number)
                        if new:
                            self._parts.write(
                                number, {STATE: episode.state, ACTION: episode.actions,
                                         FRESH: _fresh(episode)},
                                [episode.instruction] * length,
                                {f'{CAMERA}{camera}': pictures.of(camera, numbers)
                                 for camera, numbers in episode.pictures.items()})
                        yield Imported(number, length, new)
                        number += 1
                    self.broken += pictures.broken
            with whole_folder(self._out, COMMAND) as folder:
                assemble(self._parts, number, folder)

    def _plan(self, lossless: bool) -> DatasetPlan:
        plans = []
        held = not all(_fresh(episode).all() for source in self._sources
                       for episode in source.rows.episodes)
        for source in self._sources:
            rows = source.rows
            with closing(_Pictures(source)) as pictures:
                shapes = {camera: next(pictures.of(camera, numbers[:1])).shape
                          for camera, numbers in rows.episodes[0].pictures.items()}
            features = [Feature(STATE, 'float32', (len(rows.state_names),), rows.state_names),
                        Feature(ACTION, 'float32', (len(rows.action_names),), rows.action_names)]
            features = [feature for feature in features if feature.size]
            if held:
                features.append(Feature(FRESH, 'bool', (1,)))
            features += [Feature(f'{CAMERA}{camera}', 'image' if lossless else 'video', shape)
                         for camera, shape in shapes.items()]
            plans.append(DatasetPlan(rows.fps, tuple(features), rows.robot.name))
            if plans[-1] != plans[0]:
                raise BagError(
                    f"The bags '{self._sources[0].path}' and '{source.path}' differ in robot, "
                    'rate, cameras or their sizes, or numbers; write a dataset of each.')
        for feature in plans[0].features:
            if feature.is_video:
                check_encodable(feature)
        return plans[0]


def _identity(path: Path) -> list:
    """Return what changes when a bag does, without reading it."""
    files = sorted(path.rglob('*')) if path.is_dir() else [path]
    return [str(path.resolve()), *([file.name, file.stat().st_size, file.stat().st_mtime_ns]
                                   for file in files)]


def _fresh(episode: BagEpisode) -> np.ndarray:
    """Return for which rows [N] the first camera, the reference, has another picture than before.
    """
    numbers = next(iter(episode.pictures.values()))
    return np.concatenate([[True], numbers[1:] != numbers[:-1]])


class _Pictures:
    """Decoded pictures of a bag by number, one pass for each camera however many episodes."""

    def __init__(self, source: _Source):
        self._source = source
        self._raws: dict[str, Generator[tuple[int, bytes], None, None]] = {}
        self._last: dict[str, tuple[int, np.ndarray | None]] = {}
        self.broken = 0

    def close(self) -> None:
        """Close the bag."""
        for raws in self._raws.values():
            raws.close()

    def of(self, camera: str, numbers: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the picture of each number, which ascend from call to call.

        The same object as before where the number is the same, or where one cannot be decoded.
        """
        if camera not in self._raws:
            self._raws[camera] = self._read(self._source.rows.cameras[camera])
        at, picture = self._last.get(camera, (-1, None))
        for wanted in numbers.tolist():
            raw = None
            while at < wanted:
                at, raw = next(self._raws[camera], (-1, b''))
                if at < 0:
                    raise BagError(f"The bag '{self._source.path}' has fewer pictures of "
                                   f"'{camera}' than before; was it changed meanwhile?")
            if raw is not None:
                picture = self._decode(camera, raw, picture)
                self._last[camera] = at, picture
            assert picture is not None
            yield picture

    def _read(self, topic: str) -> Generator[tuple[int, bytes], None, None]:
        with Bag(self._source.path) as bag:
            for number, (_, _, raw) in enumerate(bag.messages([topic])):
                yield number, raw

    def _decode(self, camera: str, raw: bytes, before: np.ndarray | None) -> np.ndarray:
        try:
            if self._source.rows.topics.streams.is_compressed(camera):
                return decode_compressed(read_compressed_image(raw))
            return decode_image(read_image(raw))
        except ValueError as error:
            self.broken += 1
            if before is not None:
                return before
            raise BagError(f"A picture of '{camera}' in the bag '{self._source.path}' cannot be "
                           f'decoded: {error}') from error
