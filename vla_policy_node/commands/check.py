"""`vla check`: does this checkpoint run here as it was trained?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from vla_policy_node.checkpoints.hub import find_checkpoint
from vla_policy_node.checkpoints.processors import ACTION, STATE
from vla_policy_node.checks.assumed import all_assumptions
from vla_policy_node.checks.findings import (
    FAIL,
    PASS,
    SKIP,
    WARN,
    Comparison,
    Finding,
    worst_by_stage,
)
from vla_policy_node.checks.golden import compare_pack
from vla_policy_node.checks.report import check_checkpoint
from vla_policy_node.checks.values import check_fit, statistics_of
from vla_policy_node.common.terminal import fitted
from vla_policy_node.families import read_model_config
from vla_policy_node.lerobot.reader import LeRobotReader
from vla_policy_node.replay.bag import Bag
from vla_policy_node.replay.states import states_in

_COLOURS = {PASS: 'green', WARN: 'bold yellow', FAIL: 'bold red'}
ASSUMPTIONS_WIDTH = 80  # of their table, for terminals and mails


@dataclass(frozen=True)
class Recorded:
    """Data of the user: bags, LeRobot datasets, and the contract of the bags' robot."""

    bags: tuple[Path, ...] = ()
    datasets: tuple[Path, ...] = ()
    contract: str = ''


NOTHING_RECORDED = Recorded()


def check(
    checkpoint: str,
    suite: str,
    statistics_key: str,
    packs: list[Path],
    device: str,
    dtype: str,
    console: Console,
    recorded: Recorded = NOTHING_RECORDED,
) -> int:
    """Print every verdict; return 1 if one of them is a failure, else 0.

    recorded: what the numbers of the checkpoint are compared with.

    ValueError for a checkpoint or pack that is not there.
    """
    directory = find_checkpoint(checkpoint)
    console.print(f'Checkpoint {directory}')
    guesses = _print_assumptions(directory, suite, statistics_key, console)
    findings = _self_checks(
        directory, suite, statistics_key, device, dtype, bool(packs), console)
    if (recorded.bags or recorded.datasets) and not any(
            finding.name == 'loading' for finding in findings):
        findings += _print_findings(
            list(_compared(directory, statistics_key, recorded)), console)
    failed, warned = ([finding.name for finding in findings if finding.verdict == verdict]
                      for verdict in (FAIL, WARN))
    for pack in packs:
        failed += _golden(directory, pack, statistics_key, device, console)
    if failed:
        console.print(Text.assemble(('FAIL', 'bold red'), f': {"; ".join(failed)}'))
    elif warned:
        console.print(Text.assemble(('No check failed', 'yellow'),
                                    f', and this may be wrong: {"; ".join(warned)}'))
    else:
        console.print('All checks passed.', style='green')
    if guesses and not failed:
        console.print(f'Guessed, because nothing says it: {", ".join(guesses)}.')
    return bool(failed)


def _print_assumptions(directory, suite, statistics_key, console) -> list[str]:
    """Print who says what; the names of what nobody says."""
    try:
        found = all_assumptions(directory, suite, statistics_key)
    except ValueError:  # the first check says why
        return []
    table = _table('taken for granted', 'value', 'who says so', mark=False)
    for one in found:
        source = Text.assemble(('guessed', 'bold yellow'), ': ') if one.guessed else Text()
        table.add_row(one.name, one.value, source.append(one.source))
    console.print(fitted(table), width=min(console.width, ASSUMPTIONS_WIDTH))
    return [one.name for one in found if one.guessed]


def _self_checks(
    directory, suite, statistics_key, device, dtype, recorded, console
) -> list[Finding]:
    findings: list[Finding] = []
    with _progress(console) as bar:
        task = bar.add_task('Loading', total=1.0)
        findings.extend(check_checkpoint(
            directory, suite, statistics_key, device, dtype,
            lambda share: bar.update(task, completed=share), recorded))
    return _print_findings(findings, console)


def _compared(directory: Path, key: str, recorded: Recorded) -> Iterator[Finding]:
    """Compare what training saw with the user's data."""
    config = read_model_config(directory)
    statistics, spec = statistics_of(directory, config, key), config.spec
    for path in recorded.bags:
        with Bag(path) as bag:
            values = states_in(bag, spec, recorded.contract) if spec.state else {}
        yield check_fit(f'states of {path.name}', values, spec.state, *statistics.proprio_seen)
    for path in recorded.datasets:
        for name, feature, quantities, (low, high) in (
            ('states', STATE, spec.state, statistics.proprio_seen),
            ('actions', ACTION, spec.actions, (statistics.action_low, statistics.action_high))):
            rows = _rows(LeRobotReader(path), feature)
            if rows.shape[1] != len(quantities):
                yield Finding(
                    f'{name} of {path.name}', FAIL if quantities else SKIP,
                    f'{rows.shape[1]} numbers in {feature}, and the policy has '
                    f'{len(quantities)}; name those that it takes in the order of the dataset')
                continue
            values = {quantity.name: rows[:, place] for place, quantity in enumerate(quantities)}
            yield check_fit(f'{name} of {path.name}', values, quantities, low, high)


def _rows(reader: LeRobotReader, feature: str) -> np.ndarray:
    """Numbers of a feature in all episodes, [N, size]."""
    size = reader.info.features[feature].size if feature in reader.info.features else 0
    episodes = range(len(reader.episodes)) if size else ()
    rows = [reader.rows(number, [feature])[feature].reshape(-1, size) for number in episodes]
    return np.concatenate([np.empty((0, size)), *rows])


def _print_findings(findings: list[Finding], console: Console) -> list[Finding]:
    table = _table()
    for finding in findings:
        table.add_row(_mark(finding.verdict), finding.name, finding.text)
    console.print(fitted(table, 1))
    return findings


def _golden(directory, pack, statistics_key, device, console) -> list[str]:
    console.print(f'Recordings {pack}, float32 on {device}')
    comparisons: list[Comparison] = []
    with console.status('Comparing ...'):
        comparisons.extend(compare_pack(directory, pack, device, statistics_key))
    table = _table('stage', 'largest error', 'tolerance', 'in')
    stages = worst_by_stage(comparisons)
    for stage in stages:
        error = stage.text or f'{stage.error:.3g}'
        tolerance = '' if stage.verdict == SKIP else f'{stage.tolerance:.3g}'
        table.add_row(_mark(stage.verdict), stage.stage, error, tolerance, stage.case)
    console.print(fitted(table, 1))
    wrong = [stage.stage for stage in stages if not stage.ok]
    if not wrong:
        return []
    return [f'recordings {pack.name}, first in {wrong[0]!r} ({len(wrong)} stages)']


def _table(*titles: str, mark: bool = True) -> Table:
    return Table(*[''][:mark], *(titles or ('check', 'finding')), box=None, pad_edge=False)


def _mark(verdict: str) -> Text:
    return Text(verdict, _COLOURS.get(verdict, 'yellow'))


def _progress(console: Console) -> Progress:
    columns = TextColumn('{task.description}'), BarColumn(), TaskProgressColumn()
    return Progress(*columns, console=console, transient=True)
