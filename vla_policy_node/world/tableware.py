"""Stand-ins for bowl, plate, ramekin and basket. See `groceries` about sizes."""

from __future__ import annotations

from pathlib import Path

from vla_policy_node.world.meshes import lathe, merge
from vla_policy_node.world.mjcf import ObjectModel
from vla_policy_node.world.packaging import TURNED
from vla_policy_node.world.textures import Atlas, wicker


def _bowl(directory: Path) -> None:
    """Build the black bowl. Its origin lies low: On(x, bowl) asks for x to be above it."""
    atlas = Atlas()
    outside, rim, inside = (
        atlas.plain(colour) for colour in ((32, 32, 36), (95, 80, 70), (52, 50, 54))
    )
    mesh = merge(
        [
            lathe([(1e-5, 0.0), (0.028, 0.0)], outside),
            lathe(
                [(0.028, 0.0), (0.029, 0.004), (0.041, 0.017), (0.049, 0.034), (0.052, 0.049)],
                outside,
                32,
            ),
            lathe([(0.052, 0.049), (0.0505, 0.0505), (0.049, 0.049)], rim, 32),
            lathe(
                [(0.049, 0.049), (0.046, 0.034), (0.038, 0.019), (0.026, 0.008), (1e-5, 0.006)],
                inside,
                32,
            ),
        ]
    )
    model = ObjectModel(
        directory,
        'akita_black_bowl',
        initial=TURNED,
        origin_m=0.02,
        bottom_m=0.06,
        top_m=0.03,
        radius_m=0.045,
    )
    model.skin(mesh, atlas, specular=0.6, shininess=0.6)
    model.collision(type='cylinder', size=(0.029, 0.0035), pos=(0, 0, 0.0035), mass=0.05)
    model.ring((0.028, 0.004), (0.0455, 0.023), 0.005, mass=0.03)
    # Upright where it is gripped: flat pads turn a slanted wall until it slips out.
    model.ring((0.0485, 0.022), (0.0485, 0.050), 0.006, mass=0.03)
    model.save()


def _plate(directory: Path) -> None:
    atlas = Atlas()
    white, red = atlas.plain((240, 238, 232)), atlas.plain((190, 50, 45))
    mesh = merge(
        [
            lathe([(1e-5, 0.0), (0.044, 0.0), (0.068, 0.012), (0.068, 0.0145)], white, 32),
            lathe([(0.068, 0.0145), (0.060, 0.0125)], white, 32),
            lathe([(0.060, 0.0125), (0.055, 0.0105)], red, 32),
            lathe([(0.055, 0.0105), (0.044, 0.0065), (0.042, 0.006), (1e-5, 0.006)], white, 32),
        ]
    )
    model = ObjectModel(
        directory, 'plate', initial=TURNED, origin_m=0.01, bottom_m=0.06, top_m=0.01, radius_m=0.05
    )
    model.skin(mesh, atlas, specular=0.5, shininess=0.5)
    model.collision(type='cylinder', size=(0.046, 0.003), pos=(0, 0, 0.003), mass=0.12)
    model.ring((0.044, 0.004), (0.067, 0.0125), 0.004, mass=0.08)
    model.save()


def _ramekin(directory: Path) -> None:
    atlas = Atlas()
    white, glaze = atlas.plain((236, 228, 214)), atlas.plain((150, 95, 50))
    mesh = merge(
        [
            lathe([(0.036, 0.0), (0.040, 0.004), (0.041, 0.036)], white, 32),
            lathe([(0.041, 0.036), (0.0425, 0.042), (0.0405, 0.044), (0.038, 0.042)], glaze, 32),
            lathe([(0.038, 0.042), (0.036, 0.008), (0.033, 0.006), (1e-5, 0.006)], white, 32),
        ]
    )
    model = ObjectModel(
        directory,
        'glazed_rim_porcelain_ramekin',
        initial=TURNED,
        origin_m=0.022,
        bottom_m=0.06,
        top_m=0.05,
        radius_m=0.04,
    )
    model.skin(mesh, atlas, specular=0.5, shininess=0.5)
    # Solid to the rim: the bowl that starts on it would wedge itself into a thin ring.
    model.collision(type='cylinder', size=(0.041, 0.02), pos=(0, 0, 0.02), mass=0.22)
    model.save()


def _basket(directory: Path) -> None:
    model = ObjectModel(
        directory,
        'basket',
        initial=TURNED,
        origin_m=0.045,
        bottom_m=0.06,
        top_m=0.045,
        radius_m=0.1,
    )
    model.material('wicker', wicker((190, 140, 80)))
    model.material('wicker_rim', wicker((150, 100, 50), 8))
    half_x, half_y, height, wall = 0.105, 0.09, 0.09, 0.004
    model.solid(
        type='box', size=(half_x, half_y, wall), pos=(0, 0, wall), material='wicker', mass=0.2
    )
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        size = (wall if x else half_x, wall if y else half_y, height / 2)
        pos = (x * (half_x - wall), y * (half_y - wall), height / 2)
        model.solid(type='box', size=size, pos=pos, material='wicker', mass=0.1)
        rim = (size[0] + 0.003, size[1] + 0.003, 0.006)
        model.visual(type='box', size=rim, pos=(*pos[:2], height), material='wicker_rim')
    model.region('contain_region', pos=(0, 0, 0.052), size=(half_x - 0.008, half_y - 0.008, 0.048))
    model.save()


def build_tableware(assets: Path) -> None:
    """Write bowl, plate, ramekin and basket under `assets`, LIBERO's asset folder."""
    scanned = assets / 'stable_scanned_objects'
    _bowl(scanned / 'akita_black_bowl')
    _plate(scanned / 'plate')
    _ramekin(scanned / 'glazed_rim_porcelain_ramekin')
    _basket(scanned / 'basket')
