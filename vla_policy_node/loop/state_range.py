"""Whether the state that a policy is told is one that its training data had."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_policy_node.policy.interface import PolicyDescription, Quantity

# Of the width of a range: a robot may reach a little further than it did in the demonstrations.
_MARGIN = 0.05
# Of a number that never changed, which has no width.
_NOISE = 1e-6
# Of a rotation vector, whose parts cannot be turned one by one.
_ROTATION = ('rx', 'ry', 'rz')


@dataclass(frozen=True)
class Outside:
    """A number of the state outside of what the policy was trained with."""

    quantity: Quantity
    value: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """The sentence for a log or a report."""
        unit = f' {self.quantity.unit}' if self.quantity.unit else ''
        text = (f'{self.quantity.name} is {self.value:.4g}{unit}, outside of what the policy was '
                f'trained with ({self.low:.4g} to {self.high:.4g}{unit})')
        if self.quantity.name in _ROTATION:
            return (f'{text}; compare the frame, and the sign of the quaternion, with those of '
                    'the training data.')
        if _distance(-self.value, self.low, self.high) <= slack(self.low, self.high):
            return f'{text}; with the other sign it would fit: `scale: -1.0` turns it.'
        return f'{text}; compare frame, unit and offset with those of the training data.'


def outside(
    state: np.ndarray, quantities: Sequence[Quantity], low: Sequence[float], high: Sequence[float]
) -> list[Outside]:
    """Return the numbers of a state [P] that lie outside of their ranges, in order. Pure.

    A twentieth of the width of a range is allowed on each side.
    """
    return [Outside(quantity, float(value), bottom, top)
            for quantity, value, bottom, top in zip(quantities, state, low, high, strict=True)
            if not _distance(value, bottom, top) <= slack(bottom, top)]


def _distance(value: float, low: float, high: float) -> float:
    return max(low - value, value - high, 0.0) if math.isfinite(value) else math.inf


def slack(low: float, high: float) -> float:
    """How far outside of a range a value may be."""
    return _MARGIN * (high - low) + _NOISE


class StateWatch:
    """Looks at each state that a policy is told (worker thread); counts by name, any thread."""

    def __init__(self, description: PolicyDescription):
        self._quantities = description.spec.state
        self._low, self._high = description.state_range
        self._is_known = bool(self._quantities) and (
            len(self._low) == len(self._high) == len(self._quantities))
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self._epoch: int | None = None
        self._told: set[str] = set()
        self._looked = 0
        self._counts: Counter[str] = Counter()
        self._worst: dict[str, Outside] = {}

    def look(self, state: np.ndarray, epoch: int) -> list[str]:
        """Return sentences about a state of a goal, each name once per goal."""
        if not self._is_known:
            return []
        self._looked += 1
        if epoch != self._epoch:
            self._epoch, self._told = epoch, set()
        sentences = []
        for found in outside(state, self._quantities, self._low, self._high):
            name = found.quantity.name
            self._counts[name] += 1
            worst = self._worst.setdefault(name, found)
            if _distance(found.value, found.low, found.high) > _distance(
                    worst.value, worst.low, worst.high):
                self._worst[name] = found
            if name not in self._told:
                self._told.add(name)
                sentences.append(f'The state: {found.text}')
        return sentences

    def counts(self) -> dict[str, int]:
        """Return in how many states each number was outside; only those that were."""
        return {f'state_outside.{name}': count for name, count in dict(self._counts).items()}

    def remarks(self) -> list[str]:
        """Return a sentence for each number that was outside, with the value furthest from it."""
        return [f'The state, in {self._counts[name]} of {self._looked} observations: {worst.text}'
                for name, worst in self._worst.items()]
