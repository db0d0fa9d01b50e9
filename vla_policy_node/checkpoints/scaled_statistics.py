"""Statistics of policies that normalise as openpi or LeRobot do, by the mode in their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vla_policy_node.checkpoints.conventions import Convention
from vla_policy_node.checkpoints.scaling import Rule, Scaling
from vla_policy_node.checkpoints.statistics import LARGEST, Statistics

Numbers = Mapping[str, np.ndarray]  # a statistic -> its numbers, [N]
_DEVIATIONS = 3  # what is taken for a range where only mean and deviation are known


@dataclass(frozen=True, eq=False)
class ScaledStatistics(Statistics):
    """As `Statistics`, by lines instead of ranges; nothing is clipped.

    action_low, action_high: what an answer spans in the data, in units of the robot; empty if
    nobody knows. proprio_low, proprio_high: of the state, likewise.
    """

    state: Scaling = field(kw_only=True)
    action: Scaling = field(kw_only=True)
    convention: Convention = field(kw_only=True, default_factory=Convention)

    @classmethod
    def of(
        cls, key: str, state: tuple[Rule, Numbers], action: tuple[Rule, Numbers],
        sizes: tuple[int, int], convention: Convention | None = None,
    ) -> ScaledStatistics:
        """Make those of a data set.

        state, action: how they are normalised, and their statistics. sizes: numbers of the state
        and of an action. ValueError with one sentence for statistics that do not fit.
        """
        convention = convention or Convention()
        convention.check(*sizes)
        lines = [
            _line(*part, size, f'{key}.{name}' if key else name)
            for part, size, name in zip((state, action), sizes, ('state', 'action'), strict=True)]
        (low, high), actions = _state_range(state[1], sizes[0], convention), sizes[1]
        action_low, action_high = _action_range(action[1], actions, convention, (low, high))
        mask = np.full(actions, action[0].mode != 'IDENTITY')
        return cls(
            key, action_low, action_high, mask, low, high, np.stack([low, high]),
            state=lines[0], action=lines[1], convention=convention)

    @property
    def summary(self) -> str:
        """How numbers become those of the network, in words."""
        state = self.state.rule.mode if len(self.state.origin) else 'none'
        counted = sum(self.convention.relative)
        return (f'state {state}, actions {self.action.rule.mode}'
                + f'; {counted} of an action count from the state' * bool(counted)
                + '; ALOHA turned into pi' * (self.convention.aloha is not None))

    def normalise_proprio(self, proprio: np.ndarray) -> np.ndarray:
        """[P] of the robot -> [P] float64; nothing is clipped."""
        if self.convention.aloha_normalised:
            return self._told(self.state.normalise(proprio))
        return self.state.normalise(self._told(proprio))

    def normalise_actions(
        self, actions: np.ndarray, proprio: np.ndarray | None = None
    ) -> np.ndarray:
        """[..., A] of the robot -> [..., A] float64; the inverse of the next function."""
        aloha, late = self.convention.aloha, self.convention.aloha_normalised
        if aloha and not late:
            actions = aloha.actions_in(actions)
        actions = self.action.normalise(actions - self._offset(proprio))
        return aloha.actions_in(actions) if aloha and late else actions

    def unnormalise_actions(
        self, actions: np.ndarray, proprio: np.ndarray | None = None
    ) -> np.ndarray:
        """[..., A] -> [..., A] float64 of the robot.

        proprio: [P] of the robot as the chunk began; needed if actions are relative to it.
        """
        aloha, late = self.convention.aloha, self.convention.aloha_normalised
        if aloha and late:
            actions = aloha.actions_out(actions)
        actions = self.action.unnormalise(actions) + self._offset(proprio)
        return aloha.actions_out(actions) if aloha and not late else actions

    def _told(self, proprio: np.ndarray) -> np.ndarray:
        return self.convention.aloha.state_in(proprio) if self.convention.aloha else proprio

    def _offset(self, proprio: np.ndarray | None) -> np.ndarray | float:
        if not any(self.convention.relative):
            return 0.0
        if proprio is None:
            raise ValueError('The actions of this policy count from the state, which is missing.')
        told = proprio if self.convention.aloha_normalised else self._told(proprio)
        return self.convention.offset(told, len(self.action_mask))


def _line(rule: Rule, numbers: Numbers, size: int, place: str) -> Scaling:
    for name in rule.statistics:
        values = numbers.get(name)
        if values is None:
            raise ValueError(
                f'Statistics {place} have no {name}, and the policy normalises by {rule.mode}; '
                'take those of the data that it was trained with.')
        if not (np.isfinite(values) & (np.abs(values) <= LARGEST)).all():
            raise ValueError(
                f'Statistics {place}.{name} must be finite, and at most {LARGEST:g}; take the '
                'file that belongs to the weights.')
    if rule.mode == 'MEAN_STD' and (numbers['std'] < 0).any():
        raise ValueError(f'Statistics {place} are damaged: a deviation is below 0.')
    if rule.statistics and rule.mode != 'MEAN_STD':
        low, high = (numbers[name] for name in rule.statistics)
        if low.shape == high.shape and (low > high).any():
            raise ValueError(
                f'Statistics {place} are damaged: {rule.statistics[0]} of dimension '
                f'{int((low > high).argmax())} is above {rule.statistics[1]}.')
    if len({len(numbers[name]) for name in rule.statistics}) > 1:
        raise ValueError(f'Statistics {place} are damaged: they are of different lengths.')
    try:
        return Scaling.of(rule, numbers, size)
    except ValueError as error:
        raise ValueError(
            f'Statistics {place} do not fit the policy: {error}; name as many in config.json.'
        ) from error


def _ends(numbers: Numbers, size: int, seen: bool) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest of `size` numbers, as far as statistics tell; else empty.

    seen: rather the extremes than percentiles.
    """
    if not size:
        return np.empty(0), np.empty(0)
    ranges = (('min', 'max'), ('q01', 'q99'))
    for low, high in ranges if seen else ranges[::-1]:
        if all(len(numbers.get(name, ())) >= size for name in (low, high)):
            return _usable(numbers[low][:size], numbers[high][:size])
    if all(len(numbers.get(name, ())) >= size for name in ('mean', 'std')):
        mean, spread = numbers['mean'][:size], _DEVIATIONS * numbers['std'][:size]
        return _usable(mean - spread, mean + spread)
    return np.empty(0), np.empty(0)


def _usable(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sure = np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()
    return (low, high) if sure else (np.empty(0), np.empty(0))


def _state_range(
    numbers: Numbers, size: int, convention: Convention
) -> tuple[np.ndarray, np.ndarray]:
    low, high = _ends(numbers, size, seen=True)
    if convention.aloha and not convention.aloha_normalised and low.size:
        return _ordered(*(convention.aloha.state_out(end) for end in (low, high)))
    return low, high


def _action_range(
    numbers: Numbers, size: int, convention: Convention, states: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """What a policy may answer: relative actions reach as far as the state, and further."""
    low, high = _ends(numbers, size, seen=False)
    aloha = None if convention.aloha_normalised else convention.aloha
    if any(convention.relative) and low.size:
        if not states[0].size:
            return np.empty(0), np.empty(0)
        told = _ordered(*(aloha.state_in(end) for end in states)) if aloha else states
        low, high = (end + convention.offset(state, size)
                     for end, state in zip((low, high), told, strict=True))
    if aloha and low.size:
        return _ordered(aloha.actions_out(low), aloha.actions_out(high))
    return low, high


def _ordered(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.minimum(first, second), np.maximum(first, second)
