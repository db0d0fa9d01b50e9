"""Collision shapes of a world as points and boxes (privileged)."""

from __future__ import annotations

import mujoco
import numpy as np

from vla_policy_node.world.libero_world import LiberoWorld


class Shapes:
    """The collision shapes of a world, as points that fill them and as boxes around them."""

    def __init__(self, world: LiberoWorld) -> None:
        self._model, self._data = world.model, world.data
        solid = np.flatnonzero(self._model.geom_contype)
        roots = self._model.body_rootid[self._model.geom_bodyid[solid]]
        owners = [self._model.body(root).name for root in roots]
        robot = ('robot0', 'mount0', 'gripper0')
        others = {g: o for g, o in zip(solid, owners, strict=True) if not o.startswith(robot)}
        planes = self._model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
        table = [g for g, owner in others.items() if owner == 'table']
        # A plane has no box, and what everything stands on needs none: its height is enough.
        self._obstacles = {g: o for g, o in others.items() if not planes[g] and g not in table}
        heights = [self._data.geom_xpos[g][2] for g in others if planes[g]]
        heights += [self._data.geom_xpos[g][2] + self._model.geom_size[g][2] for g in table]
        self.support_z = max(heights)
        self.base_xy = self._data.body('robot0_base').xpos[:2].copy()
        self._filled: dict[int, np.ndarray] = {}

    def of(self, name: str) -> list[int]:
        """Return the collision geoms of the object or fixture `name`."""
        return [g for g, owner in self._obstacles.items() if owner == f'{name}_main']

    def others(self, *names: str) -> list[int]:
        """Return the geoms of everything but these objects, the robot and the support."""
        owners = {f'{name}_main' for name in names}
        return [g for g, owner in self._obstacles.items() if owner not in owners]

    def round(self, geoms: list[int]) -> bool:
        """Return whether `geoms` are all cylinders: then they look the same from every side."""
        kinds = self._model.geom_type[geoms]
        return bool((kinds == mujoco.mjtGeom.mjGEOM_CYLINDER).all())

    def points(self, geoms: list[int]) -> np.ndarray:
        """Return points that fill `geoms`, at most 6 mm apart: [N, 3] m in the world."""
        return np.concatenate([
            self._data.geom_xpos[g] + self._fill(g) @ self._data.geom_xmat[g].reshape(3, 3).T
            for g in geoms
        ])

    def _fill(self, geom: int) -> np.ndarray:
        if geom not in self._filled:
            if self._model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CYLINDER:
                points = fill_cylinder(*self._model.geom_size[geom][:2], 0.006)
            else:
                centre, half = np.split(self._model.geom_aabb[geom], 2)
                points = fill_box(np.column_stack([centre - half, centre + half]), 0.006)
            self._filled[geom] = points
        return self._filled[geom]

    def hits(self, points: np.ndarray, geoms: list[int], margin_m: float) -> int:
        """Return how many of `points` [N, 3] lie in the box of one of `geoms`."""
        middle = points.mean(axis=0)
        radius = np.linalg.norm(points - middle, axis=1).max()
        inside = np.zeros(len(points), bool)
        for g in geoms:
            reach = radius + self._model.geom_rbound[g] + margin_m
            if np.linalg.norm(self._data.geom_xpos[g] - middle) > reach:
                continue
            centre, half = np.split(self._model.geom_aabb[g], 2)
            local = (points - self._data.geom_xpos[g]) @ self._data.geom_xmat[g].reshape(3, 3)
            inside |= (np.abs(local - centre) <= half + margin_m).all(axis=1)
        return int(inside.sum())

    def top(self, geoms: list[int]) -> float:
        """Return the height of the highest point of `geoms` (m); the support's without any."""
        return max([self.support_z, *(self.points([g])[:, 2].max() for g in geoms)])


def fill_box(box, step_m: float) -> np.ndarray:
    """Return points that fill a box of three (low, high), at most `step_m` apart: [N, 3]."""
    axes = [_line(low, high, step_m) for low, high in box]
    return np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1).reshape(-1, 3)


def fill_cylinder(radius: float, half_height: float, step_m: float) -> np.ndarray:
    """Return points that fill an upright cylinder: [N, 3]. Equally wide in every direction."""
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    radii = np.linspace(radius, 0, max(2, int(np.ceil(radius / step_m)) + 1))
    heights = _line(-half_height, half_height, step_m)
    r, angle, z = (a.ravel() for a in np.meshgrid(radii, angles, heights, indexing='ij'))
    return np.column_stack([r * np.cos(angle), r * np.sin(angle), z])


def _line(low: float, high: float, step_m: float) -> np.ndarray:
    return np.linspace(low, high, max(2, int(np.ceil((high - low) / step_m)) + 1))
