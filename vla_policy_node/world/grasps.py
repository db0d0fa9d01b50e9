"""Grasp candidates of a parallel gripper, from collision shapes (privileged).

Only grasps from straight above: the hand points down and turns about the vertical. The choice is
deterministic, and the same for the same object shape wherever it stands, as long as nothing is in
the way: a network that imitates the expert can learn it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_policy_node.world.shapes import Shapes, fill_box

# The Panda's hand in the frame of a grasp: x along the fingers' opening, y along their width, z
# up, origin between the finger tips (m). What closes, one of two open fingers with its tip, and
# what is above them.
_PADS = ((-0.038, 0.038), (-0.009, 0.009), (-0.012, 0.012))
_TIP = ((0.040, 0.055), (-0.011, 0.011), (-0.011, 0.010))
_FINGER = ((0.041, 0.065), (-0.011, 0.011), (0.010, 0.053))
_PALM = ((-0.102, 0.102), (-0.020, 0.020), (0.031, 0.078))
_WRIST = ((-0.104, 0.104), (-0.033, 0.033), (0.078, 0.140))
_WIDEST_M = 0.072  # what fits between the open fingers, with some room
_RIM_M = 0.022  # a section thinner than this is a wall, not a body
_ABOVE_SUPPORT_M = 0.014
_DEPTHS_M = (0.012, 0.018, 0.026)  # of the finger tips below the top of the object
EASY_REACH_M = 0.70  # from the robot's base; beyond, the arm is nearly stretched
_TURNS = 16  # over half a revolution: the gripper is symmetric
# Tried from the middle of the object, along the opening axis and across it (m): [C, 2].
_OFFSETS_M = np.stack(
    np.meshgrid(np.linspace(-0.075, 0.075, 31), (-0.02, 0.0, 0.02)), axis=-1).reshape(-1, 2)
_CHECKED, _ALTERNATIVES = 300, 8  # of the best grasps
_BETWEEN = fill_box(_PADS, 0.006)
_OPEN_FINGER = np.concatenate([fill_box(_TIP, 0.008), fill_box(_FINGER, 0.01)])
_HAND = np.concatenate([
    _OPEN_FINGER, _OPEN_FINGER * (-1, 1, 1), fill_box(_PALM, 0.013), fill_box(_WRIST, 0.015)])

# The direction in which the fingers open in LIBERO's start pose: the world's y axis. The gripper
# is symmetric, so every grasp has two yaws half a revolution apart; taken is the one from an
# eighth of a revolution clockwise of home to three eighths counter-clockwise. An object that
# lies across is then always turned to in the same direction.
HOME_YAW_RAD = np.pi / 2
_CLOCKWISE_RAD = np.pi / 4


@dataclass(frozen=True)
class Grasp:
    """position: [3] m in the world, between the finger tips. yaw_rad: of the hand's x axis."""

    position: np.ndarray
    yaw_rad: float


def plan_grasps(shapes: Shapes, name: str, yaw_rad: float) -> list[Grasp]:
    """Return grasps of the object, the best first; may be empty.

    They collide with nothing or, where there is no such grasp, with whatever is in the way.
    yaw_rad: the direction of one of the object's sides.
    """
    own, obstacles = shapes.of(name), shapes.others(name)
    points = shapes.points(own)
    yaws = HOME_YAW_RAD + np.arange(_TURNS) * np.pi / _TURNS
    askew = np.zeros(len(yaws))
    if not shapes.round(own):
        yaws = np.concatenate([yaws, yaw_rad + np.array([0, np.pi / 2])])
        askew = np.abs((yaws - yaw_rad + np.pi / 4) % (np.pi / 2) - np.pi / 4)
    yaws = HOME_YAW_RAD + (yaws - HOME_YAW_RAD + _CLOCKWISE_RAD) % np.pi - _CLOCKWISE_RAD
    top, bottom = points[:, 2].max(), points[:, 2].min()
    lowest = max(shapes.support_z + _ABOVE_SUPPORT_M, bottom + min(0.008, (top - bottom) / 4))
    found = {}
    for z in sorted({max(top - depth, lowest) for depth in _DEPTHS_M}):
        section = _Section(points, z, shapes.base_xy)
        for yaw, angle in zip(yaws, askew, strict=True):
            for score, position in section.candidates(yaw, angle):
                # Most candidates on a body are centred to the same place.
                place = (*position.round(3), yaw)
                if place not in found or score < found[place][0]:
                    found[place] = score, Grasp(position, yaw)
    best = [grasp for _, grasp in sorted(found.values(), key=lambda scored: scored[0])]
    blocked = []
    free = []
    for grasp in best[:_CHECKED]:
        hits = _collisions(grasp, shapes, obstacles)
        (blocked if hits else free).append((hits, grasp))
        if len(free) == _ALTERNATIVES:
            break
    # Sorting is stable: among equals the best grasp is first.
    found = free or sorted(blocked, key=lambda counted: counted[0])[:_ALTERNATIVES]
    return [grasp for _, grasp in found]


def _collisions(grasp: Grasp, shapes: Shapes, obstacles: list[int]) -> int:
    """Return how much of the hand would be in an obstacle, in points."""
    c, s = np.cos(grasp.yaw_rad), np.sin(grasp.yaw_rad)
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    hits = shapes.hits(_HAND @ turn + grasp.position, obstacles, 0.003)
    return hits + shapes.hits(_BETWEEN @ turn + grasp.position, obstacles, 0.001)


class _Section:
    """What of an object is between, beside and above the fingers at one height of the hand."""

    def __init__(self, points: np.ndarray, z: float, base_xy: np.ndarray):
        height = points[:, 2] - z
        self._z, self._depth, self._base = z, height.max(), base_xy
        self._outline = _unique(points)
        self._between = _unique(points[np.abs(height) < 0.009])
        self._beside = _unique(points[(height > -0.012) & (height < 0.050)])
        self._above = _unique(points[height > 0.029])

    def candidates(self, yaw: float, askew: float) -> list[tuple[float, np.ndarray]]:
        """Return (score, position [3]) of grasps from all over the object; a low score is good.

        askew: angle (rad) between the fingers and the nearest side of the object.
        """
        c, s = np.cos(yaw), np.sin(yaw)
        to_hand = np.array([[c, s], [-s, c]])
        outline = self._outline @ to_hand.T
        tips = (outline.max(axis=0) + outline.min(axis=0)) / 2 + _OFFSETS_M  # [C, 2]

        def relative(layer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            flat = layer @ to_hand.T
            return flat[:, 0] - tips[:, :1], np.abs(flat[:, 1] - tips[:, 1:])  # [C, N] each

        u, v = relative(self._between)
        held = (np.abs(u) < 0.039) & (v < 0.009)
        left = np.where(held, u, np.inf).min(axis=1, initial=np.inf)
        right = np.where(held, u, -np.inf).max(axis=1, initial=-np.inf)
        good = (held.sum(axis=1) >= 3) & (right - left < _WIDEST_M)
        left, right = np.where(good, left, 0), np.where(good, right, 0)
        width, shift = right - left, (right + left) / 2
        body = width > _RIM_M
        # A wall is taken across, so that it does not turn between the fingers.
        good &= body | (_OFFSETS_M[:, 1] == 0)
        u, v = relative(self._beside)
        good &= ~((v < 0.012) & (np.abs(u) > 0.0385) & (np.abs(u) < 0.060)).any(axis=1)
        u, v = relative(self._above)
        good &= ~((v < 0.020) & (np.abs(u) < 0.102)).any(axis=1)
        score = (
            np.where(body, 3.0, 1.0) * np.linalg.norm(_OFFSETS_M, axis=1)
            + 2.0 * width
            + 1.2 * np.abs(shift)
            + 0.06 * abs(yaw - HOME_YAW_RAD)
            + 0.10 * askew * body
            - 0.1 * self._depth
            + 0.002 * (_OFFSETS_M[:, 0] < 0)  # the same side of a bowl every time
        )
        places = (tips + np.column_stack([shift, np.zeros_like(shift)])) @ to_hand
        stretch = np.linalg.norm(places - self._base, axis=1) - EASY_REACH_M
        score += 0.8 * np.maximum(stretch, 0)
        return [(score[i], np.array([*places[i], self._z])) for i in np.flatnonzero(good)]


def _unique(points: np.ndarray) -> np.ndarray:
    """Return where points are, seen from above: [n, 2] from [N, 3], to half a millimetre."""
    codes = (points[:, :2] * 2000).round() @ (1, 1j)
    return points[np.unique(codes, return_index=True)[1], :2]
