"""Procedural textures: label atlases for objects, and tiling patterns for furniture and rooms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Draw = Callable[[ImageDraw.ImageDraw, int, int], None]  # (canvas, width px, height px)

_WIDTH_PX = 256
_PLAIN_PX = 24  # tall enough that mip-mapping does not mix neighbouring rows


@dataclass(frozen=True)
class Patch:
    """A part of an atlas, in pixels from its top left corner; `atlas` knows the final height."""

    atlas: Atlas
    left_px: float
    top_px: float
    right_px: float
    bottom_px: float

    def map(self, unit: np.ndarray) -> np.ndarray:
        """Turn [N, 2] coordinates in the unit square into coordinates of the whole picture."""
        left, right = self.left_px / _WIDTH_PX, self.right_px / _WIDTH_PX
        bottom = 1 - self.bottom_px / self.atlas.height_px
        top = 1 - self.top_px / self.atlas.height_px
        return np.array([left, bottom]) + unit * np.array([right - left, top - bottom])


class Atlas:
    """All pictures of one object, stacked in one image. Draw everything before mapping."""

    def __init__(self) -> None:
        self._rows: list[Image.Image] = []

    @property
    def height_px(self) -> int:
        """Return the height of the picture so far."""
        return sum(row.height for row in self._rows)

    def plain(self, colour: Colour) -> Patch:
        """Add a row of one colour; the patch is one point in it."""
        middle = self.height_px + _PLAIN_PX / 2
        self._rows.append(Image.new('RGB', (_WIDTH_PX, _PLAIN_PX), colour))
        return Patch(self, _WIDTH_PX / 2, middle, _WIDTH_PX / 2, middle)

    def drawn(self, height_px: int, background: Colour, draw: Draw) -> Patch:
        """Add a picture that `draw` paints, as wide as the atlas."""
        row = Image.new('RGB', (_WIDTH_PX, height_px), background)
        draw(ImageDraw.Draw(row), _WIDTH_PX, height_px)
        top = self.height_px
        self._rows.append(row)
        return Patch(self, 0.5, top + 0.5, _WIDTH_PX - 0.5, top + height_px - 0.5)

    def save(self, path: Path) -> None:
        """Write the atlas as PNG."""
        picture = Image.new('RGB', (_WIDTH_PX, self.height_px))
        top = 0
        for row in self._rows:
            picture.paste(row, (0, top))
            top += row.height
        picture.save(path)


def write_text(
    canvas: ImageDraw.ImageDraw,
    centre: tuple[float, float],
    lines: Sequence[str],
    colour: Colour,
    size_px: int,
) -> None:
    """Write `lines` centred on `centre` (x, y in px)."""
    font = ImageFont.load_default(size_px)
    canvas.multiline_text(
        centre,
        '\n'.join(lines),
        fill=colour,
        font=font,
        anchor='mm',
        align='center',
        spacing=2,
        stroke_width=1,
        stroke_fill=colour,
    )


def _smooth_noise(shape: tuple[int, int], cells: tuple[int, int], seed: int) -> np.ndarray:
    """Return [H, W] noise in [-1, 1] that tiles, with `cells` bumps per side."""
    grid = np.random.default_rng(seed).uniform(-1, 1, cells)
    wrapped = np.pad(grid, 2, mode='wrap')
    scale = (shape[0] // cells[0], shape[1] // cells[1])
    size = (wrapped.shape[1] * scale[1], wrapped.shape[0] * scale[0])
    large = np.asarray(Image.fromarray(wrapped.astype(np.float32)).resize(size, Image.BICUBIC))
    return large[2 * scale[0] : 2 * scale[0] + shape[0], 2 * scale[1] : 2 * scale[1] + shape[1]]


def _shaded(colour: Colour, shade: np.ndarray) -> Image.Image:
    """Return `colour` multiplied by 1 + `shade` [H, W]."""
    pixels = np.asarray(colour, dtype=float) * (1 + shade[..., None])
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def wood(colour: Colour, seed: int, size_px: int = 256) -> Image.Image:
    """Return wood with its grain along the picture's width."""
    shape = (size_px, size_px)
    fine = _smooth_noise(shape, (64, 2), seed)
    broad = _smooth_noise(shape, (8, 2), seed + 1)
    return _shaded(colour, 0.07 * fine + 0.06 * broad)


def planks(colour: Colour, seed: int, boards: int = 4, size_px: int = 512) -> Image.Image:
    """Return boards of wood side by side, each of its own tint, with dark joints."""
    picture = Image.new('RGB', (size_px, size_px))
    height = size_px // boards
    tints = np.random.default_rng(seed).uniform(0.93, 1.05, boards)
    for index, tint in enumerate(tints):
        board = tuple(int(channel * tint) for channel in colour)
        picture.paste(wood(board, seed + 10 * index, size_px), (0, index * height))
    canvas = ImageDraw.Draw(picture)
    joint = tuple(int(channel * 0.72) for channel in colour)
    for index in range(boards):
        canvas.rectangle((0, index * height, size_px, index * height + 1), fill=joint)
    return picture


def plaster(colour: Colour, seed: int, size_px: int = 256) -> Image.Image:
    """Return a faintly mottled wall."""
    shape = (size_px, size_px)
    shade = 0.02 * _smooth_noise(shape, (64, 64), seed) + 0.02 * _smooth_noise(shape, (8, 8), seed)
    return _shaded(colour, shade)


def tiles(colour: Colour, seed: int, size_px: int = 256) -> Image.Image:
    """Return two by two floor tiles with light joints."""
    picture = plaster(colour, seed, size_px)
    canvas = ImageDraw.Draw(picture)
    joint = tuple(min(255, int(channel * 1.12)) for channel in colour)
    for start in (0, size_px // 2):
        canvas.rectangle((start, 0, start + 1, size_px), fill=joint)
        canvas.rectangle((0, start, size_px, start + 1), fill=joint)
    return picture


def wicker(colour: Colour, strands: int = 12, size_px: int = 192) -> Image.Image:
    """Return a woven pattern."""
    axis = np.arange(size_px) * strands / size_px
    row, column = np.meshgrid(axis, axis, indexing='ij')
    over = (row.astype(int) + column.astype(int)) % 2 == 0
    across = np.where(over, column % 1, row % 1)
    along = np.where(over, row % 1, column % 1)
    shade = 0.18 * np.sin(np.pi * across) - 0.30 * np.abs(along - 0.5) - 0.02
    return _shaded(colour, shade)
