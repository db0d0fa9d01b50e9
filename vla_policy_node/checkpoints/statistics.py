"""Ranges of the training data: what the numbers of proprio and actions mean.

OpenVLA-OFT's BOUNDS_Q99: the 1st and 99th percentile of a dimension become -1 and 1. Its BOUNDS,
for ALOHA: the least and the largest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from vla_policy_node.checkpoints.entries import Entries, is_number
from vla_policy_node.checkpoints.reading import listed, plain, shown
from vla_policy_node.policy.interface import PolicySpec

STATISTICS = 'dataset_statistics.json'
LARGEST = 1e9  # of any number of a robot, whatever its unit; differences of these are exact enough

# Part of the definition, so that a dimension that never moved does not divide by zero.
RANGE_EPS = 1e-8


@dataclass(frozen=True)
class Statistics:
    """Ranges of one data set, all float64, for actions of A numbers and states of P.

    action_low, action_high: [A]. action_mask: [A] bool, False where actions stay as they are
    (the gripper). proprio_low, proprio_high: [P], [0] for a policy without proprio.
    proprio_seen: [2, P] least and largest in the data set, or the percentiles if it does not say.
    """

    key: str
    action_low: np.ndarray
    action_high: np.ndarray
    action_mask: np.ndarray
    proprio_low: np.ndarray
    proprio_high: np.ndarray
    proprio_seen: np.ndarray = field(default_factory=lambda: np.empty((2, 0)))

    def normalise_proprio(self, proprio: np.ndarray) -> np.ndarray:
        """[P] in m and rad -> [P] float64 in [-1, 1]; what lies outside the range is clipped."""
        span = self.proprio_high - self.proprio_low + RANGE_EPS
        return np.clip(2 * (proprio - self.proprio_low) / span - 1, -1, 1)

    def normalise_actions(
        self, actions: np.ndarray, proprio: np.ndarray | None = None
    ) -> np.ndarray:
        """[..., A] in dataset units -> [..., A] float64; the inverse of the next function."""
        span = self.action_high - self.action_low + RANGE_EPS
        return np.where(self.action_mask, 2 * (actions - self.action_low) / span - 1, actions)

    def unnormalise_actions(
        self, actions: np.ndarray, proprio: np.ndarray | None = None
    ) -> np.ndarray:
        """[..., A] -> [..., A] float64 in dataset units; nothing is clipped.

        proprio: [P] in dataset units as the chunk began, for actions that count from there
        (`checkpoints.scaled_statistics`); these do not.
        """
        span = self.action_high - self.action_low + RANGE_EPS
        return np.where(self.action_mask, 0.5 * (actions + 1) * span + self.action_low, actions)


def key_of_suite(names: Collection[str], suite: str) -> str:
    """Return which data set is that of a suite of tasks, '' for none.

    As in the public evaluation code: the one of its name, else the one without idle steps.
    """
    return next((name for name in (suite, f'{suite}_no_noops') if name in names), '')


def read_statistics(
    document: Mapping,
    key: str = '',
    spec: PolicySpec | None = None,
    ranges: tuple[str, str] = ('q01', 'q99'),
) -> Statistics:
    """Pick one data set of a parsed `dataset_statistics.json`.

    key: may be empty if the file holds one data set. spec: of the policy. ranges: the entries
    that become -1 and 1. ValueError if the key names none of them, or for numbers that the policy
    cannot use.
    """
    spec = spec or PolicySpec()
    actions, states = len(spec.actions), len(spec.state)
    bottom, top = ranges
    entries = Entries(document, STATISTICS)
    names = entries.names()
    if not names:
        raise ValueError(f'{STATISTICS} holds no data set; put the real file there.')
    if not key and len(names) == 1:
        key = names[0]
    if not key:
        raise ValueError(
            f'The checkpoint knows several data sets; choose one of {listed(names)} as '
            'statistics_key (--statistics-key).')
    if key not in names:
        raise ValueError(
            f'The checkpoint has no statistics {key!r}; choose one of {listed(names)}.')
    if not key.isprintable():
        raise ValueError(
            f'{STATISTICS} has a data set {plain(key)}, which cannot be printed; rename it there.')
    data_set = entries.inside(key)
    action, name = data_set.inside('action'), plain(key)
    state = data_set.inside('proprio') if states else None
    mask = action.value('mask', [True] * actions)
    statistics = Statistics(
        key=key,
        action_low=_numbers(action, bottom, actions, f'{name}.action'),
        action_high=_numbers(action, top, actions, f'{name}.action'),
        action_mask=_flags(mask, actions, f'{name}.action.mask'),
        proprio_low=_proprio(state, bottom, states, name),
        proprio_high=_proprio(state, top, states, name),
        proprio_seen=_seen(state, ranges, states, name),
    )
    for kind in ('action', 'proprio'):
        low, high = (getattr(statistics, f'{kind}_{end}') for end in ('low', 'high'))
        if (low > high).any():
            raise ValueError(
                f'Statistics {shown(key)} are damaged: {bottom} of {kind} dimension '
                f'{int((low > high).argmax())} is above {top}.'
            )
    return statistics


def _proprio(state: Entries | None, key: str, length: int, name: str) -> np.ndarray:
    if state is None:
        return np.empty(0)
    return _numbers(state, key, length, f'{name}.proprio')


def _seen(state: Entries | None, ranges: tuple[str, str], length: int, name: str) -> np.ndarray:
    """Return the least and the largest, which no inference needs: they may be missing or wrong."""
    ends = []
    for key, instead, outer in zip(('min', 'max'), ranges, (np.minimum, np.maximum), strict=True):
        sure = _proprio(state, instead, length, name)
        try:
            ends.append(outer(sure, _proprio(state, key, length, name)))
        except ValueError:
            ends.append(sure)
    return np.stack(ends)


def _numbers(entries: Entries, key: str, length: int, place: str) -> np.ndarray:
    values = entries.value(key)
    if not isinstance(values, list) or len(values) != length or not all(
        type(value) in (int, float) for value in values
    ):
        raise _not_a_list(f'{place}.{key}', length, 'numbers', values)
    if not all(is_number(value) and abs(value) <= LARGEST for value in values):
        raise ValueError(
            f'Statistics {place}.{key} must be finite, and at most {LARGEST:g}, not '
            f'{shown(values)}; take the file that belongs to the weights.'
        )
    return np.array(values, np.float64)


def _flags(values: object, length: int, name: str) -> np.ndarray:
    if not isinstance(values, list) or len(values) != length or not all(
        type(value) in (bool, int, float) and value in (0, 1) for value in values
    ):
        raise _not_a_list(name, length, 'numbers, 0 or 1,', values)
    return np.array(values, bool)


def _not_a_list(name: str, length: int, kind: str, values: object) -> ValueError:
    return ValueError(
        f'Statistics {name} must be a list of {length} {kind} as this policy has {length} '
        f'dimensions there, not {shown(values)}.'
    )
