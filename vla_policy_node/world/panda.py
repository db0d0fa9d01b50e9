"""A private copy of robosuite's asset tree with a lighter Panda.

Software rendering pays per vertex, and the Panda's visual meshes have about 150 000 faces. They
are reduced to 12 %, which cannot be told apart at 256 px. Collision meshes stay as they are:
physics is unchanged. Nothing in site-packages is written; whatever is not reduced is a link.
"""

from __future__ import annotations

import os
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

_KEPT_FRACTION = 0.12
_FEWEST_FACES = 600  # no mesh is reduced below this: fingers would lose their shape
_MODELS = ('robots/panda/robot.xml', 'grippers/panda_gripper.xml', 'mounts/rethink_mount.xml')
_UNUSED = ('bullet_data', 'demonstrations', 'light_maps', '*.dae')


def build_robosuite_assets(source: Path, target: Path) -> None:
    """Mirror robosuite's `models/assets` folder `source` into `target`, Panda decimated."""
    shutil.copytree(
        source,
        target,
        copy_function=os.symlink,
        ignore=shutil.ignore_patterns(*_UNUSED),
        dirs_exist_ok=True,
    )
    for model in _MODELS:
        for path in visual_meshes(source / model):
            _decimate(path, target / path.relative_to(source))


def visual_meshes(model: Path) -> list[Path]:
    """Return the files of the meshes that an MJCF `model` only shows (no geom collides)."""
    root = ET.parse(model).getroot()
    geoms = [geom for geom in root.iter('geom') if geom.get('mesh')]
    shown = {geom.get('mesh') for geom in geoms if geom.get('contype') == '0'}
    felt = {geom.get('mesh') for geom in geoms if geom.get('group', '0') == '0'}
    return [
        model.parent / mesh.get('file')
        for mesh in root.iter('mesh')
        if mesh.get('name') in shown - felt
    ]


def _decimate(source: Path, target: Path) -> None:
    import fast_simplification
    import trimesh

    mesh = trimesh.load(source, force='mesh', process=False)
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    count = max(_FEWEST_FACES, int(_KEPT_FRACTION * len(mesh.faces)))
    if len(mesh.faces) <= count:
        return
    vertices, faces = fast_simplification.simplify(
        np.asarray(mesh.vertices, np.float32),
        np.asarray(mesh.faces, np.int32),
        target_count=count,
        agg=7,
    )
    target.unlink()
    reduced = trimesh.Trimesh(vertices, faces, process=False)
    reduced.export(target, **({'include_normals': False} if target.suffix == '.obj' else {}))
