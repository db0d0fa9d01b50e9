"""Verdicts of the checks, and tolerances against reference values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

# WARN: may be wrong, and nothing here can tell.
PASS, WARN, FAIL, SKIP = 'pass', 'warn', 'FAIL', 'skip'


@dataclass(frozen=True)
class Finding:
    """One check and its verdict: PASS, WARN, FAIL or SKIP, and why in one sentence."""

    name: str
    verdict: str
    text: str


@dataclass(frozen=True)
class Comparison:
    """Deviation of one stage of one recorded case from the reference.

    error, tolerance: in the same unit. error is inf if the two cannot be compared, text says why;
    tolerance is inf for what nothing here computes yet.
    case: name of the recording.
    """

    stage: str
    error: float
    tolerance: float
    case: str
    text: str = ''

    @property
    def ok(self) -> bool:
        """Whether the stage is within its tolerance; NaN is not."""
        return self.error <= self.tolerance

    @property
    def verdict(self) -> str:
        """PASS, FAIL or SKIP."""
        if np.isinf(self.tolerance):
            return SKIP
        return PASS if self.ok else FAIL

    @property
    def ratio(self) -> float:
        """Error in tolerances; larger is worse."""
        if self.error == 0:
            return 0.0
        if not self.error < np.inf or not self.tolerance:
            return np.inf
        return self.error / self.tolerance


# A rule maps our value and the reference to the error and the tolerance.
Rule = Callable[[np.ndarray, np.ndarray], tuple[float, float]]


def relative(share: float) -> Rule:
    """Largest difference; at most this share of the largest reference value."""
    return lambda value, reference: (
        _largest(value, reference),
        share * float(np.abs(reference.astype(np.float64)).max(initial=0.0)),
    )


def absolute(tolerance: float) -> Rule:
    """Largest difference; at most this."""
    return lambda value, reference: (_largest(value, reference), tolerance)


def each(share: float) -> Rule:
    """Largest difference beside its own reference value, of which at most this share, or beside 1.

    For numbers of which some are a million times as large as others, such as what never changed
    and is divided by its range.
    """
    def rule(value: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
        scale = np.maximum(1, np.abs(reference.astype(np.float64)))
        return float((np.abs(value - reference) / scale).max(initial=0.0)), share

    return rule


def exact(value: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Count of entries that differ; there may be none."""
    return float((value != reference).sum()), 0.0


def share_of_differing(tolerance: float) -> Rule:
    """Share of entries that differ; at most this."""
    return lambda value, reference: (float((value != reference).mean()), tolerance)


def compare(stage: str, rule: Rule, value: object, reference: object, case: str) -> Comparison:
    """Apply a rule; arrays of different shape are as far apart as can be."""
    value, reference = as_array(value), as_array(reference)
    if value.size == reference.size and value.ndim != reference.ndim:
        value = value.reshape(reference.shape)  # batches of one
    if value.shape != reference.shape:
        return Comparison(
            stage, np.inf, 0.0, case,
            f'has shape {list(value.shape)}, the recording {list(reference.shape)}',
        )
    error, tolerance = rule(value, reference)
    return Comparison(stage, np.inf if np.isnan(error) else error, tolerance, case)


def worst_by_stage(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Return the worst comparison of each stage, in the order of the stages."""
    worst: dict[str, Comparison] = {}
    for comparison in comparisons:
        known = worst.get(comparison.stage)
        if known is None or comparison.ratio > known.ratio:
            worst[comparison.stage] = comparison
    return list(worst.values())


def as_array(value: object) -> np.ndarray:
    """Return a tensor, list or number as an array."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    return np.asarray(value)


def _largest(value: np.ndarray, reference: np.ndarray) -> float:
    difference = np.abs(value.astype(np.float64) - reference.astype(np.float64))
    return float(difference.max(initial=0.0))
