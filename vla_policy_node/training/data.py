"""Frames of demonstrations and still scenes, drawn so that a run can stop and go on exactly."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from vla_policy_node.training.batches import Batch, BatchMaker, ask_for_anything
from vla_policy_node.training.config import TrainingConfig
from vla_policy_node.training.demonstrations import Demonstrations
from vla_policy_node.world.words import GOALS

VALIDATION_EVERY = 25  # every so many-th episode is kept out of training


class TrainingData:
    """Batches by step number: what a step sees depends on seed, step and rank alone.

    Nothing has to be saved to resume. The next batch is made while the present one is in use.
    """

    def __init__(
        self,
        maker: BatchMaker,
        demonstrations: Demonstrations | None,
        scenes: Demonstrations | None,
        config: TrainingConfig,
        rank: int = 0,
        processes: int = 1,
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
        self._demonstrations = _split(demonstrations)
        self._scenes = _split(scenes)
        self._ahead = ThreadPoolExecutor(1)
        self._next: tuple[int, Future] | None = None

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        number, future = self._next or (None, None)
        if number != step:
            future = self._ahead.submit(self._make, step)
        self._next = step + 1, self._ahead.submit(self._make, step + 1)
        return future.result()

    def validation(self, count: int, first_frames: bool = False) -> list[Batch]:
        """`count` frames that training never sees, the same ones every time.

        first_frames: only those that begin an episode, where nothing but the image tells where
            the thing is.
        """
        source, _, held_out = self._demonstrations or self._scenes
        if first_frames:
            held_out = held_out[source.frames[held_out, 1] == 0]
        rng = np.random.default_rng(0)
        chosen = rng.choice(held_out, min(count, len(held_out)), replace=False)
        frames = [source.load(int(i)) for i in chosen]
        frames = [f if f.has_actions else ask_for_anything(f, rng) for f in frames]
        return [
            self._maker.plain()(frames[i : i + self._per_process], rng)
            for i in range(0, len(frames), self._per_process)
        ]

    def _make(self, step: int) -> Batch:
        rng = np.random.default_rng([self._config.seed, step, self._rank])
        frames = []
        for split, count in (
            (self._scenes, self._scene_samples),
            (self._demonstrations, self._per_process - self._scene_samples),
        ):
            if count:
                source, training, _ = split
                frames += [source.load(int(i)) for i in rng.choice(training, count)]
        frames = [f if f.has_actions else ask_for_anything(f, rng) for f in frames]
        return self._maker(frames, rng)


def _split(source: Demonstrations | None) -> tuple | None:
    """Return the source, its training frames and its held-out frames."""
    if source is None:
        return None
    if source.document['suite'] not in GOALS:
        raise ValueError(
            f'{source.directory} is of {source.document["suite"]}; training knows where things '
            f'belong in {" and ".join(GOALS)}.')
    held_out = source.frames[:, 0] % VALIDATION_EVERY == 0
    if held_out.all() or not held_out.any():
        raise ValueError(
            f'{source.directory} has too few episodes: at least {VALIDATION_EVERY} are needed.')
    return source, np.flatnonzero(~held_out), np.flatnonzero(held_out)
