"""Weights for averaging the predictions of several chunks for the same control period.

Candidates are always ordered oldest first. Public implementations disagree about the order
(ACT: index 0 is the oldest; RoboDual: the newest), so it is part of every signature here.
Validity is the caller's business: a candidate that is exactly zero is a prediction like any other.
"""

import math
from dataclasses import dataclass

import numpy as np

WEIGHTINGS = ('act', 'adaptive', 'cogact')


def age_weights(count: int, decay: float = 0.01) -> np.ndarray:
    """Return weights [count], oldest first, summing to 1: w_i ~ exp(-decay * i).

    Temporal ensembling of ACT (arXiv 2304.13705). A positive decay favours the
    OLDEST prediction, 0 is the plain mean, a negative one favours the newest.
    """
    return _softmax(-decay * np.arange(count))


def agreement_weights(candidates: np.ndarray, alpha: float = 0.1) -> np.ndarray:
    """Return weights [n] for candidates [n, D], oldest first: w_k ~ exp(alpha * cos(a_k, a_n)).

    a_n is the newest. Adaptive action ensemble of CogACT (arXiv 2411.19650). The ratio of two
    weights is at most exp(2 alpha): the published alpha of 0.1 smooths, it rejects no outliers.
    """
    newest = candidates[-1]
    lengths = np.linalg.norm(candidates, axis=1) * np.linalg.norm(newest)
    cosines = candidates @ newest / (lengths + 1e-7)
    return _softmax(alpha * cosines)


@dataclass(frozen=True)
class EnsembleSettings:
    """How `temporal_ensemble` averages.

    weighting: 'act' (by age), 'adaptive' (by agreement with the newest prediction) or 'cogact'
        ('adaptive' as its authors run it, with the gripper like any other dimension).
    decay: for 'act', see `age_weights`.
    alpha: for 'adaptive', see `agreement_weights`.
    horizon: at most this many chunks, the newest ones, are averaged.
    """

    weighting: str = 'act'
    decay: float = 0.01
    alpha: float = 0.1
    horizon: int = 8

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise ValueError(
                f"Ensemble weighting '{self.weighting}' is unknown; use {', '.join(WEIGHTINGS)}."
            )
        for name in ('decay', 'alpha'):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise ValueError(f'Ensemble {name} is {value}; it must be a finite number.')
        if self.horizon < 1:
            raise ValueError(f'Ensemble horizon is {self.horizon}; use at least one chunk.')

    def weights(self, candidates: np.ndarray) -> np.ndarray:
        """Return the weights [n] for candidates [n, D], oldest first."""
        if self.weighting == 'act':
            return age_weights(len(candidates), self.decay)
        return agreement_weights(candidates, self.alpha)


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()
