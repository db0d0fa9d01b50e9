"""DeeR: stop in the layer where the answer no longer changes (NeurIPS 2024).

"Dynamic Inference of Multimodal Large Language Models for Efficient Robot Execution", arXiv
2411.02359, in the form of its public code (yueyang130/DeeR-VLA). Every `every` layers the one
action head, shared by all exits, reads the action rows behind the final norm; the pass ends
where two exits in a row agree:

    delta_i = sqrt(mean over chunk and pose of (a_i - a_(i-1))^2) <= eta_i

The gripper is not part of the pose; before the first exit stands the answer one layer earlier.
The thresholds come from demonstrations: fractions proportional to r^k of them are to leave at
exit k = 1, 2, ..., and eta_k is the quantile among those still under way (`calibrate`). Here the
head has no memory, so there is none to keep; the published one is an LSTM. `vla train deer` trains
the head on all exits at equal weights, and calibrates; the code also draws exits at random.
Published ratios r are 0.8, 1.0 and 1.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vla_policy_node.acceleration.base import Capability, Effect, Method, Report
from vla_policy_node.acceleration.method_weights import read_weights, save_weights
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.hooks import Answer

FILE_NAME = 'method--deer.safetensors'
EVERY = 2  # layers from one exit to the next, as published
POSE = slice(0, 6)


class Deer(Method):
    """Leaves out the layers behind the first exit that agrees with the one before it.

    every: layers from one exit to the next; published is 2. A trained checkpoint overrides it.
    threshold: for all exits; 0 uses those that the checkpoint was calibrated with, below 0 never
        stops.
    """

    name = 'deer'
    needs = frozenset({Capability.LAYERS, Capability.EARLY_ANSWERS})
    does = frozenset({Effect.EXITS_EARLY, Effect.COST_VARIES})
    off: ClassVar = {'threshold': -1.0}
    weights_file = FILE_NAME

    def __init__(self, *, every: int = EVERY, threshold: float = 0.0):
        if every < 1:
            raise ValueError(f'deer needs at least 1 layer between exits, not {every}.')
        self.every = every
        self.threshold = threshold
        self._thresholds: dict[int, float] = {}
        self._config: ModelConfig  # from `prepare` on
        self.reset()

    @classmethod
    def save_untrained(cls, checkpoint: Path, config: ModelConfig) -> None:
        """Write a threshold for each of the published exits."""
        exits = exits_of(config.language_model.layers, EVERY)
        save_thresholds(checkpoint, exits, np.full(len(exits), 0.1))

    def prepare(self, checkpoint: Path, config: ModelConfig) -> None:
        """Read the thresholds, if they are not given."""
        self._config = config
        if self.threshold:
            exits = exits_of(config.language_model.layers, self.every)
            self._thresholds = dict.fromkeys(exits, self.threshold)
        else:
            self._thresholds = load_thresholds(checkpoint, config.language_model.layers)

    def begin_pass(self) -> None:
        """Forget the answers of the last pass."""
        self._previous: Tensor | None = None
        self._asked, self._flops = True, 0

    def should_exit(self, index: int, answer: Answer) -> bool:
        """Compare the answer of this exit with that of the previous one."""
        if index in self._thresholds or index + 1 == min(self._thresholds, default=0):
            now = answer()
            self._asked, self._flops = True, self._flops + answer.flops
            before, self._previous = self._previous, now
            if before is not None and index in self._thresholds:
                return float(distance(before, now)) <= self._thresholds[index]
        return False

    def reset(self) -> None:
        """Forget the last pass; nothing crosses steps."""
        self._previous = None
        self._asked, self._flops = False, 0

    def report(self) -> Report | None:
        """All tokens stay; running the head at the exits costs."""
        if not self._asked:
            return None
        kept = np.ones(self._config.visual_tokens, bool)
        return Report(kept, flops=self._flops)


def exits_of(layers: int, every: int) -> list[int]:
    """After how many layers a pass may end early: every, 2 every, ..., less than all.

    There is no exit after a single layer: it has none before it to agree with.
    """
    return [count for count in range(every, layers, every) if count > 1]


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Distance of two answers [B, K, D], [B]."""
    return (first - second)[..., POSE].square().mean(dim=(1, 2)).sqrt()


def calibrate(deltas: np.ndarray, ratio: float) -> np.ndarray:
    """Thresholds [E] with which wanted fractions of the samples leave at the exits.

    deltas: [N, E], distance of each sample at each exit. ratio: r; the fraction at exit k of E, or
    at the end for k = E + 1, is proportional to r^k.
    """
    samples, exits = deltas.shape
    fractions = ratio ** np.arange(1, exits + 2)
    leave = (samples * fractions / fractions.sum()).astype(int)
    left = np.arange(samples)
    thresholds = np.empty(exits)
    for index in range(exits):
        order = left[deltas[left, index].argsort(kind='stable')]
        count = min(leave[index], len(order))
        thresholds[index] = deltas[order[count - 1], index] if count else -1.0
        left = left[deltas[left, index] > thresholds[index]]
    return thresholds


def save_thresholds(checkpoint: Path, exits: Sequence[int], thresholds: np.ndarray) -> None:
    """Write what `calibrate` found into the directory of the checkpoint it is for."""
    save_weights(checkpoint / FILE_NAME, {
        'exits': torch.tensor(exits, dtype=torch.int64),
        'thresholds': torch.as_tensor(thresholds, dtype=torch.float64),
    })


def load_thresholds(checkpoint: Path, layers: int) -> dict[int, float]:
    """Read what `save_thresholds` wrote; ValueError if it is missing or does not fit."""
    path = checkpoint / FILE_NAME
    tensors = read_weights(
        path, 'it was not trained for early exits; train it with `vla train deer`, or give a '
        'threshold')
    exits, thresholds = (
        tensors.get(name, torch.zeros(0)).flatten().tolist() for name in ('exits', 'thresholds'))
    if len(exits) != len(thresholds) or not all(
        1 < count < layers and count == int(count) for count in exits
    ):
        raise ValueError(f'{path} is for another model: this one has {layers} layers.')
    return dict(zip(exits, thresholds, strict=True))
