"""What a LeRobot `config.json` says of inputs and outputs: cameras, state and actions.

LeRobot gives features names like `observation.images.top`, and neither state nor actions names
for their single numbers. Eight and seven are LIBERO's; others are called by their place. Whoever
wants other names writes `cameras`, `state` and `actions` into config.json
(`checkpoints.config_file`).
"""

from __future__ import annotations

import re

from vla_policy_node.checkpoints.config_file import MAX_CAMERAS, MAX_NUMBERS
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.policy.interface import PolicySpec, Quantity

MAX_FEATURES = 64
_STATE, _ACTION, _IMAGE = 'observation.state', 'action', 'observation.'
_EMPTY = 'empty_camera'  # LeRobot's name for a camera that is never there


def read_features(entries: Entries) -> PolicySpec:
    """Cameras in the order of the file, and how many numbers state and actions have.

    entries: of the whole file. ValueError with one sentence for what no policy could take.
    """
    inputs, outputs = entries.inside('input_features'), entries.inside('output_features')
    if len(inputs.names()) > MAX_FEATURES:
        raise inputs.error('', f'at most {MAX_FEATURES} features', len(inputs.names()))
    cameras = tuple(camera_name(name) for name in inputs.names()
                    if _kind(inputs, name) == 'VISUAL' and _EMPTY not in name)
    if not 1 <= len({*cameras}) == len(cameras) <= MAX_CAMERAS:
        raise entries.error(
            'input_features', f'1 to {MAX_CAMERAS} cameras of different names', list(cameras))
    state, actions = _size(inputs, _STATE), _size(outputs, _ACTION)
    libero = PolicySpec()
    if (state, actions) == (len(libero.state), len(libero.actions)):
        return PolicySpec(cameras)
    return PolicySpec(cameras, _named('state', state), _named('actions', actions))


def camera_name(feature: str) -> str:
    """`observation.images.top` -> `top`; what no identifier may hold becomes `_`."""
    name = re.sub(r'\W', '_', feature.removeprefix(_IMAGE).removeprefix('images.'))
    return name if name.isidentifier() else f'camera_{name}'


def _kind(features: Entries, name: str) -> str:
    return features.inside(name).word('type')


def _size(features: Entries, name: str) -> int:
    """How many numbers a feature has, 0 if it is not there."""
    if name not in features:
        return 0
    return int(features.inside(name).numbers('shape', 1, 1, MAX_NUMBERS)[0])


def _named(kind: str, size: int) -> tuple[Quantity, ...]:
    return tuple(Quantity(f'{kind}_{index}') for index in range(size))
