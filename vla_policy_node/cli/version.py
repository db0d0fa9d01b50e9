"""`vla --version`: of this package and of what it stands on, without loading any of it."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

import typer

_NAMES = {'torch': ('torch',), 'rclpy': ('rclpy', 'ros-rclpy')}


def show_version(wanted: bool) -> None:
    """Print one line and end, if wanted."""
    if not wanted:
        return
    parts = [f'vla_policy_node {_version("vla_policy_node", "vla-policy-node")}']
    parts += [f'{name} {_version(*names)}' for name, names in _NAMES.items()]
    parts.append(f'ROS 2 {os.environ.get("ROS_DISTRO", "").capitalize() or "not sourced"}')
    typer.echo(', '.join(parts))
    raise typer.Exit


def _version(*names: str) -> str:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return 'not installed'
