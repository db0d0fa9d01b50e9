"""`vla check`: does this checkpoint run here as it was trained?"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from vla_policy_node.checkpoints.hub import find_checkpoint
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
from vla_policy_node.checks.golden import compare_pack, decoders_only
from vla_policy_node.checks.report import check_checkpoint
from vla_policy_node.common.terminal import fitted

_COLOURS = {PASS: 'green', WARN: 'bold yellow', FAIL: 'bold red'}
ASSUMPTIONS_WIDTH = 80  # of their table, for terminals and mails


def check(
    checkpoint: str,
    suite: str,
    statistics_key: str,
    packs: list[Path],
    device: str,
    dtype: str,
    console: Console,
) -> int:
    """Print every verdict; return 1 if one of them is a failure, else 0.

    ValueError for a checkpoint or pack that is not there.
    """
    directory = find_checkpoint(checkpoint)
    failed: list[str]
    warned: list[str]
    console.print(f'Checkpoint {directory}')
    if packs and (kind := decoders_only(directory)):
        console.print(
            f'A {kind} policy cannot run here yet; its decoders are compared with recordings.')
        failed, warned, guesses, good = [], [], [], 'All that can be compared agrees.'
    else:
        guesses = _print_assumptions(directory, suite, statistics_key, console)
        failed, warned = _self_checks(
            directory, suite, statistics_key, device, dtype, bool(packs), console)
        good = 'All checks passed.'
    for pack in packs:
        failed += _golden(directory, pack, statistics_key, device, console)
    if failed:
        console.print(Text.assemble(('FAIL', 'bold red'), f': {"; ".join(failed)}'))
    elif warned:
        console.print(Text.assemble(('No check failed', 'yellow'),
                                    f', and this may be wrong: {"; ".join(warned)}'))
    else:
        console.print(good, style='green')
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
) -> tuple[list[str], list[str]]:
    findings: list[Finding] = []
    with _progress(console) as bar:
        task = bar.add_task('Loading', total=1.0)
        findings.extend(check_checkpoint(
            directory, suite, statistics_key, device, dtype,
            lambda share: bar.update(task, completed=share), recorded))
    table = _table()
    for finding in findings:
        table.add_row(_mark(finding.verdict), finding.name, finding.text)
    console.print(fitted(table, 1))
    failed, warned = ([finding.name for finding in findings if finding.verdict == verdict]
                      for verdict in (FAIL, WARN))
    return failed, warned


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
