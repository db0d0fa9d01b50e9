"""Where configuration and checkpoints are: in the source tree, or where they were installed."""

import difflib
import json
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vla_policy_node.system.parameter_file import (
    PARAMETERS,
    flattened,
    is_for,
    read_sections,
    usable,
)

PACKAGE = 'vla_policy_node'
SHIPPED = 'libero_object'  # the default checkpoint, of those under checkpoints/
# The sections of a parameter file, in the order in which nodes start.
NODES = ('recorder', 'world', 'guard', 'policy', 'visualizer', 'player')


# Likeness above which a name is taken for a misspelt one of ours.
CLOSE = 0.8


class SystemDescriptionError(ValueError):
    """Arguments or a configuration file that describe no system; one sentence."""


def read_config(
    path: Path | str, namespace: str = '', fitting: bool = False
) -> dict[str, dict[str, Any]]:
    """Return the parameters of each node in a ROS 2 parameter file.

    Sections are nodes, in any namespace or in this one ('/r1/policy'), or have wildcards, as
    `/**` for all; a node's own section wins. Sections of other people's nodes, and parameters of
    theirs in a section for all, are passed over. fitting: so is what a section for all says of
    other nodes of ours; a node refuses parameters that it does not have.
    Raises SystemDescriptionError if it is no such file, or means another robot.
    """
    path = Path(path).expanduser()
    try:
        sections = read_sections(path)
        nodes: dict[str, dict[str, Any]] = {name: {} for name in NODES}
        for key in sorted(sections, key=lambda key: '*' not in key):  # own sections win
            _check_section(path, key, sections[key])
            for name, values in nodes.items():
                if key == name or is_for(key, name, namespace):
                    values |= _given(sections[key], '*' in key, name if fitting else '')
        _check_namespace(path, sections, namespace)
    except ValueError as error:
        text = str(error)
        raise SystemDescriptionError(
            text if str(path) in text else f"In '{path}': {text}") from error
    return nodes


def _given(section: dict[str, Any], is_shared: bool, node: str) -> dict[str, Any]:
    values = flattened(section)
    if is_shared:
        known = _known_parameters()
        every = sorted(set().union(*known.values()))
        for name in values.keys() - every:
            if close := difflib.get_close_matches(name, every, 1, CLOSE):
                raise ValueError(f'There is no parameter {name}; did you mean {close[0]}?')
        wanted = known[node] if node else every
        values = {name: value for name, value in values.items() if name in wanted or (
            node in ('', 'policy') and name.endswith(('_transform', '_reference')))}
    return {name: usable(name, value) for name, value in values.items()}


@cache
def _known_parameters() -> dict[str, frozenset[str]]:
    """Return the parameters of each node, all of which are in the default file."""
    sections = read_sections(default_config())
    return {name: frozenset(sections[name]) | {'use_sim_time'} for name in NODES}


def _check_section(path: Path, key: str, section: Any) -> None:
    """Raise ValueError for a section that is meant for our nodes and cannot be used."""
    name = key.rpartition('/')[2]
    is_ours = name in NODES or '*' in key
    if is_ours and not isinstance(section, dict):
        raise ValueError(
            f"'{path}' has a section '{key}'; sections are /**, {', '.join(NODES)}, each with "
            f"'{PARAMETERS}:' and the parameters below it.")
    meant = name.removesuffix('_node')
    close = [meant] if meant in NODES else difflib.get_close_matches(name, NODES, 1, CLOSE)
    if not is_ours and close:
        raise ValueError(f"'{path}' has a section '{key}'; sections are /**, {', '.join(NODES)}: "
                         f'did you mean {close[0]}?')


def _check_namespace(path: Path, sections: Mapping[str, Any], namespace: str) -> None:
    """Raise ValueError if no section is for our nodes, or those for one are for other robots."""
    ours = [key for key in sections if '*' in key or key.rpartition('/')[2] in NODES]
    if sections and not ours:
        raise ValueError(
            f"'{path}' has sections {', '.join(sections)} and none for these nodes: /**, "
            f"{', '.join(NODES)}, each with '{PARAMETERS}:' and the parameters below it.")
    for name in NODES:
        keys = [key for key in ours if key.rpartition('/')[2] == name]
        if keys and not any(key == name or is_for(key, name, namespace) for key in keys):
            raise ValueError(
                f"'{path}' has parameters for {', '.join(keys)}, and the node is "
                f'{namespace.rstrip("/")}/{name}; start it in that namespace, or call the section '
                f'{name}.')


def share_directory() -> Path:
    """Return the directory with `config` and `launch`: the source tree, or where it is installed.

    Raises SystemDescriptionError if there is neither.
    """
    source = Path(__file__).resolve().parents[2]
    if (source / 'config' / 'bringup.yaml').is_file():
        return source
    from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

    try:
        return Path(get_package_share_directory(PACKAGE))
    except (PackageNotFoundError, OSError) as error:  # OSError: no workspace is sourced
        raise SystemDescriptionError(
            f'{PACKAGE} is not installed in this environment; source install/setup.bash, or name '
            'a parameter file with config.') from error


def default_config() -> Path:
    """Return the parameter file that is used when none is named."""
    return share_directory() / 'config' / 'bringup.yaml'


def shipped_checkpoint() -> Path:
    """Return where the checkpoint is that comes with the package."""
    return share_directory() / 'checkpoints' / SHIPPED


def comes_with_package(checkpoint: Path) -> bool:
    """Whether a directory is a shipped checkpoint, or the untrained one that is made here."""
    place = checkpoint.resolve()
    return (place.parent == shipped_checkpoint().parent.resolve()
            or place == untrained_checkpoint_path().resolve())


def default_checkpoint() -> Path:
    """Return the shipped checkpoint, or an untrained one where it was not installed."""
    shipped = shipped_checkpoint()
    return shipped if shipped.is_dir() else untrained_checkpoint()


def untrained_checkpoint_path(sizes: Mapping[str, Any] | None = None) -> Path:
    """Return where the small untrained checkpoint is, or will be; it changes with its recipe."""
    from vla_policy_node.world.cache import cache_root, digest

    parts = [Path(find_spec('vla_policy_node.runtime.small').origin).read_bytes()]
    if sizes:
        if 'family' in sizes:
            recipe = find_spec('vla_policy_node.runtime.small_pi0')
            parts.append(Path(recipe.origin).read_bytes())
        parts.append(json.dumps(sizes, sort_keys=True).encode())
    return cache_root() / 'checkpoints' / f'small-seed0-{digest(parts)}'


def untrained_checkpoint(sizes: Mapping[str, Any] | None = None) -> Path:
    """Return the small checkpoint with random weights of seed 0, created if it does not exist.

    sizes: other ones, see `runtime.small.sized_config`; ValueError for those that cannot be.
        'family' among them: 'pi0' for the one of `runtime.small_pi0`.
    """
    from vla_policy_node.world.cache import build_once

    def build(directory: Path) -> None:
        from vla_policy_node.runtime.small import create_small_checkpoint, sized_config

        said = dict(sizes or {})
        if said.pop('family', ''):  # there is one that is not our own
            from vla_policy_node.runtime.small_pi0 import create_small_pi0

            create_small_pi0(directory, sized_config(said))
        else:
            create_small_checkpoint(directory, seed=0, config=sized_config(said))
        print(f'Created a small policy, UNTRAINED (random weights, seed 0): {target}')

    target = untrained_checkpoint_path(sizes)
    return build_once(target, build)
