"""What actions and states mean to a policy beside their scale: relative to a state, or ALOHA's.

pi0's authors train on joint targets less the state at the start of the chunk, and turn ALOHA's
joints and grippers into those of their other robots; LeRobot took both over. Here a policy's
answer is always in units of the data and absolute, so that nothing behind it needs to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Joints of ALOHA that turn the other way, and its grippers, among 14 numbers.
ALOHA_SIZE = 14
_FLIPPED, _GRIPPERS = (1, 2, 8, 9), (6, 13)
# The gripper's linkage: opening of the fingers in m, and the arms (m) that turn it into an angle.
_CLOSED_M, _OPEN_M = 0.01844, 0.05800
_ARM_M, _HORN_M = 0.036, 0.022
# Its angles in rad that are 0 and 1 where ALOHA takes commands.
_COMMAND_CLOSED, _COMMAND_OPEN = -0.6213, 1.4910


@dataclass(frozen=True)
class Aloha:
    """How ALOHA's joints and grippers become those that a policy was trained with, and back.

    closed, open: angles of a gripper (rad) that the policy is told as 0 and 1. gain: rad of a
    gripper for 1 of an action, counted from `closed`.
    """

    closed: float
    open: float
    gain: float

    def state_in(self, state: np.ndarray) -> np.ndarray:
        """[..., 14] of the robot -> of the policy."""
        state = _flip(state)
        length = _CLOSED_M + state[..., _GRIPPERS] * (_OPEN_M - _CLOSED_M)
        ratio = (_HORN_M**2 + length**2 - _ARM_M**2) / (2 * _HORN_M * length)
        angle = np.arcsin(np.clip(ratio, -1, 1))
        state[..., _GRIPPERS] = (angle - self.closed) / (self.open - self.closed)
        return state

    def state_out(self, state: np.ndarray) -> np.ndarray:
        """[..., 14] of the policy -> of the robot."""
        state = _flip(state)
        angle = state[..., _GRIPPERS] * (self.open - self.closed) + self.closed
        length = _HORN_M * np.sin(angle) + np.sqrt(_ARM_M**2 - (_HORN_M * np.cos(angle)) ** 2)
        state[..., _GRIPPERS] = (length - _CLOSED_M) / (_OPEN_M - _CLOSED_M)
        return state

    def actions_in(self, actions: np.ndarray) -> np.ndarray:
        """[..., 14] commands of the robot -> actions of the policy."""
        actions = _flip(actions)
        angle = _COMMAND_CLOSED + actions[..., _GRIPPERS] * (_COMMAND_OPEN - _COMMAND_CLOSED)
        actions[..., _GRIPPERS] = (angle - self.closed) / self.gain
        return actions

    def actions_out(self, actions: np.ndarray) -> np.ndarray:
        """[..., 14] actions of the policy -> commands of the robot."""
        actions = _flip(actions)
        angle = actions[..., _GRIPPERS] * self.gain + self.closed
        actions[..., _GRIPPERS] = (angle - _COMMAND_CLOSED) / (_COMMAND_OPEN - _COMMAND_CLOSED)
        return actions


ALOHA_PI0 = Aloha(0.5476, 1.6296, 1.0)
ALOHA_SMOLVLA = Aloha(0.4, 1.5, 1.1)


def _flip(values: np.ndarray) -> np.ndarray:
    values = np.array(values, np.float64)
    if values.shape[-1] != ALOHA_SIZE:
        raise ValueError(
            f'adapt_to_pi is for the {ALOHA_SIZE} numbers of ALOHA, not {values.shape[-1]}; '
            'remove it from config.json.')
    values[..., _FLIPPED] *= -1
    return values


@dataclass(frozen=True)
class Convention:
    """All of it together.

    relative: numbers of an action that count from the same number of the state as the chunk
    begins; may be shorter than an action. aloha: None for any other robot. aloha_normalised:
    it is applied to normalised numbers, as LeRobot does for SmolVLA since normalising is a
    processor of its own.
    """

    relative: tuple[bool, ...] = ()
    aloha: Aloha | None = None
    aloha_normalised: bool = False

    def check(self, states: int, actions: int) -> None:
        """Raise ValueError unless policies of so many numbers can follow it."""
        last = max((place for place, is_one in enumerate(self.relative) if is_one), default=-1)
        if last >= min(states, actions):
            raise ValueError(
                f'Number {last} of the actions is relative to the same one of the state, and the '
                f'policy has {states} of the state and {actions} of an action; correct '
                'delta_action_mask or action_feature_names in config.json.')
        if self.aloha and not states == actions == ALOHA_SIZE:
            raise ValueError(
                f'adapt_to_pi is for the {ALOHA_SIZE} numbers of ALOHA, and the policy has '
                f'{states} of the state and {actions} of an action; remove it from config.json.')

    def offset(self, state: np.ndarray, actions: int) -> np.ndarray:
        """[P] of the policy -> [A], what to add to each action."""
        offset = np.zeros(actions)
        places = np.flatnonzero(self.relative[:actions])
        offset[places] = np.asarray(state, np.float64)[places]
        return offset


def mask_of(signed: Sequence[int]) -> tuple[bool, ...]:
    """Read a mask as openpi writes it: 6, -1 are six numbers that are relative and one not."""
    return tuple(count > 0 for count in signed for _ in range(abs(count)))


def mask_without(names: Sequence[str] | None, excluded: Sequence[str], size: int) -> tuple[
        bool, ...]:
    """Read a mask as LeRobot writes it: all but the numbers whose name has one of these in it."""
    words = [word.lower() for word in excluded if word]
    named = [name.lower() for name in names or ()][:size]
    mask = [not any(word in name for word in words) for name in named]
    return (*mask, *[True] * (size - len(mask)))
