"""What a replay may adopt from a bag about its policy, given that bags may come from anybody.

`robot.yaml` beside the messages is the contract of the robot that was recorded, with the topics
that its streams have in the bag: data, which says no more than what is read from where.
`policy.yaml` holds the parameters of the policy node. Of these a replay follows what says how
observations were paired, which actions were computed from them and what the actions mean. Never
followed: the device, files, threads, what is published, how long anything may take. A checkpoint
only if it is one that comes with the package, or with trust. Where a robot may be listening,
limits count only where they are tighter than the configured ones.

Needs no ROS.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from vla_policy_node.common.plain_yaml import read_plain_yaml

# Beside the messages of a recording: the parameters of the policy node, as a parameter file.
RECORDED_PARAMETERS = 'policy.yaml'
RECORDED_ROBOT = 'robot.yaml'
_MOST_BYTES = 64 * 2**10
_LONGEST = 256  # characters, and elements of a list

_FOLLOWED = (
    'methods', 'method_settings', 'action_rows', 'chunk_length', 'statistics_key', 'dtype',
    'optimisation', 'preprocessing',
    'compressed', 'max_age_s', 'max_spread_s', 'state_tolerance_s', 'future_tolerance_s',
    'max_identical_frames', 'freeze_timeout_s',
    'control_rate_hz', 'pacing', 'execution_mode', 'ensemble_weighting', 'ensemble_decay',
    'ensemble_alpha', 'ensemble_horizon',
    'frame_id', 'rotation_form', 'translation_scale_m', 'rotation_scale_rad', 'gripper_open',
    'gripper_closed', 'gripper_threshold', 'gripper_dead_band',
)
_SMALLEST_COUNTS = (
    'max_step_translation_m', 'max_step_rotation_rad', 'max_linear_velocity_m_s',
    'max_angular_velocity_rad_s', 'max_linear_acceleration_m_s2',
    'max_angular_acceleration_rad_s2',
)
_LIMITS = (
    *_SMALLEST_COUNTS, 'workspace_min_m', 'workspace_max_m', 'default_workspace_half_m',
    'max_tracking_error_m', 'tracking_window_s', 'tracking_gain', 'tracking_delay_s',
)
_SETTING = re.compile(r'[a-z_0-9]+\.[a-z_0-9]+ *= *[\w.+-]*')


class UntrustedBagError(ValueError):
    """A bag wants a checkpoint that the user has to agree to; one sentence says which and how."""


def read_recorded(folder: Path) -> dict[str, object] | None:
    """Return all that a bag's policy.yaml says, None if it has none.

    folder: of the bag, or its single file. Raises ValueError with one sentence for what is no such
    file, or is not as a recorder writes it.
    """
    file = (folder if folder.is_dir() else folder.parent) / RECORDED_PARAMETERS
    if not file.exists():
        return None
    document = read_plain_yaml(file, _MOST_BYTES)
    try:
        values = document['policy']['ros__parameters']
        items = dict(values.items())
    except (TypeError, KeyError, AttributeError):
        raise ValueError(
            f"'{file}' has no section 'policy:' with 'ros__parameters:' and the parameters below "
            'it; a recorder writes one.') from None
    return checked(items, str(file))


def robot_file(folder: Path) -> Path:
    """Return where a bag's contract is if a recorder wrote it; folder: of the bag, or its file."""
    return (folder if folder.is_dir() else folder.parent) / RECORDED_ROBOT


def checked(recorded: dict[str, object], source: str) -> dict[str, object]:
    """Return what a bag says of parameters. Raises ValueError for what no parameter can be."""
    for name, value in recorded.items():
        if not (isinstance(name, str) and _is_plain(value)):
            raise ValueError(f"'{source}' has a value that is no parameter: {str(name)[:40]!r}.")
    settings = recorded.get('method_settings') or ()
    for entry in settings if isinstance(settings, list) else (settings,):
        if entry and not (isinstance(entry, str) and _SETTING.fullmatch(entry)):
            raise ValueError(
                f"'{source}' has {str(entry)[:60]!r} in method_settings; a recorder writes "
                "'method.setting=value'.")
    return recorded


def followed(
    recorded: Mapping[str, object], configured: Mapping[str, object], live: bool
) -> dict[str, object]:
    """Return the configured parameters with what a bag may say on top, but for the checkpoint.

    live: a robot may hear the commands; then no limit is wider than the configured one.
    """
    recorded = dict(recorded)
    # Until 2026 a camera was frozen after so many equal pictures; 0 meant never, as it does now.
    if recorded.get('max_identical_frames') == 0:
        recorded.setdefault('freeze_timeout_s', 0.0)
    taken = {name: value for name, value in recorded.items()
             if name in _FOLLOWED or name.endswith('_transform')}
    for name in _LIMITS:
        if name in recorded and not live:
            taken[name] = recorded[name]
        elif name in recorded and name in configured and name in _SMALLEST_COUNTS:
            taken[name] = _smaller(recorded[name], configured[name])
    return {**configured, **{n: value for n, value in taken.items() if n in configured}}


def checkpoint_to_follow(
    bag: Path, wanted: object, methods: object, is_shipped: Callable[[Path], bool],
    trusted: bool, allow: str,
) -> str:
    """Return the checkpoint that a bag wants, '' for the default one.

    is_shipped: whether a directory is one that comes with the package. allow: how the user says
    that the bag is trusted. An absolute path that is not on this machine is not followed either.
    Raises UntrustedBagError.
    """
    wanted = wanted if isinstance(wanted, str) else ''
    path = Path(wanted).expanduser() if wanted.startswith('~') else Path(wanted)
    is_here = path.is_dir()
    if not wanted or (path.is_absolute() and not is_here):
        return ''
    if trusted or (is_here and is_shipped(path)):
        return wanted
    kind = 'directory' if is_here else 'of the Hugging Face hub or a directory'
    names = ', '.join(map(str, methods)) if isinstance(methods, (list, tuple)) else ''
    raise UntrustedBagError(
        f"The bag '{bag}' asks for the checkpoint '{wanted[:_LONGEST]}' ({kind}), with the "
        f'methods {names[:_LONGEST] or "of the configuration"}; name a checkpoint yourself, or '
        f'allow this one with {allow}.')


def _smaller(recorded: object, configured: object) -> object:
    is_number = isinstance(recorded, (int, float)) and not isinstance(recorded, bool)
    return min(float(recorded), configured) if is_number and recorded > 0 else configured


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return len(value) <= _LONGEST and all(
            _is_plain(element) and not isinstance(element, list) for element in value)
    if isinstance(value, str):
        return len(value) <= 16 * _LONGEST
    if isinstance(value, int):
        return abs(value) < 2**63
    return isinstance(value, float) and math.isfinite(value)
