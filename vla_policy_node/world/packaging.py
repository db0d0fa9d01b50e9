"""Cans, bottles, cartons and boxes, from a few sizes, colours and words.

Heights of the origins follow from the heights of LIBERO's initial states above the support.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ImageDraw

from vla_policy_node.world.meshes import Mesh, box, lathe, merge
from vla_policy_node.world.mjcf import ObjectModel, about
from vla_policy_node.world.textures import Atlas, Colour, Patch, write_text

# Orientations (w, x, y, z) of the bodies in LIBERO's initial states.
TURNED = about('z', np.pi / 2)
REVERSED = about('z', np.pi)
Y_UP = (0.5, 0.5, 0.5, 0.5)
Y_UP_BACK = (0.0, 0.0, 2**-0.5, 2**-0.5)


def _label(
    atlas: Atlas, lines: list[str], paper: Colour, ink: Colour, band: Colour, size_px: int = 34
) -> Patch:
    """Draw a wrap-around label: bands above and below, the name on the front and on the back."""

    def draw(canvas: ImageDraw.ImageDraw, width: int, height: int) -> None:
        canvas.rectangle((0, 0, width, height * 0.16), fill=band)
        canvas.rectangle((0, height * 0.84, width, height), fill=band)
        for centre in (0, width / 2, width):
            write_text(canvas, (centre, height / 2), lines, ink, size_px)

    return atlas.drawn(128, paper, draw)


def _panel(atlas: Atlas, lines: list[str], paper: Colour, ink: Colour, size_px: int) -> Patch:
    """Draw one side of a box: the name in a frame."""

    def draw(canvas: ImageDraw.ImageDraw, width: int, height: int) -> None:
        canvas.rectangle((6, 6, width - 7, height - 7), outline=ink, width=5)
        write_text(canvas, (width / 2, height / 2), lines, ink, size_px)

    return atlas.drawn(128, paper, draw)


def disc(radius: float, height: float, patch: Patch, up: bool = True) -> Mesh:
    """Return a flat round end that faces up, or down."""
    profile = [(radius, height), (1e-5, height)]
    return lathe(profile if up else profile[::-1], patch, 20)


def can(
    directory: Path, name: str, radius: float, height: float, bottom_m: float, label: dict
) -> None:
    """Build a tin: a paper label between two metal rims."""
    atlas = Atlas()
    metal = atlas.plain((190, 190, 195))
    paper = _label(atlas, **label)
    r, h = radius, height
    mesh = merge(
        [
            lathe([(r, 0.0), (r, 0.006)], metal),
            lathe([(r - 0.001, 0.006), (r - 0.001, h - 0.006)], paper),
            lathe([(r, h - 0.006), (r, h)], metal),
            lathe([(r, h), (r - 0.003, h), (r - 0.003, h - 0.003)], metal),
            disc(r - 0.003, h - 0.003, metal),
            disc(r, 0.0, metal, up=False),
        ]
    )
    model = ObjectModel(
        directory,
        name,
        initial=Y_UP_BACK,
        origin_m=min(h / 2, bottom_m),
        bottom_m=bottom_m,
        top_m=h / 2,
        radius_m=r,
    )
    model.skin(mesh, atlas, specular=0.4, shininess=0.4)
    model.collision(type='cylinder', size=(r, h / 2), pos=(0, 0, h / 2), mass=0.15)
    model.save()


def bottle(
    directory: Path,
    name: str,
    initial: Sequence[float],
    profile: list[tuple[float, float]],
    label_span: tuple[float, float],
    cap: list[tuple[float, float]],
    colours: tuple[Colour, Colour],
    label: dict,
) -> None:
    """Build a bottle: `profile` of the glass, a label around its widest part, a cap on top."""
    atlas = Atlas()
    glass, lid = (atlas.plain(colour) for colour in colours)
    paper = _label(atlas, **label)
    widest = max(radius for radius, _ in profile)
    mesh = merge(
        [
            lathe(profile, glass),
            lathe([(widest + 0.0006, z) for z in label_span], paper),
            lathe(cap, lid),
            disc(cap[-1][0], cap[-1][1], lid),
            disc(profile[0][0], 0.0, glass, up=False),
        ]
    )
    shoulder = max(height for radius, height in profile if radius > 0.9 * widest)
    top = cap[-1][1]
    model = ObjectModel(
        directory,
        name,
        initial=initial,
        origin_m=0.06,
        bottom_m=0.06,
        top_m=top - 0.06,
        radius_m=widest,
    )
    model.skin(mesh, atlas, specular=0.5, shininess=0.5)
    neck = (top - shoulder) / 2
    model.collision(
        type='cylinder', size=(widest, shoulder / 2), pos=(0, 0, shoulder / 2), mass=0.14
    )
    model.collision(
        type='cylinder',
        size=(max(radius for radius, _ in cap) + 0.002, neck),
        pos=(0, 0, shoulder + neck),
        mass=0.02,
    )
    model.save()


def carton(
    directory: Path,
    name: str,
    half: tuple[float, float],
    height: float,
    atlas: Atlas,
    sides: dict[str, Patch],
    tops: list[Mesh],
) -> None:
    """Build a drink carton: four printed sides and whatever sits above them."""
    total = max(float(part.vertices[:, 2].max()) for part in tops)
    mesh = merge([box(half, half, (0.0, height), sides), *tops])
    model = ObjectModel(
        directory,
        name,
        initial=Y_UP,
        origin_m=0.06,
        bottom_m=0.06,
        top_m=total - 0.06,
        radius_m=max(half),
    )
    model.skin(mesh, atlas, specular=0.2)
    model.collision(type='box', size=(*half, height / 2), pos=(0, 0, height / 2), mass=0.16)
    rise = (total - height) / 2
    model.collision(
        type='box', size=(half[0] * 0.4, half[1], rise), pos=(0, 0, height + rise), mass=0.01
    )
    model.save()


def packet(
    directory: Path,
    name: str,
    initial: Sequence[float],
    size: tuple[float, float, float],
    bottom_m: float,
    lines: list[str],
    colours: tuple[Colour, Colour, Colour],
    size_px: int,
) -> None:
    """Build a cardboard box of full `size` (x, y, z): name on the lid and on the long sides."""
    atlas = Atlas()
    lid_colour, side_colour, ink = colours
    lid = _panel(atlas, lines, lid_colour, ink, size_px)
    side = _panel(atlas, [' '.join(lines)], side_colour, ink, int(size_px * 0.7))
    end = atlas.plain(side_colour)
    half = (size[0] / 2, size[1] / 2)
    patches = {'side': end, 'front': side, 'back': side, 'top': lid, 'bottom': lid}
    model = ObjectModel(
        directory,
        name,
        initial=initial,
        origin_m=min(size[2] / 2, bottom_m),
        bottom_m=bottom_m,
        top_m=size[2] / 2,
        radius_m=max(half),
    )
    model.skin(box(half, half, (0.0, size[2]), patches), atlas, specular=0.1)
    model.collision(type='box', size=(*half, size[2] / 2), pos=(0, 0, size[2] / 2), mass=0.12)
    model.save()
