"""The surroundings of a node in a trial: a clock, a robot and a policy that follow a script."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_policy_node.policy.interface import ActionChunk, InferenceRequest, PolicyDescription

SECOND = 1_000_000_000


@dataclass
class Setup:
    """What a trial begins with; everything a number or a name, drawn by `draw`.

    latency_s: of an inference. transport_s: from the capture of a sample to its arrival.
    lag_s: how far the measured pose is behind the commands.
    simulated: whether the node is on simulated time, that of its clock.
    """

    parameters: dict
    chunk_length: int
    latency_s: float
    camera_hz: float
    state_hz: float
    transport_s: float
    lag_s: float
    motion: str
    clock_start_s: float
    start_m: tuple[float, float, float]
    goal_at_s: float
    simulated: bool


class Clock:
    """A clock that faults may step, stop and speed up; read with the steady time in seconds."""

    def __init__(self, start_s: float):
        self._zero_ns, self._since_s, self._rate = round(start_s * SECOND), 0.0, 1.0

    def ns(self, steady_s: float) -> int:
        """Return what the clock shows."""
        return self._zero_ns + round((steady_s - self._since_s) * self._rate * SECOND)

    def set(self, steady_s: float, step_s: float = 0.0, rate: float = 1.0) -> None:
        """Step it, and let it run at another rate from now on."""
        self._zero_ns = self.ns(steady_s) + round(step_s * SECOND)
        self._since_s, self._rate = steady_s, rate


class Robot:
    """Does what it is told, evenly over each control period; remembers where it was."""

    def __init__(self, start_m: tuple, period_s: float, lag_s: float):
        self._period_s, self._lag_s = period_s, lag_s
        self._moves: list[tuple[float, np.ndarray, np.ndarray]] = []
        self._position_m = np.array(start_m)
        self._quaternion = np.array([0.0, 0.0, 0.0, 1.0])

    def obey(self, at_s: float, delta_m: tuple, delta_rad: tuple) -> None:
        """Begin a motion."""
        if np.isfinite((*delta_m, *delta_rad)).all():
            self._moves.append((at_s, np.array(delta_m), np.array(delta_rad)))

    def pose(self, at_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Return position [3] (m) and quaternion [4], as a state publisher that lags sees them.

        Never ask back in time.
        """
        at_s -= self._lag_s
        while self._moves and self._moves[0][0] + self._period_s <= at_s:
            _, delta_m, delta_rad = self._moves.pop(0)
            self._position_m = self._position_m + delta_m
            self._quaternion = _turn(self._quaternion, delta_rad)
        position_m, quaternion = self._position_m, self._quaternion
        for begun_s, delta_m, delta_rad in self._moves:
            share = min(1.0, max(0.0, (at_s - begun_s) / self._period_s))
            position_m = position_m + delta_m * share
            quaternion = _turn(quaternion, delta_rad * share)
        return position_m, quaternion


def _turn(quaternion: np.ndarray, rotation_rad: np.ndarray) -> np.ndarray:
    """Return an orientation x, y, z, w after a rotation vector in the frame of the base."""
    angle = math.hypot(*rotation_rad)
    if angle < 1e-12:
        return quaternion
    (x, y, z), w = rotation_rad / angle * math.sin(angle / 2), math.cos(angle / 2)
    matrix = np.array([[w, -z, y, x], [z, w, -x, y], [-y, x, w, z], [-x, -y, -z, w]])
    turned = matrix @ quaternion
    return turned / math.hypot(*turned)


class ScriptedPolicy:
    """A policy that answers as its trial says; `think` lets the time of an inference pass."""

    def __init__(self, setup: Setup, rng: np.random.Generator, think: Callable[[float], None]):
        self._setup, self._rng, self._think = setup, rng, think
        self._heading = rng.normal(size=7)
        self.description = PolicyDescription(
            architecture='scripted', chunk_length=setup.chunk_length)
        self.answer: Callable[[np.ndarray], np.ndarray] = lambda actions: actions
        self.latency_s = setup.latency_s

    def reset(self) -> None:
        """Forget nothing: there is nothing."""

    def check_instruction(self, instruction: str) -> None:
        """Know all of them."""

    def warm_up(self, instruction: str) -> None:
        """Get ready for nothing."""

    def close(self) -> None:
        """Free nothing."""

    def infer(self, request: InferenceRequest) -> ActionChunk:
        """Return a chunk in the units of LIBERO, or what a fault makes of it."""
        self._think(self.latency_s)
        actions = self.answer(self._actions(self._setup.chunk_length))
        return ActionChunk(actions, (), {'head': 1.0}, 'scripted', 32, 32)

    def _actions(self, length: int) -> np.ndarray:
        motion = self._setup.motion
        if motion == 'push':
            return np.tile(self._heading / np.abs(self._heading).max(), (length, 1))
        if motion == 'zigzag':
            return np.where(np.arange(length)[:, None] % 2, 1.0, -1.0) * np.ones(7)
        if motion == 'random':
            return self._rng.uniform(-1.0, 1.0, (length, 7))
        return np.full((length, 7), 0.1)
