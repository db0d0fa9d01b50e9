"""MJCF of a single object, in the form that robosuite's `MujocoXMLObject` reads.

Group 0 holds what collides (and has mass), group 1 what is seen, as robosuite expects.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vla_policy_node.world.meshes import Mesh, write_obj
from vla_policy_node.world.textures import Atlas

IDENTITY = (1.0, 0.0, 0.0, 0.0)  # quaternions here are (w, x, y, z), as in MJCF
_INVISIBLE = (0, 0, 0, 0)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return f'{value:.6g}'
    return ' '.join(f'{float(item):.6g}' for item in value)


def element(parent: ET.Element, tag: str, **attributes: object) -> ET.Element:
    """Append `<tag .../>` to `parent`; numbers and sequences become text."""
    return ET.SubElement(parent, tag, {key: _text(value) for key, value in attributes.items()})


def save_xml(root: ET.Element, path: Path) -> None:
    """Write `root`, indented."""
    ET.indent(root)
    path.write_text(ET.tostring(root, encoding='unicode') + '\n', encoding='utf-8')


def product(first: Sequence[float], second: Sequence[float]) -> np.ndarray:
    """Return the quaternion (w, x, y, z) that rotates by `second`, then by `first`."""
    a, b = np.asarray(first, float), np.asarray(second, float)
    vector = a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:])
    return np.array([a[0] * b[0] - a[1:] @ b[1:], *vector])


def rotated(vector: Sequence[float], quaternion: Sequence[float]) -> np.ndarray:
    """Return `vector` rotated by the unit `quaternion` (w, x, y, z)."""
    conjugate = np.asarray(quaternion, float) * (1, -1, -1, -1)
    return product(product(quaternion, (0.0, *vector)), conjugate)[1:]


def about(axis: str, angle_rad: float) -> np.ndarray:
    """Return the quaternion (w, x, y, z) of a turn about 'x', 'y' or 'z'."""
    quaternion = np.zeros(4)
    quaternion[0] = math.cos(angle_rad / 2)
    quaternion[1 + 'xyz'.index(axis)] = math.sin(angle_rad / 2)
    return quaternion


class ObjectModel:
    """Collects geoms and sites given in a canonical frame (+z up, +x to the viewer, z = 0 below).

    Pictures, meshes and finally the XML are written into `directory`. `initial` is the orientation
    (w, x, y, z) that LIBERO's initial states give the body: what is drawn upright here stands
    upright there. `origin_m` is the height of the body's origin above the lowest point;
    `bottom_m`, `top_m` and `radius_m` are for robosuite's placement samplers.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        initial: Sequence[float] = IDENTITY,
        origin_m: float = 0.0,
        bottom_m: float,
        top_m: float,
        radius_m: float,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._name = name
        self._root = ET.Element('mujoco', model=name)
        self._asset = element(self._root, 'asset')
        world = element(self._root, 'worldbody')
        frame = element(world, 'body')
        self._body = element(frame, 'body', name='object')
        self._inverse = np.asarray(initial, float) * (1, -1, -1, -1)
        self._origin = np.array([0.0, 0.0, origin_m])
        for site, pos in (
            ('bottom_site', (0, 0, -bottom_m)),
            ('top_site', (0, 0, top_m)),
            ('horizontal_radius_site', (radius_m, 0, 0)),
        ):
            element(frame, 'site', name=site, pos=pos, size=0.005, rgba=_INVISIBLE)

    def _place(
        self, parent: ET.Element | None, pos: Sequence[float], quat: Sequence[float]
    ) -> dict[str, object]:
        """Return where something goes; parts of a child body stay in that body's own frame."""
        if parent is not None:
            return {'pos': pos, 'quat': quat}
        return {
            'pos': rotated(np.asarray(pos, float) - self._origin, self._inverse),
            'quat': product(self._inverse, quat),
        }

    def part(self, name: str, pos: Sequence[float]) -> ET.Element:
        """Add a child body at `pos` (m), of the orientation of the canonical frame."""
        return element(self._body, 'body', name=name, **self._place(None, pos, IDENTITY))

    def material(self, name: str, picture: Image.Image | None = None, **attributes) -> None:
        """Add a material; `picture` is wrapped around boxes, one copy per side."""
        if picture is not None:
            element(self._asset, 'texture', name=f'tex-{name}', type='cube', file=f'{name}.png')
            picture.save(self._directory / f'{name}.png')
            attributes['texture'] = f'tex-{name}'
        element(self._asset, 'material', name=name, **{'specular': 0.2, **attributes})

    def skin(self, mesh: Mesh, atlas: Atlas, **material) -> None:
        """Add the mesh that is seen, painted with `atlas`."""
        write_obj(self._directory / 'visual.obj', mesh)
        atlas.save(self._directory / 'atlas.png')
        # As a shell: MuJoCo refuses the volume of an open surface.
        element(self._asset, 'mesh', name='visual', file='visual.obj', inertia='shell')
        element(self._asset, 'texture', name='atlas', type='2d', file='atlas.png')
        element(self._asset, 'material', name='paint', texture='atlas', **material)
        self.visual(None, type='mesh', mesh='visual', material='paint')

    def visual(
        self,
        parent: ET.Element | None = None,
        *,
        pos: Sequence[float] = (0, 0, 0),
        quat: Sequence[float] = IDENTITY,
        **attributes: object,
    ) -> None:
        """Add a geom that is seen and not felt."""
        where = self._place(parent, pos, quat)
        target = self._body if parent is None else parent
        element(target, 'geom', group=1, contype=0, conaffinity=0, **where, **attributes)

    def collision(
        self,
        parent: ET.Element | None = None,
        *,
        pos: Sequence[float] = (0, 0, 0),
        quat: Sequence[float] = IDENTITY,
        **attributes: object,
    ) -> None:
        """Add a geom that is felt and not seen; give it `mass` (kg)."""
        surface = {'friction': (0.95, 0.3, 0.1), 'condim': 4, 'solimp': (0.95, 0.99, 0.001)}
        where = self._place(parent, pos, quat)
        target = self._body if parent is None else parent
        element(target, 'geom', group=0, **surface, **where, **attributes)

    def solid(self, parent: ET.Element | None = None, *, material: str, mass: float, **shape):
        """Add a geom that is both seen and felt."""
        self.visual(parent, material=material, **shape)
        self.collision(parent, mass=mass, **shape)

    def region(
        self,
        name: str,
        parent: ET.Element | None = None,
        *,
        pos: Sequence[float],
        size: Sequence[float],
    ) -> None:
        """Add the box (half sizes in m) that a goal predicate such as In or On looks at."""
        target = self._body if parent is None else parent
        where = self._place(parent, pos, IDENTITY)
        element(target, 'site', name=name, type='box', size=size, rgba=_INVISIBLE, **where)

    def ring(
        self,
        lower: tuple[float, float],
        upper: tuple[float, float],
        thickness_m: float,
        mass: float,
        count: int = 12,
    ) -> None:
        """Add the collision wall of a bowl: `count` slabs between two (radius, height) circles."""
        (r0, z0), (r1, z1) = lower, upper
        tilt = math.atan2(r1 - r0, z1 - z0)
        half_width = max(r0, r1) * math.tan(math.pi / count)
        size = (thickness_m / 2, half_width, math.hypot(r1 - r0, z1 - z0) / 2)
        radius, height = (r0 + r1) / 2, (z0 + z1) / 2
        for angle in np.arange(count) * 2 * math.pi / count:
            pos = (radius * math.cos(angle), radius * math.sin(angle), height)
            quat = product(about('z', angle), about('y', tilt))
            self.collision(type='box', size=size, pos=pos, quat=quat, mass=mass / count)

    def save(self) -> None:
        """Write `<directory>/<name>.xml`."""
        save_xml(self._root, self._directory / f'{self._name}.xml')
