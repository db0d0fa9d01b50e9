"""Confidence intervals of success rates, and paired comparisons on identical episodes.

A p value above 0.05 is no evidence that two methods are equally good. That takes an interval of
the difference, and a margin stated beforehand: `NOT_WORSE_BY`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

# Quantile of the normal distribution that leaves 2.5 % on either side.
Z_95 = 1.959963984540054
# Of the success rate: a method that loses less than this is as good for whoever chooses one.
NOT_WORSE_BY = 0.05
BOOTSTRAP_DRAWS = 10_000


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Return the 95 % interval of a success rate (Wilson 1927), (0, 1) for no episodes.

    Unlike rate +- 2 standard errors, it stays within [0, 1] and has a width at 0 and 100 %.
    """
    if not 0 <= successes <= episodes:
        raise ValueError(f'{successes} successes in {episodes} episodes cannot be.')
    if not episodes:
        return 0.0, 1.0
    rate, z2 = successes / episodes, Z_95**2 / episodes
    centre = (rate + z2 / 2) / (1 + z2)
    half = math.sqrt(rate * (1 - rate) * z2 + z2**2 / 4) / (1 + z2)
    # At 0 and n the bound is exact; rounding must not put the rate outside its interval.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == episodes else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class Paired:
    """Comparison of two methods on the same episodes.

    only_first, only_second: episodes in which only one of them succeeded; b and c of McNemar's
    test. p_value: exact and two-sided, of the hypothesis that both are equally good; 1 if they
    never differed.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float

    @property
    def episodes(self) -> int:
        """Episodes that both ran."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Success rate of the second minus that of the first; NaN without episodes."""
        if not self.episodes:
            return math.nan
        return (self.only_second - self.only_first) / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference; (-1, 1) without episodes.

        Newcombe 1998 (Statistics in Medicine 17, 2635-2650), method 10: Wilson's intervals of both
        rates, and how far the outcomes go together.
        """
        n = self.episodes
        if not n:
            return -1.0, 1.0
        first, second = self.both + self.only_first, self.both + self.only_second
        below, above = zip(*(
            (count / n - low, high - count / n) for count in (first, second)
            for low, high in (wilson_interval(count, n),)), strict=True)
        phi = self._correlation
        return (
            self.difference - _combined(below[1], above[0], phi),
            self.difference + _combined(above[1], below[0], phi))

    @property
    def verdict(self) -> str:
        """What the interval allows to say of the second method, in words."""
        low, high = self.interval
        if low > 0:
            return 'better'
        if high < 0:
            return 'worse'
        return f'not worse by {100 * NOT_WORSE_BY:.0f} points' if low > -NOT_WORSE_BY else (
            'undecided')

    @property
    def _correlation(self) -> float:
        """Phi of the four counts, with Newcombe's correction for continuity; 0 if undefined."""
        both, b, c, neither = self.both, self.only_first, self.only_second, self.neither
        product = (both + b) * (c + neither) * (both + c) * (b + neither)
        together: float = both * neither - b * c
        if together > 0:
            together = max(together - self.episodes / 2, 0)
        return together / math.sqrt(product) if product else 0.0


def compare(first: Mapping[Hashable, bool], second: Mapping[Hashable, bool]) -> Paired:
    """Compare two methods by the episodes that both ran; values say whether it succeeded."""
    shared = first.keys() & second.keys()
    counts = {(a, b): 0 for a in (True, False) for b in (True, False)}
    for episode in shared:
        counts[bool(first[episode]), bool(second[episode])] += 1
    only_first, only_second = counts[True, False], counts[False, True]
    return Paired(
        counts[True, True], only_first, only_second, counts[False, False],
        mcnemar_exact(only_first, only_second),
    )


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p value of discordant counts under a fair coin."""
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values that hold for all rows of a table at once (Holm 1979)."""
    order = np.argsort(p_values, kind='stable')
    adjusted = [0.0] * len(order)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def clustered_interval(
    first: Mapping[tuple[int, Hashable], bool], second: Mapping[tuple[int, Hashable], bool]
) -> tuple[float, float]:
    """Return the 95 % interval of the difference for other tasks, not only other episodes.

    first, second: (task, episode) -> success. Percentiles of a bootstrap that draws whole tasks,
    as episodes of one task resemble each other. (-1, 1) for fewer than two tasks.
    """
    tasks: dict[int, list[int]] = {}
    for task, episode in first.keys() & second.keys():
        key = task, episode
        tasks.setdefault(task, []).append(int(second[key]) - int(first[key]))
    if len(tasks) < 2:
        return -1.0, 1.0
    chosen = sorted(tasks)
    gains = np.array([sum(tasks[task]) for task in chosen])
    episodes = np.array([len(tasks[task]) for task in chosen])
    times = np.random.default_rng(0).multinomial(
        len(chosen), [1 / len(chosen)] * len(chosen), BOOTSTRAP_DRAWS)
    low, high = np.percentile(times @ gains / (times @ episodes), [2.5, 97.5])
    return float(low), float(high)


def _combined(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))
