"""Ranges of the training data: what the numbers of proprio and actions mean.

OpenVLA-OFT's BOUNDS_Q99: the 1st and 99th percentile of a dimension become -1 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vla_policy_node.models.config import ACTION_DIMENSION, PROPRIO_DIMENSION

# Part of the definition, so that a dimension that never moved does not divide by zero.
RANGE_EPS = 1e-8


@dataclass(frozen=True)
class Statistics:
    """Percentiles of one data set, all float64.

    action_low, action_high: [7]. action_mask: [7] bool, False where actions stay as they are
    (the gripper). proprio_low, proprio_high: [8].
    """

    key: str
    action_low: np.ndarray
    action_high: np.ndarray
    action_mask: np.ndarray
    proprio_low: np.ndarray
    proprio_high: np.ndarray

    def normalise_proprio(self, proprio: np.ndarray) -> np.ndarray:
        """[8] in m and rad -> [8] float64 in [-1, 1]; what lies outside the range is clipped."""
        span = self.proprio_high - self.proprio_low + RANGE_EPS
        return np.clip(2 * (proprio - self.proprio_low) / span - 1, -1, 1)

    def normalise_actions(self, actions: np.ndarray) -> np.ndarray:
        """[..., 7] in dataset units -> [..., 7] float64; the inverse of the next function."""
        span = self.action_high - self.action_low + RANGE_EPS
        return np.where(self.action_mask, 2 * (actions - self.action_low) / span - 1, actions)

    def unnormalise_actions(self, actions: np.ndarray) -> np.ndarray:
        """[..., 7] -> [..., 7] float64 in dataset units; nothing is clipped."""
        span = self.action_high - self.action_low + RANGE_EPS
        return np.where(self.action_mask, 0.5 * (actions + 1) * span + self.action_low, actions)


def read_statistics(document: Mapping, key: str = '') -> Statistics:
    """Pick one data set of a parsed `dataset_statistics.json`.

    key: may be empty if the file holds one data set. ValueError if it names none of them.
    """
    names = ', '.join(document)
    if not key and len(document) == 1:
        key = next(iter(document))
    if not key:
        raise ValueError(f'The checkpoint knows several data sets; choose one of {names}.')
    if key not in document:
        raise ValueError(f'The checkpoint has no statistics {key!r}; choose one of {names}.')
    action, proprio = document[key]['action'], document[key]['proprio']
    statistics = Statistics(
        key=key,
        action_low=np.array(action['q01'], np.float64),
        action_high=np.array(action['q99'], np.float64),
        action_mask=np.array(action.get('mask', [True] * ACTION_DIMENSION), bool),
        proprio_low=np.array(proprio['q01'], np.float64),
        proprio_high=np.array(proprio['q99'], np.float64),
    )
    lengths = len(statistics.action_low), len(statistics.proprio_low)
    if lengths != (ACTION_DIMENSION, PROPRIO_DIMENSION):
        raise ValueError(
            f'Statistics {key!r} have {lengths[0]} action and {lengths[1]} proprio dimensions; '
            f'this policy needs {ACTION_DIMENSION} and {PROPRIO_DIMENSION}.'
        )
    return statistics
