"""Confidence intervals of success rates, and paired comparisons on identical episodes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from scipy.stats import binomtest

# Quantile of the normal distribution that leaves 2.5 % on either side.
Z_95 = 1.959963984540054


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
