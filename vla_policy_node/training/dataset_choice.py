"""Which features of a LeRobot dataset a policy takes as its cameras, its state and its actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from vla_policy_node.checkpoints.reading import listed, plain
from vla_policy_node.lerobot.info import ACTION, CAMERA, STATE, DatasetInfo, Feature
from vla_policy_node.policy.interface import END_EFFECTOR_DELTA, PolicySpec, Quantity
from vla_policy_node.training.demonstrations import HOLD

STILL = 'still'
BY_PLACE = '--by-place'


@dataclass(frozen=True)
class Numbers:
    """Numbers of a feature: which ones, in which order, and what they are called from here on."""

    key: str
    places: tuple[int, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class DatasetChoice:
    """What is taken of a dataset.

    cameras: name -> key. after_end: what a chunk beyond the end of an episode says, HOLD for the
    last action, STILL for no motion.
    """

    cameras: Mapping[str, str]
    state: Numbers
    actions: Numbers
    after_end: str

    def document(self) -> dict:
        """Return it as plain values."""
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in asdict(self).items()}


def choose(
    info: DatasetInfo, spec: PolicySpec | None, cameras: Mapping[str, str],
    state: str = STATE, action: str = ACTION, by_place: bool = False,
) -> DatasetChoice:
    """Return what a policy takes; ValueError with one sentence if it does not fit.

    spec: of the policy, None for whichever the dataset is for. cameras: name -> key, chosen by
    the user. state, action: keys. by_place: numbers may be called otherwise than in the policy,
    if there are as many.
    """
    # A policy that reads no state does not mind one.
    states, actions = (spec.state or None, spec.actions) if spec else (None, None)
    moves = tuple(quantity.name for quantity in END_EFFECTOR_DELTA)
    chosen = _numbers(info, action, actions, '--action', by_place)
    return DatasetChoice(
        cameras=_cameras(info, spec.cameras if spec else None, cameras),
        state=_numbers(info, state, states, '--state', by_place) if states or (
            state != STATE or state in info.features) else Numbers('', (), ()),
        actions=chosen,
        after_end=STILL if chosen.names == moves else HOLD)


def _cameras(
    info: DatasetInfo, wanted: Sequence[str] | None, chosen: Mapping[str, str]
) -> dict[str, str]:
    there = info.cameras
    if not there:
        raise ValueError(f'{info.folder} has no pictures, so no policy can learn from it.')
    for name, key in chosen.items():
        if key not in there and CAMERA + key not in there:
            raise ValueError(f'{info.folder} has no camera {plain(key)}; it has '
                             f'{listed(there)}.')
        if wanted is not None and name not in wanted:
            raise ValueError(f"The policy has no camera '{plain(name)}'; it looks at "
                             f'{listed(wanted)}.')
    full = {name: key if key in there else CAMERA + key for name, key in chosen.items()}
    names = {_word(feature.camera): key for key, feature in there.items()}
    if wanted is None:
        return {_word(feature.camera): key for key, feature in there.items()
                if key not in full.values()} | full
    found: dict[str, str] = {}
    for name in wanted:
        key = full.get(name) or names.get(name, '')
        if not key:
            left = [key for key in there if key not in found.values()]
            raise ValueError(
                f"{info.folder} has no camera called '{name}', which the policy looks at; say "
                f'which one it is with --camera {name}=KEY, of {listed(left or there)}.')
        found[name] = key
    if len(set(found.values())) < len(found):
        raise ValueError(f'{info.folder}: two cameras of the policy are one of the dataset '
                         f'({listed(f"{name}={key}" for name, key in found.items())}); name '
                         'another one with --camera NAME=KEY.')
    return found


def _numbers(
    info: DatasetInfo, key: str, wanted: Sequence[Quantity] | None, option: str, by_place: bool
) -> Numbers:
    feature = info.features.get(key)
    if feature is None or feature.is_camera or len(feature.shape) > 1:
        flat = [name for name, other in info.features.items()
                if not other.is_camera and len(other.shape) == 1 and other.size > 1]
        what = 'has no feature' if feature is None else 'has no plain numbers in'
        raise ValueError(f'{info.folder} {what} {plain(key)}; name one with {option} KEY, of '
                         f'{listed(flat) or "none"}.')
    names = _names(feature)
    if wanted is None:
        return Numbers(key, tuple(range(feature.size)), names)
    expected = tuple(quantity.name for quantity in wanted)
    if set(expected) <= set(names) and len(set(names)) == len(names):
        return Numbers(key, tuple(names.index(name) for name in expected), expected)
    said = f'the {feature.size} numbers of {plain(key)} are {listed(names)}'
    if len(expected) != feature.size:
        raise ValueError(
            f'{info.folder}: {said}, and the policy takes {len(expected)}, {listed(expected)}; '
            f'name another feature with {option} KEY, or take a --checkpoint or --contract of '
            'this robot.')
    if not (by_place or not feature.names):
        raise ValueError(
            f'{info.folder}: {said}, and the policy calls its own {listed(expected)}; if they are '
            f'the same in this order and these units, add {BY_PLACE}.')
    return Numbers(key, tuple(range(feature.size)), expected)


def _names(feature: Feature) -> tuple[str, ...]:
    """Return what the numbers are called, as far as a policy's own names are concerned."""
    if len(feature.names) == feature.size and len(set(feature.names)) == feature.size:
        return tuple(name.removesuffix('.pos') for name in feature.names)
    last = _word(feature.key.rpartition('.')[2])
    return tuple(f'{last}_{place}' for place in range(feature.size))


def _word(name: str) -> str:
    """Make a name as contracts have them of a key of a camera."""
    word = ''.join(c if c.isascii() and c.isalnum() else '_' for c in name.lower()).strip('_')
    return (word or 'camera')[:40]
