"""Stand-ins for the packed food of the LIBERO suites.

Sizes are ours: each fits between the fingers of the Panda gripper (80 mm) in one direction, and
stays below the smallest distance between two objects in LIBERO's initial states.
"""

from __future__ import annotations

from pathlib import Path

from PIL import ImageDraw

from vla_policy_node.world.meshes import box, lathe
from vla_policy_node.world.packaging import (
    REVERSED,
    TURNED,
    Y_UP,
    bottle,
    can,
    carton,
    disc,
    packet,
)
from vla_policy_node.world.textures import Atlas, write_text

WHITE = (245, 245, 240)


def _milk(directory: Path) -> None:
    atlas = Atlas()

    def draw(canvas: ImageDraw.ImageDraw, width: int, height: int) -> None:
        canvas.rectangle((0, height * 0.62, width, height), fill=(40, 100, 205))
        write_text(canvas, (width / 2, height * 0.32), ['MILK'], (25, 70, 180), 84)
        canvas.ellipse((80, height * 0.68, 176, height * 0.94), fill=WHITE)

    print_ = atlas.drawn(224, WHITE, draw)
    gable, fin = atlas.plain((225, 232, 245)), atlas.plain((40, 100, 205))
    half, height = (0.027, 0.027), 0.095
    tops = [
        box(half, (0.003, half[1]), (height, height + 0.025), {'side': gable, 'front': fin}),
        box((0.003, half[1]), (0.003, half[1]), (height + 0.024, height + 0.034), {'side': fin}),
    ]
    carton(directory, 'milk', half, height, atlas, {'side': print_, 'top': gable}, tops)


def _orange_juice(directory: Path) -> None:
    atlas = Atlas()

    def draw(canvas: ImageDraw.ImageDraw, width: int, height: int) -> None:
        canvas.ellipse((38, height * 0.34, 218, height * 0.34 + 180), fill=(255, 225, 120))
        canvas.ellipse((50, height * 0.34 + 12, 206, height * 0.34 + 168), fill=(255, 175, 40))
        write_text(canvas, (width / 2, height * 0.17), ['ORANGE', 'JUICE'], WHITE, 46)

    print_ = atlas.drawn(300, (240, 110, 15), draw)
    lid, cap = atlas.plain((250, 170, 70)), atlas.plain((40, 140, 60))
    half, height = (0.027, 0.027), 0.112
    tops = [
        lathe([(0.012, height), (0.012, height + 0.014)], cap),
        disc(0.012, height + 0.014, cap),
    ]
    carton(directory, 'orange_juice', half, height, atlas, {'side': print_, 'top': lid}, tops)


def _cans(root: Path) -> None:
    red = {'paper': (245, 240, 225), 'ink': (200, 30, 35), 'band': (205, 30, 35)}
    soup = {**red, 'lines': ['ABC', 'SOUP'], 'size_px': 40}
    can(root / 'alphabet_soup', 'alphabet_soup', 0.033, 0.085, 0.04, soup)
    sauce = {
        'lines': ['TOMATO', 'SAUCE'],
        'paper': (175, 25, 25),
        'ink': (250, 235, 190),
        'band': (35, 110, 50),
        'size_px': 30,
    }
    can(root / 'tomato_sauce', 'tomato_sauce', 0.034, 0.070, 0.06, sauce)


def _bottles(root: Path) -> None:
    bottle(
        root / 'ketchup',
        'ketchup',
        Y_UP,
        [(0.024, 0.0), (0.027, 0.006), (0.027, 0.085), (0.024, 0.1), (0.014, 0.112)],
        (0.025, 0.078),
        [(0.014, 0.112), (0.013, 0.122), (0.005, 0.138)],
        ((205, 20, 20), WHITE),
        {'lines': ['KETCHUP'], 'paper': WHITE, 'ink': (200, 20, 20), 'band': (205, 20, 20)},
    )
    bottle(
        root / 'bbq_sauce',
        'bbq_sauce',
        TURNED,
        [(0.025, 0.0), (0.027, 0.005), (0.027, 0.075), (0.022, 0.092), (0.011, 0.108)],
        (0.016, 0.070),
        [(0.012, 0.106), (0.012, 0.134)],
        ((70, 32, 18), (230, 170, 30)),
        {
            'lines': ['BBQ'],
            'paper': (235, 175, 35),
            'ink': (60, 25, 15),
            'band': (60, 25, 15),
            'size_px': 56,
        },
    )
    bottle(
        root / 'salad_dressing',
        'salad_dressing',
        Y_UP,
        [(0.024, 0.0), (0.026, 0.005), (0.024, 0.04), (0.027, 0.085), (0.013, 0.11)],
        (0.03, 0.078),
        [(0.014, 0.108), (0.014, 0.128)],
        ((225, 225, 160), (45, 130, 55)),
        {
            'lines': ['SALAD', 'DRESSING'],
            'paper': (60, 150, 65),
            'ink': WHITE,
            'band': (245, 240, 200),
            'size_px': 26,
        },
    )


def _packets(root: Path) -> None:
    yellow, blue = (250, 215, 70), (70, 130, 215)
    rows = (
        # name, initial, size, bottom, lines, (lid, side, ink), text size
        (
            'butter',
            REVERSED,
            (0.05, 0.09, 0.034),
            0.02,
            ['BUTTER'],
            (yellow, (240, 200, 50), (20, 60, 160)),
            54,
        ),
        (
            'cream_cheese',
            REVERSED,
            (0.055, 0.085, 0.04),
            0.025,
            ['CREAM', 'CHEESE'],
            (WHITE, blue, (20, 45, 130)),
            48,
        ),
        (
            'chocolate_pudding',
            REVERSED,
            (0.06, 0.08, 0.038),
            0.06,
            ['CHOCO', 'PUDDING'],
            ((95, 55, 35), (75, 40, 25), (245, 215, 170)),
            46,
        ),
        (
            'cookies',
            TURNED,
            (0.075, 0.085, 0.045),
            0.06,
            ['COOKIES'],
            ((205, 60, 120), (170, 40, 95), (255, 240, 200)),
            48,
        ),
    )
    for name, *arguments in rows:
        packet(root / name, name, *arguments)


def _wine_bottle(directory: Path) -> None:
    bottle(
        directory,
        'wine_bottle',
        REVERSED,
        [(0.028, 0.0), (0.03, 0.004), (0.03, 0.1), (0.026, 0.118), (0.012, 0.135), (0.011, 0.16)],
        (0.03, 0.085),
        [(0.0125, 0.158), (0.0125, 0.185)],
        ((28, 60, 35), (120, 20, 35)),
        {
            'lines': ['VINO'],
            'paper': (240, 232, 210),
            'ink': (120, 20, 35),
            'band': (200, 170, 90),
            'size_px': 44,
        },
    )


def build_groceries(assets: Path) -> None:
    """Write every packed food under `assets`, LIBERO's asset folder."""
    hope = assets / 'stable_hope_objects'
    _cans(hope)
    _bottles(hope)
    _packets(hope)
    _milk(hope / 'milk')
    _orange_juice(hope / 'orange_juice')
    _wine_bottle(assets / 'turbosquid_objects' / 'wine_bottle')
