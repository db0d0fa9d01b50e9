"""Checks of statistics: do they mean what the policy takes them for, and do they fit the data?

What is wrong with them is silent: a state far outside of what training saw, or actions from which
the state was taken away and to which nobody adds it, still make plausible commands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vla_policy_node import families
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.layout import read_json, read_statistics_document
from vla_policy_node.checkpoints.reading import listed
from vla_policy_node.checkpoints.scaled_statistics import Numbers, ScaledStatistics
from vla_policy_node.checkpoints.scaling import Scaling
from vla_policy_node.checkpoints.statistics import Statistics
from vla_policy_node.checkpoints.value_files import ASSETS, ValueFiles, read_assets, read_values
from vla_policy_node.checks.findings import FAIL, PASS, SKIP, WARN, Finding
from vla_policy_node.loop.state_range import slack
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.policy.interface import Quantity

FEW, MANY = 0.05, 0.5  # shares of values outside of which one warns and the other fails
_EXTREME = 30.0  # what a value of the data may become; 10 is usual for rare ones
_CLOSE = 0.25  # how near two means must be, as a share of the larger
_SHOWN = 4


def statistics_of(directory: Path, config: ModelConfig, key: str) -> Statistics:
    """Those of the key, or of the first data set where none was chosen."""
    key = key or next(iter(read_statistics_document(directory)), '')
    return families.of(config).load_statistics(directory, config, key)


def check_values(directory: Path, config: ModelConfig, key: str) -> Iterator[Finding]:
    """Yield what can be said of statistics in the files of openpi and LeRobot."""
    statistics = statistics_of(directory, config, key)
    if not isinstance(statistics, ScaledStatistics):
        return
    files = read_values(directory, key)
    yield check_modes(directory, files, statistics)
    yield check_extremes(files, statistics, config)
    yield check_reference(files, statistics)
    if files.processors and files.processors.renamed:
        yield check_names(files.processors.renamed)


def check_modes(directory: Path, files: ValueFiles, statistics: ScaledStatistics) -> Finding:
    """All files say the same of how numbers are normalised, and by which statistics."""
    name, problems = 'modes', []
    used = {'STATE': statistics.state.rule.mode, 'ACTION': statistics.action.rule.mode}
    text = f'{statistics.summary} ({files.said_by})'
    said = Entries(read_json(directory, 'config.json'), 'config.json').inside(
        'normalization_mapping', {})
    for kind, mode in used.items():
        if kind in said and said.word(kind) != mode and files.sets[statistics.key][
                kind == 'ACTION']:
            problems.append(f'config.json says {said.word(kind)} of {kind}')
    if not files.sets[statistics.key][0] and len(statistics.state.origin):
        problems.append('there are no statistics of the state, which goes in as it is')
    if not files.openpi and len(others := read_assets(directory)) == 1:
        pairs = zip(next(iter(others.values())), files.sets[statistics.key], strict=True)
        if not all(_alike(theirs, ours) for theirs, ours in pairs):
            problems.append(f'{ASSETS}/ has other statistics, which are not used')
    if problems:
        return Finding(name, WARN, f'{text}; {"; ".join(problems)}')
    return Finding(name, PASS, text)


def _alike(first: Numbers, second: Numbers) -> bool:
    return all(
        np.allclose(first[name][:size], second[name][:size], rtol=1e-3, atol=1e-5)
        for name in first.keys() & second.keys()
        for size in [min(len(first[name]), len(second[name]))])


def check_extremes(
    files: ValueFiles, statistics: ScaledStatistics, config: ModelConfig
) -> Finding:
    """No number of the data becomes huge because it hardly ever changed."""
    found = []
    for line, numbers, quantities in (
            (statistics.state, files.sets[statistics.key][0], config.spec.state),
            (statistics.action, files.sets[statistics.key][1], config.spec.actions)):
        found += [f'{quantity.name} up to {value:.3g}' for quantity, value in zip(
            quantities, _largest(line, numbers), strict=False) if value > _EXTREME]
    if found:
        return Finding(
            'extremes', WARN,
            f'normalised numbers of the data reach {listed(found[:_SHOWN])}: they hardly ever '
            'change, and the least difference of your robot will be as large; compare with --bag')
    return Finding('extremes', PASS, f'no number of the data is above {_EXTREME:g} normalised')


def _largest(line: Scaling, numbers: Numbers) -> np.ndarray:
    """What the extremes of the data become, as far as the statistics tell."""
    size = len(line.origin)
    ends = [line.normalise(numbers[name][:size]) for name in ('min', 'max', 'q01', 'q99')
            if len(numbers.get(name, ())) >= size]
    return np.abs(ends).max(axis=0) if ends else np.zeros(size)


def check_reference(files: ValueFiles, statistics: ScaledStatistics) -> Finding:
    """What actions count from is what their statistics look like.

    Where a joint's mean is far from 0, its absolute targets have that mean, targets less the
    state have none, and small steps less the state, as in LIBERO's pi0, have the opposite one.
    """
    name = 'actions'
    states, actions = (part.get('mean', np.empty(0)) for part in files.sets[statistics.key])
    deviations = files.sets[statistics.key][0].get('std', np.empty(0))
    mask = np.array(statistics.convention.relative, bool)
    size = min(len(states), len(actions), len(deviations), len(statistics.action.origin))
    far = np.abs(states[:size]) > 2 * deviations[:size] + 0.1
    relative = np.zeros(size, bool)
    relative[:len(mask[:size])] = mask[:size]
    told = f'{int(mask.sum())} numbers count from the state' if mask.any() else 'as they are'
    if statistics.convention.aloha or not far.any():
        return Finding(name, PASS if mask.any() else SKIP, f'{told}; statistics do not tell')
    near = {sign: far & (np.abs(actions[:size] - sign * states[:size])
                         < _CLOSE * np.abs(states[:size])) for sign in (1, 0, -1)}
    if (near[-1] & ~relative).any():
        places = np.flatnonzero(near[-1] & ~relative).tolist()
        return Finding(
            name, WARN, f'numbers {listed(places)} look as if the state had been taken away in '
            'training, and it is not added; for pi0 of LIBERO write "delta_action_mask": [6, -1] '
            'into config.json')
    if (near[1] & relative).any():
        places = np.flatnonzero(near[1] & relative).tolist()
        return Finding(
            name, WARN, f'numbers {listed(places)} count from the state, and their statistics are '
            'those of absolute ones: the state would be added twice')
    return Finding(name, PASS, told)


def check_names(renamed: Mapping[str, str]) -> Finding:
    """Say what the cameras of training were called, which is all that tells one from another."""
    called = [f'{new.split(".")[-1]} was {old.split(".")[-1]}' for old, new in renamed.items()]
    return Finding('names', PASS, f'in the data of training {listed(called)}; give each camera of '
                   'your robot the name of the one that saw the same')


def check_fit(
    what: str, values: Mapping[str, np.ndarray], quantities: Sequence[Quantity],
    low: np.ndarray, high: np.ndarray,
) -> Finding:
    """How many values of real data lie outside of what training saw, number by number.

    what: they are, for people. values: name -> [N]; names that are not there are left out.
    """
    if not len(quantities) or len(low) != len(quantities):
        return Finding(what, SKIP, 'nobody says what training saw')
    found, worst = [], 0.0
    for quantity, bottom, top in zip(quantities, low, high, strict=True):
        seen = values.get(quantity.name, np.empty(0))
        if not len(seen):
            continue
        more = slack(bottom, top)
        share = float(1 - ((seen >= bottom - more) & (seen <= top + more)).mean())
        worst = max(worst, share)
        if share > FEW:
            found.append((share, f'{quantity.name} {100 * share:.0f} % ({seen.min():.3g} to '
                          f'{seen.max():.3g}, training {bottom:.3g} to {top:.3g})'))
    if not found:
        counted = max(map(len, values.values()), default=0)
        return Finding(what, PASS if counted else SKIP, f'of {counted:,} values of each number at '
                       f'most {100 * worst:.1f} % are outside of what training saw')
    texts = [text for _, text in sorted(found, reverse=True)]
    more_of = f' and {len(texts) - _SHOWN} more' if len(texts) > _SHOWN else ''
    return Finding(
        what, FAIL if worst > MANY else WARN,
        f'outside of what training saw: {"; ".join(texts[:_SHOWN])}{more_of}; compare units, '
        'signs, frames and the data set (--statistics-key)')
