"""Frames decoded in advance, since a GPU trains faster than pictures can be decoded.

What the vision encoders see of a folder of demonstrations is kept beside it, in
`decoded-<side>px`, 0.3 MB a frame, and mapped into memory, so that runs share it. The rest of all
frames fits into memory.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from vla_policy_node.common.worker_pool import interrupts_blocked
from vla_policy_node.outputs.files import allow_umask
from vla_policy_node.training.batches import Batch, BatchMaker, questions_of
from vla_policy_node.training.demonstrations import Demonstrations

_FRAMES = 16  # that a process decodes between two messages
_task: tuple  # of a process that decodes: source, maker, folder


class DecodedFrames:
    """Batches of the frames of one folder, without augmentation."""

    def __init__(
        self,
        source: Demonstrations,
        maker: BatchMaker,
        normalise: Callable[[Tensor], Tensor],
        device: torch.device,
    ):
        """Decode what is not decoded yet, on all cores."""
        self._maker, self._normalise, self._device = maker, normalise, device
        self._views = decode(source, maker)
        frames = [source.load(index, pictures=False) for index in range(len(source))]
        asked = [questions_of(frame) for frame in frames]
        self._count = np.array([len(questions) for questions in asked])
        self._first = np.cumsum(self._count) - self._count
        self._facts = maker.facts(frames)
        self._questions = maker.questions([frame for questions in asked for frame in questions])

    def batch(self, frames: np.ndarray, rng: np.random.Generator, plain: bool = True) -> Batch:
        """As `data.FreshFrames.batch`; always plain."""
        picked = torch.from_numpy(frames)
        question = torch.from_numpy(
            self._first[frames] + rng.integers(self._count[frames]))
        views = {name: self._gather(view, picked) for name, view in self._views.items()}
        return Batch(
            pixels=self._normalise(views['pictures']),
            coverage=self._maker.coverage(views['counts'].float()),
            things=views['things'],
            **{name: fact[picked].to(self._device) for name, fact in self._facts.items()},
            **{name: part[question].to(self._device) for name, part in self._questions.items()},
        )

    def _gather(self, values: Tensor, rows: Tensor) -> Tensor:
        pinned = self._device.type == 'cuda'
        gathered = torch.empty((len(rows), *values.shape[1:]), dtype=values.dtype,
                               pin_memory=pinned)
        return torch.index_select(values, 0, rows, out=gathered).to(
            self._device, non_blocking=pinned)


def decode(source: Demonstrations, maker: BatchMaker) -> dict[str, Tensor]:
    """Return the views of all frames, mapped into memory: see `batches.View`, frames first.

    ValueError with one sentence if what was decoded earlier is not of these frames.
    """
    # An array of nothing cannot be mapped.
    things = max(1, *(len(source.load(int(i), pictures=False).objects)
                      for i in np.flatnonzero(source.frames[:, 1] == 0)))
    view = maker.look(source.load(0), np.random.default_rng(0))
    cameras, _, patches = view.counts.shape
    kinds = {
        'pictures': (np.uint8, (len(source), *view.pictures.shape)),
        'counts': (view.counts.dtype, (len(source), cameras, things, patches)),
        'things': (np.bool_, (len(source), *view.things.shape)),
    }
    folder = source.directory / f'decoded-{view.pictures.shape[1]}px'
    if not folder.is_dir():
        _decode_all(source, maker, kinds, folder)
    views = {name: np.load(folder / f'{name}.npy', mmap_mode='c') for name in kinds}
    newest = max(episode.stat().st_mtime for episode in source.episodes)
    if newest > folder.stat().st_mtime or any(
        (views[name].dtype, views[name].shape) != kind for name, kind in kinds.items()
    ):
        raise ValueError(
            f'{folder} is of other demonstrations or for another model; delete it, it will be '
            'made again.')
    return {name: torch.from_numpy(view) for name, view in views.items()}


def _decode_all(
    source: Demonstrations, maker: BatchMaker, kinds: Mapping[str, tuple], folder: Path
) -> None:
    """Fill `folder`, which is there whole or not at all; kinds: name -> dtype and shape."""
    unfinished = Path(tempfile.mkdtemp(prefix=f'.{folder.name}-', dir=folder.parent))
    starts = range(0, len(source), _FRAMES)
    try:
        for name, kind in kinds.items():
            np.lib.format.open_memmap(unfinished / f'{name}.npy', 'w+', *kind)
        # Processes, because half of the work is Python's; forked, because they never touch the
        # GPU.
        with interrupts_blocked():
            workers = multiprocessing.get_context('fork').Pool(
                initializer=_begin, initargs=(source, maker, unfinished))
        with workers as pool:
            done = pool.imap_unordered(_decode_some, starts)
            for _ in track(done, f'decoding {folder.parent.name}', len(starts), transient=True):
                pass
        allow_umask(unfinished)
        if not folder.is_dir():  # else another run was faster
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _begin(*task: object) -> None:
    global _task
    _task = task
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _decode_some(start: int) -> None:
    source, maker, folder = _task
    parts = {file.stem: np.load(file, mmap_mode='r+') for file in folder.iterdir()}
    for index in range(start, min(start + _FRAMES, len(source))):
        view = maker.look(source.load(index), np.random.default_rng(0))
        parts['pictures'][index] = view.pictures
        parts['counts'][index, :, : view.counts.shape[1]] = view.counts
        parts['things'][index] = view.things
