"""Stand-ins for the two rooms: a table with the robot behind it, and the floor.

Element names are those that LIBERO's `TableArena` and `EmptyArena` look up and move.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from vla_policy_node.world.mjcf import element, save_xml
from vla_policy_node.world.textures import planks, plaster, tiles, wood

# LIBERO's style table picks these two files for the styles of the three suites.
_FLOOR, _WALL = 'light-gray-floor-tile.png', 'light-gray-plaster.png'

# The support of the floor suites: LIBERO places their objects relative to this height (m).
_FLOOR_Z = -0.035


def _room(name: str) -> tuple[ET.Element, ET.Element, ET.Element]:
    """Return (root, asset, worldbody) of a room with walls, lights and the standard cameras."""
    root = ET.Element('mujoco', model=name)
    asset = element(root, 'asset')
    world = element(root, 'worldbody')
    element(
        asset,
        'texture',
        type='skybox',
        builtin='gradient',
        rgb1=(0.85, 0.88, 0.92),
        rgb2=(0.6, 0.65, 0.7),
        width=64,
        height=64,
    )
    element(asset, 'texture', name='texplane', type='2d', file=f'textures/{_FLOOR}')
    element(asset, 'texture', name='tex-wall', type='2d', file=f'textures/{_WALL}')
    element(
        asset,
        'material',
        name='floorplane',
        texture='texplane',
        texrepeat=(3, 3),
        texuniform='true',
        specular=0,
        shininess=0,
    )
    element(
        asset,
        'material',
        name='walls_mat',
        texture='tex-wall',
        texrepeat=(2, 2),
        texuniform='true',
        specular=0,
        shininess=0,
    )
    for wall, pos, quat, size in (
        ('rear', (-1.8, 0, 1.5), (0.5, 0.5, 0.5, 0.5), (3, 2, 0.01)),
        ('left', (0.2, 3, 1.5), (0.7071, 0.7071, 0, 0), (2, 2, 0.01)),
        ('right', (0.2, -3, 1.5), (0.7071, -0.7071, 0, 0), (2, 2, 0.01)),
    ):
        element(
            world,
            'geom',
            name=f'wall_{wall}_visual',
            type='box',
            pos=pos,
            quat=quat,
            size=size,
            group=1,
            contype=0,
            conaffinity=0,
            material='walls_mat',
        )
    element(
        world,
        'light',
        pos=(1, 0.6, 3),
        dir=(-0.5, -0.3, -0.8),
        directional='true',
        ambient=(0.16, 0.16, 0.16),
        diffuse=(0.42, 0.42, 0.4),
        specular=(0.2, 0.2, 0.2),
        castshadow='false',
    )
    element(
        world,
        'light',
        pos=(-0.5, -2, 3),
        dir=(0.2, 0.7, -0.9),
        directional='true',
        diffuse=(0.22, 0.22, 0.24),
        specular=(0, 0, 0),
        castshadow='false',
    )
    for camera in ('frontview', 'agentview'):
        element(world, 'camera', name=camera, mode='fixed', pos=(1, 0, 1.5))
    return root, asset, world


def _floor_plane(parent) -> None:
    element(
        parent,
        'geom',
        name='floor',
        type='plane',
        size=(3, 3, 0.1),
        group=1,
        condim=3,
        material='floorplane',
    )


def _tabletop(scenes: Path) -> None:
    root, asset, world = _room('tabletop')
    wood_path = scenes / 'textures' / 'table_wood.png'
    planks((206, 178, 142), 21).save(wood_path)
    element(asset, 'texture', name='tex-table', type='cube', file='textures/table_wood.png')
    element(asset, 'material', name='table_wood', texture='tex-table', specular=0.1)
    element(asset, 'material', name='table_legs', rgba=(0.35, 0.35, 0.37, 1), specular=0.4)
    _floor_plane(world)
    table = element(world, 'body', name='table', pos=(0, 0, 0.4))
    size = (0.4, 0.4, 0.025)
    element(table, 'geom', name='table_collision', type='box', size=size, group=0)
    element(
        table,
        'geom',
        name='table_visual',
        type='box',
        size=size,
        group=1,
        contype=0,
        conaffinity=0,
        material='table_wood',
    )
    element(table, 'site', name='table_top', pos=(0, 0, 0.025), size=0.001, rgba=(0, 0, 0, 0))
    for leg in range(1, 5):
        element(
            table,
            'geom',
            name=f'table_leg{leg}_visual',
            type='cylinder',
            size=(0.025, 0.4),
            group=1,
            contype=0,
            conaffinity=0,
            material='table_legs',
        )
    save_xml(root, scenes / 'libero_tabletop_base_style.xml')


def _floor(scenes: Path) -> None:
    root, asset, world = _room('floor')
    element(asset, 'texture', name='tex-plinth', type='cube', file='textures/plinth_wood.png')
    element(asset, 'material', name='plinth_wood', texture='tex-plinth', specular=0.1)
    wood((110, 105, 100), 31).save(scenes / 'textures' / 'plinth_wood.png')
    floor = element(world, 'body', name='floor', pos=(0, 0, _FLOOR_Z))
    _floor_plane(floor)
    # The robot's base is at height 0: a plinth fills the gap.
    element(
        world,
        'geom',
        name='plinth_visual',
        type='box',
        size=(0.13, 0.13, -_FLOOR_Z / 2),
        pos=(-0.62, 0, _FLOOR_Z / 2),
        group=1,
        contype=0,
        conaffinity=0,
        material='plinth_wood',
    )
    save_xml(root, scenes / 'libero_floor_base_style.xml')


def build_scenes(assets: Path) -> None:
    """Write both rooms under `assets`, LIBERO's asset folder."""
    scenes = assets / 'scenes'
    (scenes / 'textures').mkdir(parents=True)
    tiles((196, 196, 192), 41).save(scenes / 'textures' / _FLOOR)
    plaster((222, 220, 214), 43).save(scenes / 'textures' / _WALL)
    _tabletop(scenes)
    _floor(scenes)
