"""LeRobot's processors: what surrounds a network, as two JSON files beside its weights.

`policy_preprocessor.json` and `policy_postprocessor.json` list steps with their settings; a step
that normalises has a file of statistics, whose tensors are called `<feature>.<statistic>`. Steps
are data here: those that are known are followed elsewhere, none is looked up or run, and those
that are not known are named to whoever loads the policy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vla_policy_node.checkpoints.adapter import place
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.reading import plain, read_json
from vla_policy_node.checkpoints.scaling import LEROBOT_EPS, MODES, Rule
from vla_policy_node.checkpoints.tensor_files import check_dtype, check_weights, open_safetensors

PREPROCESSOR, POSTPROCESSOR = 'policy_preprocessor.json', 'policy_postprocessor.json'
STATE, ACTION = 'observation.state', 'action'
MOST_NUMBERS = 4096  # of one statistic; a picture's have three, a robot's some dozens
_STEPS = 64
_RELATIVE = ('relative_actions_processor', 'delta_actions_processor')
# What becomes of words, the kind of policy tells, and of where tensors lie, whoever runs it.
_KNOWN = frozenset({
    *_RELATIVE, 'absolute_actions_processor', 'normalizer_processor', 'unnormalizer_processor',
    'tokenizer_processor', 'rename_observations_processor', 'to_batch_processor',
    'device_processor', 'pi0_new_line_processor', 'smolvla_new_line_processor',
    'pi05_prepare_state_tokenizer_processor_step'})


@dataclass(frozen=True)
class Processors:
    """What the two files say, as far as a policy needs it.

    modes: normalisation of 'STATE' and 'ACTION' (`checkpoints.scaling`). eps: its epsilon.
    numbers: feature -> statistic -> values. tokens: how many ids a prompt has at most, 0 if no
    step says. relative: whether actions count from the state; excluded, names: see
    `conventions.mask_without`. relative_known: whether a step says so, which those of LeRobot
    before 0.5 do not have. renamed: what the data of training called a feature -> what the policy
    calls it. unknown: steps that nothing here follows.
    """

    modes: Mapping[str, str]
    eps: Mapping[str, float]
    numbers: Mapping[str, Mapping[str, np.ndarray]]
    tokens: int = 0
    relative: bool = False
    relative_known: bool = False
    excluded: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    def rule(self, kind: str) -> Rule:
        """How 'STATE' or 'ACTION' is normalised."""
        return Rule(self.modes[kind], self.eps[kind])


def read_processors(directory: Path) -> Processors | None:
    """Read the files, None if there are none; ValueError with one sentence for damaged ones."""
    if not place(directory, PREPROCESSOR).is_file():
        return None
    before = _steps(directory, PREPROCESSOR)
    after = _steps(directory, POSTPROCESSOR) if place(directory, POSTPROCESSOR).is_file() else {}
    normaliser = before.get('normalizer_processor')
    back = after.get('unnormalizer_processor', normaliser)
    modes, eps, numbers = {}, {}, {}
    for kind, feature, step in (('STATE', STATE, normaliser), ('ACTION', ACTION, back)):
        modes[kind], eps[kind] = _mode(step, kind, feature)
        numbers[feature] = step.numbers(directory, feature) if step else {}
    _refuse_pictures(normaliser)
    tokenizer = before.get('tokenizer_processor')
    relative = next((before[name] for name in _RELATIVE if name in before), None)
    absolute = after.get('absolute_actions_processor')
    enabled = absolute or relative
    return Processors(
        modes, eps, numbers,
        tokens=tokenizer.config.integer('max_length', 1, 1 << 16, 0) if tokenizer else 0,
        relative=enabled.config.flag('enabled', False) if enabled else False,
        relative_known=relative is not None,
        excluded=words(relative.config, 'exclude_joints') or () if relative else (),
        names=words(relative.config, 'action_names') if relative else None,
        renamed=_renamed(before.get('rename_observations_processor')),
        unknown=tuple(name for name in {**before, **after} if name not in _KNOWN),
    )


def _renamed(step: _Step | None) -> dict[str, str]:
    names = step.config.inside('rename_map', {}) if step else None
    if names is None or len(names.names()) > _STEPS:
        return {}
    return {name: names.word(name) for name in names.names()}


def words(entries: Entries, key: str) -> tuple[str, ...] | None:
    """A list of names, None if it is not there."""
    if key not in entries:
        return None
    values = entries.value(key)
    if not isinstance(values, list) or len(values) > MOST_NUMBERS or not all(
        isinstance(value, str) for value in values
    ):
        raise entries.error(key, 'a list of names', values)
    return tuple(values)


@dataclass(frozen=True)
class _Step:
    """One step: its settings, and the file of its tensors, '' for none."""

    config: Entries
    state_file: str

    def numbers(self, directory: Path, feature: str) -> dict[str, np.ndarray]:
        return read_numbers(place(directory, self.state_file), feature) if self.state_file else {}


def _steps(directory: Path, name: str) -> dict[str, _Step]:
    """Steps of a file by the names of LeRobot's registry; of two of one name, the last.

    One that was saved by its class is called as the registry would.
    """
    document, found = Entries(read_json(place(directory, name)), name), {}
    for index, entry in enumerate(document.objects('steps', _STEPS)):
        kind = entry.word('registry_name', default='') or _registered(entry)
        file = entry.word('state_file', default='')
        if file and Path(file).name != file:
            raise entry.error('state_file', 'the name of a file beside it', file)
        if kind.endswith('normalizer_processor') and not file:
            # Some tools leave the entry out and keep the name that LeRobot gives the file.
            usual = f'{Path(name).stem}_step_{index}_{kind}.safetensors'
            file = usual if place(directory, usual).is_file() else ''
        found[kind] = _Step(entry.inside('config', {}), file)
    return found


def _registered(entry: Entries) -> str:
    name = entry.word('class', default='').rpartition('.')[2].removesuffix('Step')
    return re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', name).lower() or 'a step without a name'


def _mode(step: _Step | None, kind: str, feature: str) -> tuple[str, float]:
    """How a kind of number is normalised: not at all, unless a step says so."""
    if step is None:
        return 'IDENTITY', LEROBOT_EPS
    mode = step.config.inside('norm_map', {}).word(kind, tuple(MODES), 'IDENTITY')
    only = words(step.config, 'normalize_observation_keys')
    if kind == 'STATE' and only is not None and feature not in only:
        mode = 'IDENTITY'
    return mode, step.config.number('eps', 1e-12, 1.0, LEROBOT_EPS)


def _refuse_pictures(step: _Step | None) -> None:
    if step and (mode := step.config.inside('norm_map', {}).word(
            'VISUAL', default='IDENTITY')) != 'IDENTITY':
        raise ValueError(
            f'{PREPROCESSOR} normalises pictures by {plain(mode)}, and only IDENTITY is offered; '
            'policies of these kinds take pictures from -1 to 1.')


def read_numbers(path: Path, feature: str) -> dict[str, np.ndarray]:
    """Statistics of one feature in a file of tensors: statistic -> [N] float64."""
    found, start = {}, f'{feature}.'
    with open_safetensors(path) as (names, get, _):
        for name in names:
            statistic = name.removeprefix(start)
            if name.startswith(start) and '.' not in statistic:
                tensor = get(name)
                if tensor.numel() > MOST_NUMBERS:
                    raise ValueError(
                        f'{path} has {plain(name)} with {tensor.numel():,} numbers; take the '
                        'file that belongs to the weights.')
                if tensor.is_floating_point():
                    check_weights(path, name, tensor)
                    check_dtype(path, name, tensor)
                    found[statistic] = tensor.double().flatten().numpy()
    return found
