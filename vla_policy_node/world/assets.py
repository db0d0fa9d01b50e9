"""Generates stand-ins for LIBERO's assets.

The `hf-libero` package ships task files and initial states, but neither meshes nor scenes. These
procedural stand-ins have the names, joints and regions that its Python classes look up, so
that every task of libero_object, libero_spatial and libero_goal runs with LIBERO's own goals,
controller and success predicates. Shapes, sizes and pictures are ours; results on them are not
LIBERO benchmark scores.
"""

from __future__ import annotations

from pathlib import Path

from vla_policy_node.world.fixtures import build_fixtures
from vla_policy_node.world.groceries import build_groceries
from vla_policy_node.world.scenes import build_scenes
from vla_policy_node.world.tableware import build_tableware


def build_assets(directory: Path) -> None:
    """Write all stand-ins into `directory`, laid out like LIBERO's asset folder."""
    build_groceries(directory)
    build_tableware(directory)
    build_fixtures(directory)
    build_scenes(directory)
