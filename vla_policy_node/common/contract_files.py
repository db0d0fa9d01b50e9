"""Where the robot contracts are that come with the package, and the streams of the default one.

Apart from `contract/`, which needs numpy: the command line names its options from here.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

DEFAULT = 'end_effector'


@cache
def contracts_folder() -> Path | None:
    """Return where the contracts lie: in the source tree, or in the prefix of the installation.

    None if they are not installed. Not by the ament index: a virtual environment works without
    being sourced.
    """
    for prefix in Path(__file__).resolve().parents:
        for place in (prefix, prefix / 'share' / 'vla_policy_node'):
            if (place / 'config' / 'contracts' / f'{DEFAULT}.yaml').is_file():
                return place / 'config' / 'contracts'
    return None


@cache
def default_streams() -> dict[str, str]:
    """Return the cameras and the sources of the default contract, and what to say of each."""
    folder = contracts_folder()
    if folder is None:
        return {}
    plain = yaml.safe_load((folder / f'{DEFAULT}.yaml').read_text(encoding='utf-8'))
    return {
        **{camera['name']: f"Images of the camera {camera['name']}; compressed ones are expected "
           'on TOPIC/compressed.' for camera in plain['cameras']},
        **{source['name']: f"Measurements of {source['name']} ({source['type']})."
           for source in plain['state']},
    }
