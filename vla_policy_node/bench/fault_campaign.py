"""`vla bench faults`: the whole campaign, or one case of it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import track
from rich.table import Table

from vla_policy_node.bench.faults import core, verdicts
from vla_policy_node.bench.faults.stop_bounds import STOP_BOUNDS_S
from vla_policy_node.bench.faults.verdicts import CaseVerdict
from vla_policy_node.common.terminal import fitted
from vla_policy_node.outputs.folder import claim, seal
from vla_policy_node.system.processes import private_domain

COMMAND = 'vla bench faults'  # whose files they are
LAYERS = ('core', 'dds', 'processes')


@dataclass(frozen=True)
class Campaign:
    """How many cases of each layer, from which one on, with which seed."""

    counts: dict[str, int]
    seed: int
    workers: int
    first: int = 0


def run(campaign: Campaign, out: Path, console: Console) -> bool:
    """Run, print and write; whether every promise was kept. Raises OutputError."""
    claim(out, verdicts.FILES, COMMAND)
    done: list[CaseVerdict] = []
    console.print(f'Seed {campaign.seed}.')
    for layer in LAYERS:
        count = campaign.counts.get(layer, 0)
        if count:
            cases = range(campaign.first, campaign.first + count)
            for verdict in track(run_layer(layer, cases, campaign.seed, campaign.workers),
                                 layer, total=count, console=console):
                done.append(verdict)
                if verdict.findings:
                    console.print(verdict.text, highlight=False, markup=False)
    slow = verdicts.slow_stops(done, STOP_BOUNDS_S)
    for sentence in slow:
        console.print(sentence)
    verdicts.write(done, STOP_BOUNDS_S, out)
    seal(out, COMMAND, verdicts.FILES)
    console.print(fitted(_summary(done)))
    console.print(f'{out / "faults.md"} has every kind, {out / "faults.json"} every finding.')
    return not slow and not any(verdict.findings for verdict in done)


def run_layer(
    layer: str, cases: Sequence[int], seed: int, workers: int = 1
) -> Iterator[CaseVerdict]:
    """Yield the verdicts of one layer in order."""
    if layer == 'core':
        yield from core.run_cases(cases, seed, workers)
        return
    # They need ROS, which the core does not, and a domain of their own.
    from vla_policy_node.bench.live import scenarios  # noqa: F401 - they register
    from vla_policy_node.bench.live.fault_trials import Live
    from vla_policy_node.bench.live.process_trials import Processes

    with private_domain(), TemporaryDirectory() as folder, (
            Live if layer == 'dds' else Processes)(Path(folder)) as running:
        for case in cases:
            yield running.run_case(case, seed)


def default_workers() -> int:
    """Return how many processes the core layer may use."""
    return len(os.sched_getaffinity(0))


def _summary(done: Iterable[CaseVerdict]) -> Table:
    table = Table('layer', 'cases', 'actions', *verdicts.CATEGORIES, title='Fault campaign')
    for layer in LAYERS:
        of_layer = [verdict for verdict in done if verdict.layer == layer]
        if of_layer:
            table.add_row(layer, str(len(of_layer)), str(sum(v.actions for v in of_layer)), *(
                str(sum(any(f.category == category for f in v.findings) for v in of_layer))
                for category in verdicts.CATEGORIES))
    return table
