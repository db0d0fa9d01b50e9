"""Where configuration and checkpoints are: in the source tree, or where they were installed."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

PACKAGE = 'vla_policy_node'
SHIPPED = 'libero_object'  # the default checkpoint, of those under checkpoints/
# The sections of a parameter file, in the order in which nodes start.
NODES = ('recorder', 'world', 'guard', 'policy', 'visualizer', 'player')


class SystemDescriptionError(ValueError):
    """Arguments or a configuration file that describe no system; one sentence."""


def read_config(path: Path | str) -> dict[str, dict[str, Any]]:
    """Return the parameters of each node in a ROS 2 parameter file.

    Sections are nodes, or `/**` for all of them; a node's own section wins.
    Raises SystemDescriptionError if it is no such file.
    """
    path = Path(path).expanduser()
    try:
        document = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
    except OSError as error:
        raise SystemDescriptionError(
            f"The parameter file '{path}' cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise SystemDescriptionError(f"'{path}' is not YAML: {error}") from error
    sections = {'/**': {}, **{name: {} for name in NODES}}
    for key, section in document.items() if isinstance(document, dict) else [('', None)]:
        name = key if key == '/**' else str(key).lstrip('/')
        values = section.get('ros__parameters') if isinstance(section, dict) else None
        if name not in sections or not isinstance(values, dict):
            raise SystemDescriptionError(
                f"'{path}' has a section '{key}'; sections are {', '.join(sections)}, each with "
                "'ros__parameters:' and the parameters below it.")
        sections[name] = values
    shared = sections.pop('/**')
    return {name: {**shared, **values} for name, values in sections.items()}


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
    except PackageNotFoundError as error:
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


def untrained_checkpoint_path() -> Path:
    """Return where the small untrained checkpoint is, or will be; it changes with its recipe."""
    from vla_policy_node.world.cache import cache_root, digest

    recipe = Path(find_spec('vla_policy_node.runtime.small').origin)
    return cache_root() / 'checkpoints' / f'small-seed0-{digest([recipe.read_bytes()])}'


def untrained_checkpoint() -> Path:
    """Return the small checkpoint with random weights of seed 0, created if it does not exist."""
    from vla_policy_node.world.cache import build_once

    def build(directory: Path) -> None:
        from vla_policy_node.runtime.small import create_small_checkpoint

        create_small_checkpoint(directory, seed=0)
        print(f'Created a small policy, UNTRAINED (random weights, seed 0): {target}')

    target = untrained_checkpoint_path()
    return build_once(target, build)
