"""Samples frames of demonstrations and still scenes, resumable at any step."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from vla_policy_node.training.batches import Batch, BatchMaker, questions_of
from vla_policy_node.training.config import TrainingConfig
from vla_policy_node.training.decoded import DecodedFrames
from vla_policy_node.training.demonstrations import Demonstrations
from vla_policy_node.world.words import GOALS

VALIDATION_EVERY = 25  # every so many-th episode is kept out of training


class FreshFrames:
    """Batches of the frames of one folder, decoded when asked for; any thread."""

    def __init__(self, source: Demonstrations, maker: BatchMaker):
        self._source, self._maker = source, maker

    def batch(self, frames: np.ndarray, rng: np.random.Generator, plain: bool = False) -> Batch:
        """Put the frames of these numbers together; of what can be asked, `rng` chooses.

        plain: without augmentation.
        """
        questions = [questions_of(self._source.load(int(index))) for index in frames]
        chosen = [asked[rng.integers(len(asked))] for asked in questions]
        return (self._maker.plain() if plain else self._maker)(chosen, rng)


class TrainingData:
    """Batches by step number: what a step sees depends on seed, step and rank alone.

    Nothing has to be saved to resume. The next batch is made while the present one is in use.

    demonstrations: a `Split`, or None without any.
    """

    def __init__(
        self,
        maker: BatchMaker,
        demonstrations: Demonstrations | None,
        scenes: Demonstrations | None,
        config: TrainingConfig,
        rank: int = 0,
        processes: int = 1,
        open_frames: Callable[
            [Demonstrations, BatchMaker], FreshFrames | DecodedFrames] = FreshFrames,
    ):
        """At least one of demonstrations and scenes; without the other, all comes from one."""
        self._maker = maker
        self._config = config
        self._rank = rank
        self._per_process = config.batch // processes
        share = config.scenes_share if demonstrations else 1.0
        if scenes is None:
            share = 0.0
        self._scene_samples = round(self._per_process * share)
        self.demonstrations, self._scenes = (
            source and Split(source, open_frames(source, maker))
            for source in (demonstrations, scenes))
        self._ahead = ThreadPoolExecutor(1)
        self._next: tuple[int, Future] | None = None

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        number, future = self._next or (None, None)
        if number != step:
            future = self._ahead.submit(self._make, step)
        self._next = step + 1, self._ahead.submit(self._make, step + 1)
        return future.result()

    def validation(
        self, count: int, first_frames: bool = False, size: int | None = None
    ) -> list[Batch]:
        """`count` frames that training never sees, the same ones every time.

        size: of the batches; none: as in training.
        first_frames: only those that begin an episode, where nothing but the image tells where
            the thing is.
        """
        split = self.demonstrations or self._scenes
        held_out = split.first_held_out if first_frames else split.held_out
        rng = np.random.default_rng(0)
        chosen = rng.choice(held_out, min(count, len(held_out)), replace=False)
        size = size or self._per_process
        return [
            split.frames.batch(chosen[i : i + size], rng, plain=True)
            for i in range(0, len(chosen), size)
        ]

    def _make(self, step: int) -> Batch:
        rng = np.random.default_rng([self._config.seed, step, self._rank])
        return self._maker.concatenate([
            split.frames.batch(rng.choice(split.training, count), rng)
            for split, count in (
                (self._scenes, self._scene_samples),
                (self.demonstrations, self._per_process - self._scene_samples),
            ) if count
        ])


class Split:
    """The frames of one folder, and the numbers of those for training and of those held out."""

    def __init__(self, source: Demonstrations, frames: FreshFrames | DecodedFrames):
        if source.has_labels and source.document['suite'] not in GOALS:
            raise ValueError(
                f'{source.directory} is of {source.document["suite"]}; training knows where '
                f'things belong in {" and ".join(GOALS)}.')
        held_out = source.frames[:, 0] % VALIDATION_EVERY == 0
        if held_out.all() or not held_out.any():
            raise ValueError(
                f'{source.directory} has too few episodes: at least {VALIDATION_EVERY} are '
                'needed.')
        self.frames = frames
        self.training = np.flatnonzero(~held_out)
        self.held_out = np.flatnonzero(held_out)
        self.first_held_out = np.flatnonzero(held_out & (source.frames[:, 1] == 0))
