"""Scripted pick-and-place expert that reads the simulator's state instead of images.

Every action follows from the current state, never from a schedule: the executed action may be
noisy, pushed or skipped, and the next one leads back. Noisy episodes with these actions as labels
thus show a policy how to recover.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.spatial.transform import Rotation

from vla_policy_node.world.grasps import EASY_REACH_M, HOME_YAW_RAD, Grasp, plan_grasps
from vla_policy_node.world.libero_world import LiberoWorld
from vla_policy_node.world.shapes import Shapes

OPEN, CLOSED = -1.0, 1.0
STAND_STILL = np.array([0, 0, 0, 0, 0, 0, OPEN])
_PREDICATES = ('in', 'on')
_ATTEMPTS = 4

# Per metre and per radian of error; chosen so that the hand settles without overshoot.
_GAIN_PER_M, _GAIN_PER_RAD, _STRETCHING_PER_M = 20.0, 2.0, 12.0

# Of the hand to a grasp when the fingers close: sideways, up or down, and turned.
_REACHED_M, _LOW_M, _REACHED_RAD = 0.010, 0.008, 0.08
_BESIDE_M = 0.03  # above the grasp; lower, the fingers are beside the object
_CLEARANCE_M = 0.03  # between what the hand carries and what it passes over
_CORRIDOR_M = 0.13  # half the width of the strip that the hand sweeps
_LOST_M = 0.03  # the object has moved in the hand by more
_FINGERS_REST_M = 0.0005  # per control step
_LONGEST = 140  # control steps that a skill may take

Actions = Iterator[np.ndarray]


class Expert:
    """Solves the current episode of a world: one clean action per control step.

    `in_transit` is True while the hand travels far from everything: a push does no harm there.
    """

    def __init__(self, world: LiberoWorld, rng: np.random.Generator | None = None) -> None:
        """Plan for `world` as it is now; `rng` decides how a failed grasp is tried again.

        Raises ValueError for a goal other than putting something in or on something.
        """
        for predicate, *_ in world.goals:
            if predicate not in _PREDICATES:
                raise ValueError(
                    f'The scripted expert cannot do "{world.task.instruction}": it only picks '
                    'things up and puts them down; choose another task.'
                )
        self.in_transit = False
        self._world = world
        self._rng = rng or np.random.default_rng(0)
        self._shapes = Shapes(world)
        # Everything is carried over the tallest object, also where it is not in the way: one
        # height is easier to imitate than one for each scene.
        heights = [np.ptp(self._shapes.points(self._shapes.of(o))[:, 2]) for o in world.objects]
        self._passing_z = self._shapes.support_z + max(heights)
        self._actions = self._solve()

    def act(self) -> np.ndarray | None:
        """Return the next action [7] as `LiberoWorld.step` takes it, or None at the end.

        The end is a solved task, or the last attempt's failure; `world.success` tells which.
        """
        return next(self._actions, None)

    def _solve(self) -> Actions:
        for goal in self._world.goals:
            for attempt in range(_ATTEMPTS):
                yield from self._pick_and_place(goal, attempt)
                if self._world.holds(goal):
                    break
                yield from self._back_off()

    def _pick_and_place(self, goal: tuple[str, ...], attempt: int) -> Actions:
        _, name, destination = goal
        grasp = self._choose_grasp(name, attempt)
        yield from self._reach(name, grasp)
        yield from self._close()
        if (yield from self._carry(name, grasp, destination)):
            yield from self._release(goal)

    # Skills. Each yields until it is done or until it has taken too long.

    def _reach(self, name: str, grasp: Grasp) -> Actions:
        """Move above the object, then down to it."""
        rotation = _pointing_down(grasp.yaw_rad)
        to_grasp = grasp.position - self._world.object_position(name)
        above = self._clear_height(name, grasp.position) - grasp.position[2]
        for step in range(_LONGEST):
            goal = self._world.object_position(name) + to_grasp
            position, turn = self._error(goal, rotation)
            slack = _slack(step)
            off = max(0.0, np.linalg.norm(position[:2]) - slack)
            tilt = max(0.0, np.linalg.norm(turn) - 10 * slack)
            if off < _REACHED_M and abs(position[2]) < _LOW_M + slack and tilt < _REACHED_RAD:
                break
            self.in_transit = off > 0.06
            # A funnel: the fingers may only be as low as they are well aligned. Once they are
            # beside the object they stay there, and it is the object that gives way.
            off += 0.05 * max(0.0, tilt - _REACHED_RAD)
            beside = position[2] > -_BESIDE_M
            narrow, wide = (0.015, 0.030) if beside else (0.006, 0.014)
            height = np.interp(
                off, (narrow, wide, 0.035, 0.10), (0, 0.06, 0.07, max(above, 0.07)))
            yield self._towards(goal + (0, 0, height), rotation, OPEN)
        self.in_transit = False

    def _close(self) -> Actions:
        """Close the fingers until they stop."""
        width, resting = self._opening(), 0
        for step in range(15):
            yield np.array([0, 0, 0, 0, 0, 0, CLOSED])
            before, width = width, self._opening()
            resting = resting + 1 if before - width < _FINGERS_REST_M else 0
            if step >= 3 and resting >= 2:
                break

    def _carry(self, name: str, grasp: Grasp, destination: str) -> Iterator[np.ndarray]:
        """Lift the object, bring it over its destination and lower it there.

        Returns whether the hand still holds it.
        """
        rotation = _pointing_down(grasp.yaw_rad)
        own = self._shapes.of(name)
        position = self._world.state().position
        in_hand = self._world.object_position(name) - position
        start_z = position[2]
        below = start_z - self._shapes.points(own)[:, 2].min()
        goal_xy, _ = self._destination(destination)
        high = self._clear_height(name, goal_xy) + below
        for step in range(_LONGEST):
            goal_xy, surface = self._destination(destination)
            low = surface + below
            position = self._world.state().position
            held = self._world.object_position(name) - position
            if np.linalg.norm(held - in_hand) > _LOST_M:
                self.in_transit = False
                return False
            middle = _middle(self._shapes.points(own))
            goal = np.array([*(goal_xy - middle + position[:2]), high])
            off = np.linalg.norm(goal[:2] - position[:2])
            slack = _slack(step)
            goal[2] = np.interp(off - slack, (0.015, 0.06), (low, max(low, high)))
            # The object may rest on something before it is as low as it should be.
            if off < 0.012 + slack and abs(goal[2] - position[2]) < 0.012 + 3 * slack:
                break
            self.in_transit = off > 0.08 and position[2] > high - 0.04
            # First up, then across: the later the lower the hand still is.
            across = np.interp(high - position[2], (0.03, 0.07), (1, 0)) if off > 0.06 else 1.0
            action = self._towards(goal, rotation, CLOSED, across)
            action[:2] *= np.interp(position[2] - start_z, (0.005, 0.02), (0, 1))
            yield action
        self.in_transit = False
        return True

    def _release(self, goal: tuple[str, ...]) -> Actions:
        """Open the fingers until the object has left them and the goal holds."""
        for step in range(10):
            yield STAND_STILL.copy()
            if step >= 2 and self._world.holds(goal):
                break

    def _back_off(self) -> Actions:
        """Open the fingers, rise, and see what to do next."""
        for _ in range(3):
            yield STAND_STILL.copy()
        goal = self._world.state().position + (-0.02, 0, 0.09)
        rotation = self._hand()
        for _ in range(20):
            if np.linalg.norm(self._error(goal, rotation)[0]) < 0.03:
                break
            yield self._towards(goal, rotation, OPEN)

    # Measurements that the skills use.

    def _choose_grasp(self, name: str, attempt: int) -> Grasp:
        grasps = plan_grasps(self._shapes, name, self._yaw(name))
        if not grasps:
            points = self._shapes.points(self._shapes.of(name))
            return Grasp(np.array([*_middle(points), points[:, 2].max() - 0.02]), HOME_YAW_RAD)
        return grasps[0 if attempt == 0 else self._rng.integers(len(grasps))]

    def _yaw(self, name: str) -> float:
        """Return the direction (rad) of a horizontal side of the object."""
        axes = self._world.data.body(f'{name}_main').xmat.reshape(3, 3)[:2]
        x, y = axes[:, np.argmax(np.linalg.norm(axes, axis=0))]
        return float(np.arctan2(y, x))

    def _destination(self, name: str) -> tuple[np.ndarray, float]:
        """Return xy [2] and the height for the bottom of what is put in or on `name` (m)."""
        container = name.removesuffix('_contain_region')
        if container != name:
            # Just below the rim: the rest is a short fall.
            rim = self._shapes.top(self._shapes.of(container))
            return self._world.object_position(name)[:2], rim - 0.05
        own = self._shapes.of(name)
        if not own:
            region = self._world.object_position(name)
            return region[:2], region[2] + 0.012
        points = self._shapes.points(own)
        middle = _middle(points)
        central = np.linalg.norm(points[:, :2] - middle, axis=1) < 0.03
        return middle, points[central, 2].max() + 0.012

    def _clear_height(self, name: str, goal_xy: np.ndarray) -> float:
        """Return the height (m) above everything on the way from the hand to `goal_xy`."""
        start = self._world.state().position[:2]
        way = goal_xy[:2] - start
        highest = self._passing_z
        for geom in self._shapes.others(name):
            points = self._shapes.points([geom])
            share = np.clip((points[:, :2] - start) @ way / max(way @ way, 1e-6), 0, 1)
            distance = np.linalg.norm(points[:, :2] - start - share[:, None] * way, axis=1)
            highest = max(highest, points[distance < _CORRIDOR_M, 2].max(initial=highest))
        return highest + _CLEARANCE_M

    def _opening(self) -> float:
        return float(np.ptp(self._world.state().gripper_qpos))

    def _hand(self) -> np.ndarray:
        site = self._world.data.site('gripper0_grip_site')
        return site.xmat.reshape(3, 3).copy()

    def _error(self, position: np.ndarray, rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what is missing to a pose: [3] m, [3] rad."""
        turn = Rotation.from_matrix(rotation @ self._hand().T).as_rotvec()
        return position - self._world.state().position, turn

    def _towards(
        self, position: np.ndarray, rotation: np.ndarray, gripper: float, across: float = 1.0
    ) -> np.ndarray:
        """Return the action towards a pose; across: how much of the horizontal motion to make."""
        move, turn = self._error(position, rotation)
        motion = np.concatenate([
            across * _limited(_GAIN_PER_M * move[:2]),
            _limited(_GAIN_PER_M * move[2:]),
            _limited(_GAIN_PER_RAD * turn),
        ])
        return np.array([*self._within_reach(motion, position[:2]), gripper])

    def _within_reach(self, motion: np.ndarray, goal_xy: np.ndarray) -> np.ndarray:
        """Keep a motion [6] from stretching the arm more than its goal needs.

        A stretched arm does not come back by itself: its elbow is at the end of its range, and
        what keeps the hand upright presses it there. So the hand comes in first, then it rises,
        swings round and turns; and it goes out slowly.
        """
        base = self._shapes.base_xy
        arm = self._world.state().position[:2] - base
        length = np.linalg.norm(arm)
        spare = max(EASY_REACH_M, np.linalg.norm(goal_xy - base)) - length
        outward = arm / length
        radial = motion[:2] @ outward
        around = (motion[:2] - radial * outward) * np.interp(spare, (-0.04, -0.01), (0.2, 1))
        radial = min(radial, _STRETCHING_PER_M * spare)
        up = motion[2] * np.interp(spare, (-0.08, -0.02), (0.3, 1)) if motion[2] > 0 else motion[2]
        turn = motion[3:] * np.interp(spare, (-0.04, -0.01), (0, 1))
        return np.array([*_limited(radial * outward + around), up, *turn])


def _slack(step: int) -> float:
    """Return how much (m) less exact to be when a skill takes long: the arm may be stretched."""
    return 0.02 * float(np.clip((step - 60) / 60, 0, 1))


def _pointing_down(yaw_rad: float) -> np.ndarray:
    """Return the rotation of a hand that points down, its fingers opening along `yaw_rad`."""
    x, z = np.array([np.cos(yaw_rad), np.sin(yaw_rad), 0]), np.array([0, 0, -1.0])
    return np.column_stack([x, np.cross(z, x), z])


def _limited(vector: np.ndarray) -> np.ndarray:
    """Shorten a vector, direction kept, until no component exceeds 1."""
    return vector / max(1.0, np.abs(vector).max())


def _middle(points: np.ndarray) -> np.ndarray:
    return (points[:, :2].max(axis=0) + points[:, :2].min(axis=0)) / 2
