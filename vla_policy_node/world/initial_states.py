"""LIBERO's initial states, converted once from torch archives to npz."""

from __future__ import annotations

import _codecs
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def read_init_file(path: Path) -> np.ndarray:
    """Read a `.pruned_init` file: [states, 1 + nq + nv] float64 (time, positions, velocities).

    The archive is a pickle. `weights_only=True` lets it name nothing but the five globals that
    make up a numpy array, so a tampered file is refused and never run.
    """
    import torch  # slow to import, and needed for the conversion alone

    reconstruct = np.zeros(0).__reduce__()[0]  # its module has another name in numpy 2
    allowed = [
        (reconstruct, 'numpy.core.multiarray._reconstruct'),
        np.ndarray,
        np.dtype,
        type(np.dtype(np.float64)),
        _codecs.encode,
    ]
    with torch.serialization.safe_globals(allowed):
        return np.asarray(torch.load(path, weights_only=True), dtype=np.float64)


def convert_initial_states(files: Iterable[Path], target: Path) -> None:
    """Write the states of `files`, `<folder>/<suite>/<task>.pruned_init`, to one npz."""
    states = {f'{file.parent.name}/{file.stem}': read_init_file(file) for file in files}
    np.savez_compressed(target, **states)


def load_initial_states(archive: Path, suite: str, task: str) -> np.ndarray:
    """Return [states, 1 + nq + nv] float64 of one task."""
    with np.load(archive, allow_pickle=False) as states:
        return states[f'{suite}/{task}']
