"""Where a checkpoint of openpi or LeRobot keeps its statistics, and how it normalises by them.

The first of these that is there counts:

| files | of | data sets |
|---|---|---|
| `policy_{pre,post}processor.json` and their tensors | LeRobot since 0.4 | one, 'lerobot' |
| `normalize_inputs.*`, `unnormalize_outputs.*` in the weights | LeRobot before | one, or robots |
| `meta/stats.json` or `stats.json` | a data set of LeRobot | the same |
| `assets/<id>/norm_stats.json` or `norm_stats.json` | openpi | one for each robot |

The mode is what `norm_map` or `normalization_mapping` says; of openpi it is that of the kind of
policy, since its files do not tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from vla_policy_node.checkpoints.adapter import place
from vla_policy_node.checkpoints.conventions import (
    Aloha,
    Convention,
    mask_of,
    mask_without,
)
from vla_policy_node.checkpoints.entries import Entries, is_number
from vla_policy_node.checkpoints.processors import (
    ACTION,
    MOST_NUMBERS,
    PREPROCESSOR,
    STATE,
    Processors,
    read_processors,
    words,
)
from vla_policy_node.checkpoints.reading import listed, plain, read_json
from vla_policy_node.checkpoints.scaled_statistics import Numbers, ScaledStatistics
from vla_policy_node.checkpoints.scaling import MODES, Rule
from vla_policy_node.checkpoints.tensor_files import open_safetensors, unwrapped

LEROBOT = 'lerobot'  # what the one data set of a checkpoint is called that names none
ASSETS, NORM_STATS = 'assets', 'norm_stats.json'
_OF_DATA = ('meta/stats.json', 'stats.json')
_WEIGHTS = 'model*.safetensors'
_MOST_SETS = 64
# Names of statistics in weights; SmolVLA's first release has some of each robot.
_BUFFER = re.compile(
    r'(?:normalize_inputs\.(?:(?:(?P<robot>[\w-]+)_)?buffer_)?observation_state'
    r'|(?:unnormalize_outputs|normalize_targets)\.(?:(?:(?P<owner>[\w-]+)_)?buffer_)?action)'
    r'\.(?P<statistic>\w+)')


@dataclass(frozen=True)
class ValueFiles:
    """Statistics of all data sets that a checkpoint knows.

    source: the file that has them. sets: data set -> statistics of the state and of actions.
    older: whether LeRobot normalised by them inside the network. processors: None for none.
    """

    source: str
    sets: Mapping[str, tuple[Numbers, Numbers]]
    older: bool = False
    processors: Processors | None = None

    @property
    def openpi(self) -> bool:
        """Whether they are in the layout of openpi."""
        return self.source.endswith(NORM_STATS)

    @property
    def said_by(self) -> str:
        """Who says how to normalise, for people."""
        if self.openpi and self.processors is None:
            return f'{self.source}, as openpi does for this kind of policy'
        return self.source


def are_there(directory: Path, document: Mapping) -> bool:
    """Whether to look for such files at all; document: the parsed config.json."""
    return 'type' in document or any(
        (directory / name).exists() for name in (PREPROCESSOR, ASSETS, NORM_STATS, *_OF_DATA))


def files(directory: Path) -> list[Path]:
    """The files that `read_values` may read, but for the weights."""
    patterns = ('policy_*processor*', *_OF_DATA, NORM_STATS, f'{ASSETS}/**/{NORM_STATS}')
    return [path for pattern in patterns for path in islice(directory.glob(pattern), _MOST_SETS)]


def read_values(directory: Path, key: str = '') -> ValueFiles:
    """Find and read the statistics; no `sets` if the checkpoint has none.

    key: of a data set; a robot of openpi's may also be chosen where other files come first.
    ValueError with one sentence for files that are damaged.
    """
    found = _first_values(directory)
    if key and key not in found.sets and (robots := read_assets(directory)):
        source = f'{ASSETS}/*/{NORM_STATS}'
        return ValueFiles(source, {**found.sets, **robots}, processors=found.processors)
    return found


def _first_values(directory: Path) -> ValueFiles:
    processors = read_processors(directory)
    if processors and any(processors.numbers.values()):
        numbers = processors.numbers[STATE], processors.numbers[ACTION]
        return ValueFiles(PREPROCESSOR, {LEROBOT: numbers}, processors=processors)
    for path in sorted(islice(directory.glob(_WEIGHTS), _MOST_SETS)):
        if robots := _in_weights(path):
            return ValueFiles(path.name, robots, older=True, processors=processors)
    for name in _OF_DATA:
        if place(directory, name).is_file():
            document = Entries(read_json(place(directory, name)), name)
            state, action = (_rounded(_listed_numbers(document, key)) for key in (STATE, ACTION))
            return ValueFiles(name, {LEROBOT: (state, action)}, processors=processors)
    sets = read_assets(directory)
    return ValueFiles(f'{ASSETS}/*/{NORM_STATS}' if sets else '', sets, processors=processors)


def read_assets(directory: Path) -> dict[str, tuple[Numbers, Numbers]]:
    """Statistics of all robots in the layout of openpi; none if there are none."""
    assets, alone = place(directory, ASSETS), place(directory, NORM_STATS)
    paths = sorted(islice(assets.glob(f'**/{NORM_STATS}'), _MOST_SETS)) if assets.is_dir() else []
    names = {path.parent.relative_to(assets).as_posix(): path for path in paths}
    if not names and alone.is_file():
        names = {'norm_stats': alone}
    return {name: _of_openpi(path) for name, path in names.items()}


def load_statistics(
    directory: Path, key: str, sizes: tuple[int, int], mode: str, aloha: Aloha,
) -> ScaledStatistics:
    """Read the statistics of one data set as a policy uses them: `load_statistics` of families.

    key: of the data set, may be '' if there is one. sizes: numbers of the state and of an action.
    mode: of this kind of policy where no file says it. aloha: how this kind of policy takes
    ALOHA's joints, if config.json says that it does. ValueError with one sentence.
    """
    values = read_values(directory, key)
    document = Entries(read_json(place(directory, 'config.json')), 'config.json')
    if not values.sets:
        raise ValueError(
            f"{directory} has no statistics of states and actions: neither LeRobot's processors "
            f'nor {ASSETS}/<robot>/{NORM_STATS}; {_advice(directory)}.')
    if not key and len(values.sets) == 1:
        key = next(iter(values.sets))
    if key not in values.sets:
        problem = f'has no statistics {key!r}' if key else 'knows several robots'
        raise ValueError(
            f'The checkpoint {problem}; choose one of {listed(values.sets)} as statistics_key '
            '(--statistics-key).')
    state, action = values.sets[key]
    if 'type' not in document and len({
            (_length(one), _length(other)) for one, other in values.sets.values()}) > 1:
        _check_lengths(document, key, (state, action), sizes)
    rules = (_rule(values, document, 'STATE', mode, state),
             _rule(values, document, 'ACTION', mode, action))
    convention = read_convention(document, values.processors, sizes[1], aloha)
    return ScaledStatistics.of(key, (rules[0], state), (rules[1], action), sizes, convention)


def _check_lengths(
    document: Entries, key: str, numbers: tuple[Numbers, Numbers], sizes: tuple[int, int]
) -> None:
    """Refuse what robots of other sizes would be taken for, where config.json says no size."""
    for entry, part, size in zip(('state', 'actions'), numbers, sizes, strict=True):
        if size and entry not in document and _length(part) != size:
            raise ValueError(
                f'Statistics {key} have {_length(part)} numbers under {entry}, those of other '
                f'robots in {ASSETS}/ another number, and config.json does not say how many the '
                f'policy has; write their names, or "{entry}": {_length(part)}, into it.')


def modes_of(directory: Path, mode: str) -> str:
    """Say how the state and actions are normalised; mode: where no file says it."""
    values = read_values(directory)
    document = Entries(read_json(place(directory, 'config.json')), 'config.json')
    state, action = next(iter(values.sets.values()), ({}, {}))
    found = {name: _rule(values, document, kind, mode, numbers).mode for name, kind, numbers in (
        ('state', 'STATE', state), ('actions', 'ACTION', action))}
    return ', '.join(f'{name} by {mode}' for name, mode in found.items())


def _advice(directory: Path) -> str:
    beside = directory.resolve().parent / ASSETS
    if beside.is_dir():  # where openpi's converter leaves them
        return f'copy {beside} into it'
    return ('a base checkpoint has to be fine-tuned first, or put the meta/stats.json of the data '
            'into it')


def sizes_of(directory: Path) -> tuple[int, int]:
    """How many numbers the state and an action have, going by the statistics; 0 for unknown."""
    sizes = {(_length(state), _length(action))
             for state, action in read_values(directory).sets.values()}
    return sizes.pop() if len(sizes) == 1 else (0, 0)


def _length(numbers: Numbers) -> int:
    return max((len(values) for name, values in numbers.items() if name != 'count'), default=0)


def read_convention(
    document: Entries, processors: Processors | None, actions: int, aloha: Aloha
) -> Convention:
    """Read what actions count from, and whether the robot is an ALOHA, out of the files."""
    if document.flag('use_delta_joint_actions_aloha', False):
        raise ValueError(
            'config.json asks for use_delta_joint_actions_aloha, which LeRobot does not have '
            'either; write "delta_action_mask": [6, -1, 6, -1] instead.')
    if 'delta_action_mask' in document:
        relative = mask_of(_signs(document))
    elif processors is not None and processors.relative_known:
        relative = mask_without(processors.names, processors.excluded if processors.names else (),
                                actions) if processors.relative else ()
    else:
        relative = mask_without(
            words(document, 'action_feature_names'),
            words(document, 'relative_exclude_joints') or (),
            actions) if document.flag('use_relative_actions', False) else ()
    adapted = any(document.flag(key, False) for key in ('adapt_to_pi', 'adapt_to_pi_aloha'))
    late = adapted and processors is not None and document.flag('adapt_to_pi_aloha', False)
    return Convention(relative, aloha if adapted else None, late)


def _rule(
    values: ValueFiles, document: Entries, kind: str, mode: str, numbers: Numbers
) -> Rule:
    """How one kind of number is normalised.

    LeRobot leaves alone what has no statistics. Here that is so of the state only: a robot must
    not follow actions that are still those of the network because their numbers are called
    otherwise.
    """
    said = document.inside('normalization_mapping', {})
    if values.processors is not None:
        rule = values.processors.rule(kind)
    elif kind in said or not values.openpi:
        chosen = said.word(kind, tuple(MODES), mode)
        rule = Rule.older_lerobot(chosen) if values.older else Rule(chosen)
    else:
        return Rule.openpi(mode)
    return rule if numbers or kind == 'ACTION' else Rule('IDENTITY')


def _signs(document: Entries) -> Sequence[int]:
    values = document.value('delta_action_mask')
    if not isinstance(values, list) or len(values) > 64 or not all(
        type(value) is int and 0 < abs(value) <= 64 for value in values
    ):
        raise document.error(
            'delta_action_mask', 'a list of whole numbers, as 6, -1 for six that count from the '
            'state and one that does not', values)
    return values


def _in_weights(path: Path) -> dict[str, tuple[Numbers, Numbers]]:
    """Statistics that are part of the weights, of each robot; none if there are none."""
    states: dict[str, dict[str, np.ndarray]] = {}
    actions: dict[str, dict[str, np.ndarray]] = {}
    with open_safetensors(path) as (names, get, _):
        for name in names:
            found = _BUFFER.fullmatch(unwrapped(name))
            if not found:
                continue
            tensor = get(name)
            if not tensor.is_floating_point() or tensor.numel() > MOST_NUMBERS:
                raise ValueError(
                    f'{path} has {plain(name)}, which is no statistic of a robot; download it '
                    'again.')
            kind = states if 'observation_state' in name else actions
            robot = found['robot'] or found['owner'] or LEROBOT
            kind.setdefault(robot, {}).setdefault(
                found['statistic'], tensor.double().flatten().numpy())
    return {robot: (states.get(robot, {}), actions[robot]) for robot in sorted(actions)}


def _of_openpi(path: Path) -> tuple[Numbers, Numbers]:
    name = f'{path.parent.name}/{path.name}'
    document = Entries(read_json(path), name).inside('norm_stats')
    return _listed_numbers(document, 'state'), _listed_numbers(document, 'actions')


def _rounded(numbers: Numbers) -> Numbers:
    """As LeRobot computes with them, also to tell whether a range is empty."""
    return {key: value.astype(np.float32).astype(np.float64) for key, value in numbers.items()}


def _listed_numbers(document: Entries, feature: str) -> Numbers:
    """Lists of numbers of one feature, whatever they are called; all else is left."""
    if feature not in document:
        return {}
    entries, found = document.inside(feature), {}
    for name, values in entries.items().items():
        if isinstance(values, list) and len(values) <= MOST_NUMBERS and all(
            is_number(value) for value in values
        ):
            found[name] = np.array(values, np.float64)
    return found
