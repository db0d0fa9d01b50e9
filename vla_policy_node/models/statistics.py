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
    (the gripper). proprio_low, proprio_high: [8], [0] for a policy without proprio.
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


def read_statistics(document: Mapping, key: str = '', proprio: bool = True) -> Statistics:
    """Pick one data set of a parsed `dataset_statistics.json`.

    key: may be empty if the file holds one data set. proprio: whether the policy has any.
    ValueError if the key names none of them, or for numbers that no policy can use.
    """
    names = ', '.join(document)
    if not key and len(document) == 1:
        key = next(iter(document))
    if not key:
        raise ValueError(f'The checkpoint knows several data sets; choose one of {names}.')
    if key not in document:
        raise ValueError(f'The checkpoint has no statistics {key!r}; choose one of {names}.')
    action = document[key]['action']
    state = document[key]['proprio'] if proprio else {'q01': [], 'q99': []}
    mask = action.get('mask', [True] * ACTION_DIMENSION)
    statistics = Statistics(
        key=key,
        action_low=_numbers(action['q01'], ACTION_DIMENSION, f'{key}.action.q01'),
        action_high=_numbers(action['q99'], ACTION_DIMENSION, f'{key}.action.q99'),
        action_mask=_numbers(mask, ACTION_DIMENSION, f'{key}.action.mask').astype(bool),
        proprio_low=_numbers(state['q01'], PROPRIO_DIMENSION * proprio, f'{key}.proprio.q01'),
        proprio_high=_numbers(state['q99'], PROPRIO_DIMENSION * proprio, f'{key}.proprio.q99'),
    )
    for name in ('action', 'proprio'):
        low, high = (getattr(statistics, f'{name}_{end}') for end in ('low', 'high'))
        if (low > high).any():
            raise ValueError(
                f'Statistics {key!r} are damaged: q01 of {name} dimension '
                f'{int((low > high).argmax())} is above q99.'
            )
    return statistics


def _numbers(values: object, length: int, name: str) -> np.ndarray:
    try:
        numbers = np.array(values, np.float64)
    except (TypeError, ValueError):
        numbers = np.array(np.nan)
    if numbers.shape != (length,):
        raise ValueError(
            f'Statistics {name} must be a list of {length} numbers, as this policy has '
            f'{length} dimensions there, not {values!r}.'
        )
    if not np.isfinite(numbers).all():
        raise ValueError(f'Statistics {name} must be finite, not {values!r}.')
    return numbers
