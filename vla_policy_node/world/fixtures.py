"""Stand-ins for the furniture that does not move: cabinet, stove, wine rack.

LIBERO's Python classes say which joints and regions exist and at which joint positions a drawer
counts as open or the stove as on. Its initial states say where the regions are: bowls start in
the top drawer, on the cabinet and on the burner.
"""

from __future__ import annotations

from pathlib import Path

from vla_policy_node.world.mjcf import ObjectModel, element
from vla_policy_node.world.textures import wood

# LIBERO puts a fixture at the table's height - 0.04 m - its bottom site: the origin is on the
# table when that site is 0.04 m below it.
_ON_TABLE = {'bottom_m': 0.04}


def _drawer(model: ObjectModel, level: str, height: float) -> None:
    """Add one drawer; it opens towards -y, by at most 0.16 m."""
    body = model.part(f'cabinet_{level}', (0, 0.01, height))
    element(
        body,
        'joint',
        name=f'{level}_level',
        type='slide',
        axis=(0, 1, 0),
        range=(-0.16, 0),
        limited='true',
        damping=2,
        frictionloss=0.3,
    )

    def panel(pos, size, material='drawer', mass=0.05):
        model.solid(body, type='box', pos=pos, size=size, material=material, mass=mass)

    panel((0, 0, -0.031), (0.094, 0.083, 0.003))
    panel((0.093, 0, -0.008), (0.003, 0.083, 0.022))
    panel((-0.093, 0, -0.008), (0.003, 0.083, 0.022))
    panel((0, 0.081, -0.008), (0.094, 0.003, 0.022))
    panel((0, -0.0945, 0), (0.109, 0.007, 0.0345), 'front', 0.2)
    panel((0, -0.127, 0), (0.034, 0.005, 0.005), 'brass', 0.02)
    panel((0.028, -0.112, 0), (0.004, 0.011, 0.004), 'brass', 0.01)
    panel((-0.028, -0.112, 0), (0.004, 0.011, 0.004), 'brass', 0.01)
    model.region(f'{level}_region', body, pos=(0, 0, 0), size=(0.085, 0.075, 0.033))


def _wooden_cabinet(directory: Path) -> None:
    model = ObjectModel(directory, 'wooden_cabinet', **_ON_TABLE, top_m=0.238, radius_m=0.06)
    model.material('case', wood((150, 98, 58), 3))
    model.material('front', wood((176, 122, 76), 5))
    model.material('drawer', wood((205, 165, 115), 7))
    model.material('brass', rgba=(0.75, 0.62, 0.3, 1), specular=0.7, shininess=0.7)
    for pos, size in (
        ((0.105, 0.015, 0.119), (0.005, 0.09, 0.119)),
        ((-0.105, 0.015, 0.119), (0.005, 0.09, 0.119)),
        ((0, 0.101, 0.119), (0.11, 0.004, 0.119)),
        ((0, 0.015, 0.006), (0.1, 0.09, 0.006)),
        ((0, 0.017, 0.233), (0.113, 0.093, 0.005)),
    ):
        model.solid(type='box', pos=pos, size=size, material='case', mass=1)
    # Top to bottom: the order of the joints in LIBERO's initial states.
    pitch = 0.0715
    for index, level in enumerate(('top', 'middle', 'bottom')):
        _drawer(model, level, 0.012 + pitch * (2.5 - index))
    model.region('top_side', pos=(0, 0.015, 0.238), size=(0.1, 0.09, 0.01))
    model.save()


def _flat_stove(directory: Path) -> None:
    model = ObjectModel(directory, 'flat_stove', **_ON_TABLE, top_m=0.045, radius_m=0.05)
    model.material('enamel', rgba=(0.16, 0.16, 0.18, 1), specular=0.5, shininess=0.6)
    model.material('steel', rgba=(0.62, 0.62, 0.65, 1), specular=0.6, shininess=0.6)
    model.material('coil', rgba=(0.07, 0.07, 0.08, 1))
    model.material('knob', rgba=(0.80, 0.12, 0.10, 1), specular=0.4)
    body = {'type': 'box', 'pos': (0.105, 0, 0.02), 'size': (0.145, 0.105, 0.02)}
    model.solid(material='enamel', mass=3, **body)
    model.visual(type='box', pos=(0.105, 0, 0.038), size=(0.147, 0.107, 0.003), material='steel')

    burner = model.part('burner', (0.147, 0, 0.041))
    plate = {'type': 'cylinder', 'pos': (0, 0, 0.001), 'size': (0.075, 0.003)}
    model.solid(burner, material='enamel', mass=0.5, **plate)
    for level, radius in enumerate((0.062, 0.052, 0.040, 0.030, 0.018)):
        model.visual(
            burner,
            type='cylinder',
            pos=(0, 0, 0.004 + 0.0004 * level),
            size=(radius, 0.0004),
            material='steel' if level % 2 else 'coil',
        )
    model.region('cook_region', burner, pos=(0, 0, 0.004), size=(0.07, 0.07, 0.006))
    # LIBERO shows this site (alpha 0 to 1) while the stove is on.
    element(
        burner,
        'site',
        name='burner',
        type='cylinder',
        pos=(0, 0, 0.004),
        quat=(1, 0, 0, 0),
        size=(0.062, 0.0022),
        rgba=(1, 0.15, 0.05, 0),
    )

    knob = model.part('button', (0.01, 0, 0.042))
    element(
        knob,
        'joint',
        name='button',
        type='hinge',
        axis=(0, 0, 1),
        range=(0, 2.1),
        limited='true',
        damping=0.02,
        frictionloss=0.01,
    )
    dial = {'type': 'cylinder', 'pos': (0, 0, 0.006), 'size': (0.022, 0.006)}
    grip = {'type': 'box', 'pos': (0, 0, 0.023), 'size': (0.008, 0.022, 0.012)}
    model.solid(knob, material='knob', mass=0.05, **dial)
    model.solid(knob, material='knob', mass=0.05, **grip)
    model.save()


def _wine_rack(directory: Path) -> None:
    """Build a rack on which a bottle lies along y, across two rails with end stops."""
    model = ObjectModel(directory, 'wine_rack', **_ON_TABLE, top_m=0.14, radius_m=0.06)
    model.material('rack', wood((120, 72, 42), 11))
    panels = [
        ((0, 0, 0.006), (0.09, 0.075, 0.006)),
        ((0, 0.05, 0.071), (0.09, 0.008, 0.059)),
        ((0, -0.05, 0.071), (0.09, 0.008, 0.059)),
    ]
    panels += [
        ((x, y, 0.137), (0.006, 0.008, 0.007)) for x in (-0.084, 0, 0.084) for y in (-0.05, 0.05)
    ]
    for pos, size in panels:
        model.solid(type='box', pos=pos, size=size, material='rack', mass=0.3)
    model.region('top_region', pos=(0, 0, 0.13), size=(0.085, 0.075, 0.01))
    model.save()


def build_fixtures(assets: Path) -> None:
    """Write cabinet, stove and rack under `assets`, LIBERO's asset folder."""
    _wooden_cabinet(assets / 'articulated_objects')
    _flat_stove(assets / 'articulated_objects')
    _wine_rack(assets / 'turbosquid_objects' / 'wine_rack')
