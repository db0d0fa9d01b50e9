"""Caches the features that a CogACT head reads of every frame, so that it can train alone.

A head needs many noises for each frame, and vision encoders and language model cost a hundred
times as much per frame as the head per noise. While those stay as they are, a frame has the same
cognition feature each time it is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from vla_policy_node.checkpoints.tensor_files import open_safetensors
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.outputs.files import draft
from vla_policy_node.training.precision import autocast

if TYPE_CHECKING:
    from vla_policy_node.families.cogact import CogAct
    from vla_policy_node.training.batches import Batch
    from vla_policy_node.training.config import TrainingConfig
    from vla_policy_node.training.data import TrainingData

FOLDER = 'cognition'  # in that of the run
_FRAMES = 16  # that run together
_PART = 64  # such runs in one file, which is what an interrupted run loses at most


@dataclass(frozen=True)
class CognitionBatch:
    """B samples, all with actions: states [B, 1, width], actions [B, K, 7] normalised."""

    states: Tensor
    actions: Tensor

    @property
    def has_actions(self) -> Tensor:
        """As in `batches.Batch`, [B] bool."""
        return torch.ones(len(self.actions), dtype=torch.bool, device=self.actions.device)

    def to(self, device: torch.device) -> CognitionBatch:
        """Move everything."""
        return CognitionBatch(self.states.to(device), self.actions.to(device))


class CognitionData:
    """As `data.TrainingData`, with cognition features in place of pictures and words."""

    def __init__(
        self,
        model: CogAct,
        data: TrainingData,
        config: TrainingConfig,
        out: Path,
        source: str,
        rank: int = 0,
        processes: int = 1,
    ):
        """Compute what is not in `out` yet, with a bar.

        Each process keeps a share of the frames to itself. source: identifies the checkpoint of
        `model` and the demonstrations; ValueError if what is there is of others.
        """
        self._model, self._data, self._config, self._rank = model, data, config, rank
        self._per_process = config.batch // processes
        frames = data.demonstrations.training[rank::processes]
        size = _FRAMES * _PART
        parts = [
            self._part(frames[i : i + size], out / FOLDER / f'{rank}-{i}.safetensors', source)
            for i in track(range(0, len(frames), size), 'looking at the frames',
                           transient=True, disable=rank > 0)
        ]
        self._states, self._actions = (
            torch.cat([part[name] for part in parts]) for name in ('states', 'actions'))

    def batch(self, step: int) -> CognitionBatch:
        """Return the batch of a step, which depends on seed, step and rank alone."""
        rng = np.random.default_rng([self._config.seed, step, self._rank])
        rows = torch.from_numpy(rng.integers(len(self._states), size=self._per_process))
        return CognitionBatch(self._states[rows], self._actions[rows])

    def validation(self, count: int, first_frames: bool = False) -> list[CognitionBatch]:
        """As `data.TrainingData.validation`."""
        return [self._look(batch)
                for batch in self._data.validation(count, first_frames, _FRAMES)]

    def _part(self, frames: np.ndarray, path: Path, source: str) -> dict[str, Tensor]:
        if not path.exists():
            rng = np.random.default_rng(0)
            looked = [
                self._look(self._data.demonstrations.frames.batch(some, rng, plain=True))
                for some in np.array_split(frames, -(-len(frames) // _FRAMES))
            ]
            tensors = {name: torch.cat([getattr(batch, name).cpu() for batch in looked])
                       for name in ('states', 'actions')}
            tensors['frames'] = torch.tensor(frames)
            path.parent.mkdir(exist_ok=True)
            with draft(path) as partial:
                save_file(tensors, partial, {'source': source})
        with open_safetensors(path) as (_, get, texts):
            same = texts.get('source') == source and np.array_equal(get('frames'), frames)
            if not same:
                raise ValueError(
                    f'{path.parent} is of another checkpoint, other demonstrations or another '
                    'number of processes; take another --out, or delete it.')
            return {name: get(name) for name in ('states', 'actions')}

    @torch.no_grad()
    def _look(self, batch: Batch) -> CognitionBatch:
        if not batch.has_actions.all():
            raise ValueError(
                'A head learns from actions, and still scenes have none; give --demos a folder of '
                '`vla demos` without --layout scattered.')
        model = self._model
        batch = batch.to(next(model.parameters()).device)
        with autocast(batch.pixels.device):
            visual = model.visual(batch.pixels, batch.prompt_ids)
            states = model.prefill(
                model.assemble(visual, batch.proprio, batch.prompt_ids), ForwardPass())
        return CognitionBatch(states.float(), batch.actions)
