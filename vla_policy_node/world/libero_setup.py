"""Environment that LIBERO and robosuite need before they can be imported.

- `libero` asks a question on standard input unless its configuration file exists.
- `robosuite` 1.4 logs to one fixed file in the system's temporary folder, which a second user of
  the machine may not write, and prints warnings about optional files.
- Assets that the packages do not ship are generated, and the Panda's meshes are reduced.
- Initial states are converted to a format that can be read without unpickling.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import os
import sys
import types
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from vla_policy_node.world.assets import build_assets
from vla_policy_node.world.cache import build_once, cache_root, digest
from vla_policy_node.world.initial_states import convert_initial_states
from vla_policy_node.world.panda import build_robosuite_assets

SUITES = ('libero_object', 'libero_spatial', 'libero_goal')

# The modules whose text decides what is in the cache.
_GENERATORS = (
    'assets',
    'fixtures',
    'groceries',
    'initial_states',
    'libero_setup',
    'meshes',
    'mjcf',
    'packaging',
    'panda',
    'scenes',
    'tableware',
    'textures',
)


@dataclass(frozen=True)
class LiberoFiles:
    """Where things are on this machine."""

    libero: Path  # the package folder with bddl_files/ and init_files/
    assets: Path  # LIBERO's assets: the official ones where installed, else generated
    robosuite_assets: Path
    initial_states: Path  # npz

    @property
    def generated(self) -> bool:
        """Return whether the assets are the generated stand-ins."""
        return self.assets != self.libero / 'assets'


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f'The simulated world needs the Python package {name!r}: '
            'install the packages of requirements/no-deps.txt.'
        )
    return Path(next(iter(spec.submodule_search_locations)))


def libero_folder() -> Path:
    """Return the folder of LIBERO's task files, without importing LIBERO."""
    return _package_folder('libero') / 'libero'


def _cache_key(libero: Path) -> str:
    """Return a key that changes with the generators, the packages and where LIBERO is."""
    sources = [Path(__file__).parent / f'{name}.py' for name in _GENERATORS]
    names = ('hf-libero', 'robosuite', 'Pillow', 'fast-simplification')
    versions = json.dumps({name: version(name) for name in names})
    return digest([*(path.read_bytes() for path in sources), versions.encode(), bytes(libero)])


def locate() -> LiberoFiles:
    """Return where all files are, building the cache on first use. Any thread, any process."""
    libero = libero_folder()
    robosuite_assets = _package_folder('robosuite') / 'models' / 'assets'

    def build(directory: Path) -> None:
        build_assets(directory / 'assets')
        build_robosuite_assets(robosuite_assets, directory / 'robosuite')
        files = [file for suite in SUITES for file in (libero / 'init_files' / suite).glob('*')]
        convert_initial_states(
            [file for file in files if file.suffix == '.pruned_init'],
            directory / 'initial_states.npz',
        )
        (directory / 'config').mkdir()
        # LIBERO reads YAML; JSON is YAML.
        (directory / 'config' / 'config.yaml').write_text(
            json.dumps(
                {
                    'benchmark_root': str(libero),
                    'bddl_files': str(libero / 'bddl_files'),
                    'init_states': str(libero / 'init_files'),
                    'datasets': str(libero.parent / 'datasets'),
                    'assets': str(libero / 'assets'),
                }
            ),
            encoding='utf-8',
        )

    root = build_once(cache_root() / f'world-{_cache_key(libero)}', build)
    official = libero / 'assets'
    return LiberoFiles(
        libero=libero,
        assets=official if official.is_dir() else root / 'assets',
        robosuite_assets=root / 'robosuite',
        initial_states=root / 'initial_states.npz',
    )


@functools.cache
def prepare() -> LiberoFiles:
    """Set LIBERO and robosuite up, import them quietly, and return where their files are."""
    files = locate()
    config = files.initial_states.parent / 'config'
    chosen = os.environ.get('LIBERO_CONFIG_PATH')
    if not chosen or not (Path(chosen) / 'config.yaml').is_file():
        os.environ['LIBERO_CONFIG_PATH'] = str(config)
    if 'robosuite' not in sys.modules:
        # robosuite's own hook for private settings.
        settings = types.ModuleType('robosuite.macros_private')
        settings.FILE_LOGGING_LEVEL = None
        settings.CONSOLE_LOGGING_LEVEL = 'ERROR'
        sys.modules[settings.__name__] = settings
    with contextlib.redirect_stdout(io.StringIO()):
        import libero.libero
        import libero.libero.envs  # registers the problems
        import robosuite.models
    robosuite.models.assets_root = str(files.robosuite_assets)
    libero.libero._assets_path_cache = str(files.assets)
    return files
