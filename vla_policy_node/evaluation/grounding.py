"""Where the kept tokens lie: fractions on the object, the gripper and the goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vla_policy_node.encoding.preprocess import TRANSFORMS

if TYPE_CHECKING:
    from vla_policy_node.policy.interface import TokenSelection
    from vla_policy_node.world.libero_world import LiberoWorld

# The object to pick up, the hand, and where the object belongs.
PARTS = ('object', 'gripper', 'goal')
# A token counts as lying on a part that covers this share of its pixels.
COVERED = 0.1


def part_masks(world: LiberoWorld) -> dict[str, dict[str, np.ndarray]]:
    """Return camera -> part -> [H, W] bool, upright; the parts are those of PARTS."""
    goal = world.goals[0][2] if len(world.goals[0]) > 2 else ''
    names = {
        'object': [world.target],
        'gripper': ['gripper'],
        # Goals are objects or regions of them: 'plate_1', 'basket_1_contain_region'.
        'goal': [name for name in world.segments if goal.startswith(name)],
    }
    index = {name: number for number, name in enumerate(world.segments)}
    return {
        camera: {
            part: np.isin(segments, [index[name] for name in chosen if name in index])
            for part, chosen in names.items()
        }
        for camera, segments in world.segment().items()
    }


def cells_on(
    mask: np.ndarray, grid: tuple[int, int], crop: Sequence[float], transform: str = 'none'
) -> np.ndarray:
    """Return which tokens lie on a mask, [grid_h, grid_w] bool.

    mask: [H, W] bool of the upright image. crop: x, y, width, height of the grid as fractions of
    the image after `transform`. A pixel belongs to the cell that its centre is in.
    """
    mask = TRANSFORMS[transform](mask)
    x, y, width, height = crop
    rows, row_inside = _cells(mask.shape[0], y, height, grid[0])
    columns, column_inside = _cells(mask.shape[1], x, width, grid[1])
    window = mask[np.ix_(row_inside, column_inside)]
    cell = rows[:, None] * grid[1] + columns
    total = np.bincount(cell.ravel(), minlength=grid[0] * grid[1])
    covered = np.bincount(cell.ravel(), window.ravel(), minlength=grid[0] * grid[1])
    # Where tokens are finer than pixels, a token without a pixel lies on nothing.
    return ((covered >= COVERED * total) & (covered > 0)).reshape(grid)


def tokens_on_parts(
    world: LiberoWorld, selections: Sequence[TokenSelection]
) -> dict[str, np.ndarray]:
    """Return part -> [cameras, grid_h, grid_w] bool for the current view of the world."""
    masks = part_masks(world)
    return {
        part: np.stack([
            cells_on(masks[s.camera][part], s.kept.shape, s.crop, s.camera_transform)
            for s in selections
        ])
        for part in PARTS
    }


def count_kept(kept: np.ndarray, parts: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """Return part -> [kept tokens on it, tokens on it], and the same for 'all' tokens."""
    counts = {part: [int((kept & on).sum()), int(on.sum())] for part, on in parts.items()}
    return {**counts, 'all': [int(kept.sum()), kept.size]}


def shares(counts: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """Return for each part its share of the kept tokens and its share of all tokens.

    counts: sums of the results of `count_kept`.
    """
    kept, total = counts['all']
    return {
        part: {
            'kept': counts[part][0] / kept if kept else 0.0,
            'image': counts[part][1] / total if total else 0.0,
        }
        for part in PARTS
    }


def _cells(pixels: int, start: float, length: float, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells of the pixels inside the crop, and these pixels, along one axis."""
    place = ((np.arange(pixels) + 0.5) / pixels - start) / length * cells
    inside = np.flatnonzero((place >= 0) & (place < cells))
    return place[inside].astype(np.intp), inside
