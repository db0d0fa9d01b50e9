"""Small textured meshes: surfaces of revolution and tapered boxes, written as OBJ.

Canonical frame of every mesh: metres, +z up, +x towards the viewer, so that a label reads from
left to right in the direction of +y. Each vertex has its own normal and texture coordinate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_policy_node.world.textures import Patch


@dataclass(frozen=True)
class Mesh:
    """Triangles with one normal and one texture coordinate per vertex."""

    vertices: np.ndarray  # [N, 3] m
    normals: np.ndarray  # [N, 3] unit length
    coordinates: np.ndarray  # [N, 2], (0, 0) is the lower left corner of the picture
    faces: np.ndarray  # [M, 3] int, counter-clockwise from outside

    def moved(self, rotation: np.ndarray, offset: Sequence[float]) -> Mesh:
        """Return the mesh rotated by a [3, 3] matrix, then shifted by `offset` (m)."""
        vertices = self.vertices @ np.asarray(rotation).T + np.asarray(offset)
        normals = self.normals @ np.asarray(rotation).T
        return Mesh(vertices, normals, self.coordinates, self.faces)


def merge(parts: Sequence[Mesh]) -> Mesh:
    """Return one mesh that holds all `parts`."""
    starts = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
    return Mesh(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.normals for part in parts]),
        np.concatenate([part.coordinates for part in parts]),
        np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=True)]),
    )


def lathe(profile: Sequence[tuple[float, float]], patch: Patch, segments: int = 24) -> Mesh:
    """Revolve `profile`, (radius, height) pairs in m, about z.

    Going up the profile shows its outside, going down its inside; normals are smooth along
    one profile, so a hard edge is made by two calls. The middle of `patch` faces +x.
    """
    radius, height = np.asarray(profile, dtype=float).T
    angle = np.linspace(-np.pi, np.pi, segments + 1)
    steps = np.hypot(np.diff(radius), np.diff(height))
    along = np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
    slope_r, slope_z = np.gradient(radius, along), np.gradient(height, along)
    length = np.hypot(slope_r, slope_z)

    rows, columns = len(radius), len(angle)
    cos, sin = np.cos(angle), np.sin(angle)
    vertices = np.stack(
        [
            np.outer(radius, cos),
            np.outer(radius, sin),
            np.repeat(height[:, None], columns, axis=1),
        ],
        axis=-1,
    )
    normals = np.stack(
        [
            np.outer(slope_z / length, cos),
            np.outer(slope_z / length, sin),
            np.repeat((-slope_r / length)[:, None], columns, axis=1),
        ],
        axis=-1,
    )
    u = np.broadcast_to(np.linspace(0.0, 1.0, columns), (rows, columns))
    v = np.broadcast_to(along[:, None], (rows, columns))

    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    lower = np.stack([corner, corner + 1, corner + columns + 1], axis=1)
    upper = np.stack([corner, corner + columns + 1, corner + columns], axis=1)
    return Mesh(
        vertices.reshape(-1, 3),
        normals.reshape(-1, 3),
        patch.map(np.stack([u, v], axis=-1).reshape(-1, 2)),
        np.concatenate([lower, upper]),
    )


# Each side of a box as seen from outside: four corners (lower left, lower right, upper right,
# upper left) as signs of x and y, and whether the corner is on the upper end.
_SIDES = {
    'front': ((1, -1, 0), (1, 1, 0), (1, 1, 1), (1, -1, 1)),
    'back': ((-1, 1, 0), (-1, -1, 0), (-1, -1, 1), (-1, 1, 1)),
    'left': ((-1, -1, 0), (1, -1, 0), (1, -1, 1), (-1, -1, 1)),
    'right': ((1, 1, 0), (-1, 1, 0), (-1, 1, 1), (1, 1, 1)),
    'top': ((1, -1, 1), (1, 1, 1), (-1, 1, 1), (-1, -1, 1)),
    'bottom': ((-1, -1, 0), (-1, 1, 0), (1, 1, 0), (1, -1, 0)),
}


def box(
    lower: tuple[float, float],
    upper: tuple[float, float],
    heights: tuple[float, float],
    patches: Mapping[str, Patch],
) -> Mesh:
    """Return a box whose half sizes (x, y) in m are `lower` at heights[0], `upper` at heights[1].

    `patches` names a picture for 'front', 'back', 'left', 'right', 'top', 'bottom', and 'side'
    for those that are not named.
    """
    ends = (lower, upper)
    vertices, normals, coordinates, faces = [], [], [], []
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=float)
    for side, corners in _SIDES.items():
        points = np.array(
            [(x * ends[end][0], y * ends[end][1], heights[end]) for x, y, end in corners]
        )
        normal = np.cross(points[2] - points[0], points[3] - points[1])
        faces.append(np.array([[0, 1, 2], [0, 2, 3]]) + 4 * len(vertices))
        vertices.append(points)
        normals.append(np.tile(normal / max(np.linalg.norm(normal), 1e-12), (4, 1)))
        coordinates.append(patches.get(side, patches['side']).map(unit))
    return Mesh(
        np.concatenate(vertices),
        np.concatenate(normals),
        np.concatenate(coordinates),
        np.concatenate(faces),
    )


def write_obj(path: Path, mesh: Mesh) -> None:
    """Write `mesh` as Wavefront OBJ."""
    lines = [f'v {x:.6f} {y:.6f} {z:.6f}' for x, y, z in mesh.vertices]
    lines += [f'vt {u:.5f} {v:.5f}' for u, v in mesh.coordinates]
    lines += [f'vn {x:.4f} {y:.4f} {z:.4f}' for x, y, z in mesh.normals]
    lines += ['f ' + ' '.join(f'{i}/{i}/{i}' for i in face + 1) for face in mesh.faces]
    path.write_text('\n'.join(lines) + '\n', encoding='ascii')
