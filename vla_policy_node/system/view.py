"""What RViz shows of a system: its cameras' overlays, in its frame."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from vla_policy_node.common.ros_names import absolute
from vla_policy_node.contract import find_contract
from vla_policy_node.system.description import NodeSpec
from vla_policy_node.system.files import share_directory

_IMAGE = 'rviz_default_plugins/Image'


def view_of(nodes: Sequence[NodeSpec]) -> dict[str, Any]:
    """Return the configuration of RViz for a system.

    It is config/vla.rviz, with a display for each camera of the system's contract, on its topic in
    the system's namespace, and with the frame of the policy's commands, where they have one.
    """
    template = share_directory() / 'config' / 'vla.rviz'
    view = yaml.safe_load(template.read_text(encoding='utf-8'))
    parameters = {name: value for node in reversed(nodes) if node.name in ('policy', 'visualizer')
                  for name, value in node.parameters.items()}
    manager = view['Visualization Manager']
    if frame := parameters.get('frame_id'):
        manager['Global Options']['Fixed Frame'] = frame
    displays = manager['Displays']
    pattern = next(display for display in displays if display['Class'] == _IMAGE)
    shown = [_shown(pattern, camera, nodes[0].namespace if nodes else '')
             for camera in find_contract(str(parameters.get('contract') or '')).camera_names]
    manager['Displays'] = [
        *shown, *(display for display in displays if display['Class'] != _IMAGE)]
    return view


def write_view(nodes: Sequence[NodeSpec], file: Path) -> None:
    """Write the configuration for `rviz2 -d`."""
    file.write_text(yaml.safe_dump(view_of(nodes), sort_keys=False), encoding='utf-8')


def is_on_sim_time(nodes: Sequence[NodeSpec]) -> bool:
    """Whether the system lives on /clock, or makes it."""
    return any(node.parameters.get(name) for node in nodes
               for name in ('use_sim_time', 'publish_clock'))


def _shown(pattern: dict[str, Any], camera: str, namespace: str) -> dict[str, Any]:
    display = deepcopy(pattern)
    display['Name'] = camera.replace('_', ' ').capitalize()
    display['Topic']['Value'] = absolute(f'{camera}/overlay', namespace)
    return display
