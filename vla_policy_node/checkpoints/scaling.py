"""How numbers of a robot become those of a network and back: a straight line for each number.

The lines of openpi and of LeRobot differ in where they put their epsilon, and in what becomes of
a number that never changed. Neither clips anything: states outside of [-1, 1] are normal, and so
are actions.

| | normalised | un-normalised |
|---|---|---|
| openpi, MEAN_STD | (x - mean) / (std + 1e-6) | x (std + 1e-6) + mean |
| openpi, QUANTILES | 2 (x - q01) / (q99 - q01 + 1e-6) - 1 | the inverse |
| LeRobot, MEAN_STD | (x - mean) / (std + 1e-8) | x std + mean |
| LeRobot, QUANTILES, QUANTILE10, MIN_MAX | 2 (x - low) / d - 1 | (x + 1) d / 2 + low |

d is high - low, and 1e-8 where that is exactly 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# Modes by the names of LeRobot -> the statistics that they use.
MODES: Mapping[str, tuple[str, ...]] = {
    'IDENTITY': (), 'MEAN_STD': ('mean', 'std'), 'MIN_MAX': ('min', 'max'),
    'QUANTILES': ('q01', 'q99'), 'QUANTILE10': ('q10', 'q90')}
LEROBOT_EPS, OPENPI_EPS = 1e-8, 1e-6


@dataclass(frozen=True)
class Rule:
    """Which statistics make the line, and where the epsilon goes.

    mode: one of MODES. eps_when_zero: it replaces a width of exactly 0 and is added to no other.
    eps_back: it is part of the line back as well. partial: statistics may be of fewer numbers
    than there are, and the others stay as they are. single: numbers are rounded to float32 before,
    as statistics were: else a number that never changed would be off by as much as that rounds,
    which its width of nothing makes a lot of.
    """

    mode: str
    eps: float = LEROBOT_EPS
    eps_when_zero: bool = True
    eps_back: bool = False
    partial: bool = False
    single: bool = True

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics that are needed."""
        return MODES[self.mode]

    @classmethod
    def openpi(cls, mode: str) -> Rule:
        """As openpi does it: MEAN_STD for pi0, QUANTILES for all its other policies."""
        return cls(
            mode, OPENPI_EPS, eps_when_zero=False, eps_back=True, partial=True, single=False)

    @classmethod
    def older_lerobot(cls, mode: str) -> Rule:
        """As LeRobot did when statistics were part of the weights."""
        return cls(mode, eps_when_zero=False)


@dataclass(frozen=True, eq=False)
class Scaling:
    """Lines of N numbers, all arrays [N] float64.

    between: origin and the end of its width become -1 and 1, else 0 and 1. width: what
    normalising divides by. width_back: what un-normalising multiplies with.
    """

    rule: Rule
    origin: np.ndarray
    width: np.ndarray
    width_back: np.ndarray

    @classmethod
    def of(cls, rule: Rule, statistics: Mapping[str, np.ndarray], size: int) -> Scaling:
        """Make the lines of `size` numbers; statistics: those that `rule` names, [M] each.

        Of more than `size` the first are taken, as openpi does. ValueError for fewer if the rule
        does not allow that.
        """
        if rule.mode == 'IDENTITY':
            return cls(rule, np.zeros(size), np.ones(size), np.ones(size))
        first, second = (statistics[name][:size] for name in rule.statistics)
        if len(first) < size and not rule.partial:
            raise ValueError(f'there are statistics of {len(first)} numbers for {size}')
        if rule.mode == 'MEAN_STD':  # a number without statistics has the mean 0, deviation 1
            origin, width = np.zeros(size), np.ones(size)
            origin[:len(first)], width[:len(first)] = first, second
        else:  # and without a range it is on the line from itself to itself
            origin, width = np.full(size, -1.0), np.full(size, 2.0)
            origin[:len(first)], width[:len(first)] = first, second - first
        if rule.eps_when_zero and rule.mode != 'MEAN_STD':
            width = np.where(width == 0, rule.eps, width)
            return cls(rule, origin, width, width)
        added = np.full(size, rule.eps)
        if rule.mode != 'MEAN_STD':
            added[len(first):] = 0
        return cls(rule, origin, width + added, width + added * rule.eps_back)

    @property
    def between(self) -> bool:
        """Whether two statistics become -1 and 1, instead of one 0 and the other a width of 1."""
        return self.rule.mode not in ('IDENTITY', 'MEAN_STD')

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """[..., N] in units of the data -> [..., N] float64."""
        values = np.asarray(values, np.float32 if self.rule.single else np.float64)
        values = (values.astype(np.float64) - self.origin) / self.width
        return 2 * values - 1 if self.between else values

    def unnormalise(self, values: np.ndarray) -> np.ndarray:
        """[..., N] -> [..., N] float64 in units of the data."""
        values = np.asarray(values, np.float64)
        return (0.5 * (values + 1) if self.between else values) * self.width_back + self.origin
