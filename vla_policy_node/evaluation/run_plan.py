"""Runs a plan: distributes units to worker processes, collects rows, shows progress.

A unit is one episode with all methods: every method sees the same layout in the same process, one
after the other, so that latencies are compared under the same load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from vla_policy_node.common.scoped import environment, torch_threads
from vla_policy_node.common.worker_pool import worker_pool
from vla_policy_node.evaluation.plan import Plan
from vla_policy_node.evaluation.results import COMMAND, Results
from vla_policy_node.evaluation.trace import trace_path
from vla_policy_node.evaluation.worker import Worker, run_unit, start_worker
from vla_policy_node.outputs.folder import claim

Unit = tuple[int, int, tuple[str, ...]]  # task, episode, labels of the methods to run


def run_plan(plan: Plan, results: Results, workers: int, console: Console) -> None:
    """Run every episode of the plan that `results` lacks, and add its rows.

    workers: processes; 1 runs here. Raises ValueError for a checkpoint that cannot be used and
    for a worker that died. On Ctrl-C the workers are ended first.
    """
    units = missing_units(plan, results)
    if not units:
        return
    if plan.trace is not None:
        claim(plan.trace, [trace_path(plan.trace, *key).name for key in plan.keys], COMMAND)
    tally = _Tally(plan)
    tally.add(results.rows(plan.keys))
    source = _run_here(plan, units) if workers == 1 else _run_apart(plan, units, workers)
    with _progress(console) as progress, closing(source):
        bar = progress.add_task(str(tally), total=len(plan.units),
                                completed=len(plan.units) - len(units))
        for rows in source:
            results.add(rows)
            tally.add(rows)
            progress.update(bar, advance=1, description=str(tally))


def missing_units(plan: Plan, results: Results) -> list[Unit]:
    """Return the units that are still to run, in order."""
    units = []
    for task, episode in plan.units:
        labels = tuple(
            c.label for c in plan.contenders if (c.label, task, episode) not in results)
        if labels:
            units.append((task, episode, labels))
    return units


def _run_here(plan: Plan, units: Sequence[Unit]) -> Iterator[list[dict]]:
    with torch_threads(plan.threads), closing(Worker(plan)) as worker:
        for unit in units:
            yield worker.run(*unit)


def _run_apart(plan: Plan, units: Sequence[Unit], workers: int) -> Iterator[list[dict]]:
    # Read at import: linear algebra and the software renderer start threads.
    threads = str(plan.threads)
    with environment(
        OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads, LP_NUM_THREADS='0',
    ), worker_pool(
        # Spawned, because a forked process would share torch's threads and the renderer's context.
        min(workers, len(units)), 'spawn', start_worker, (plan,)
    ) as submit:
        try:
            futures = [submit(run_unit, *unit) for unit in units]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                'A worker process died, perhaps for lack of memory; run the same command again '
                'to go on, with fewer --workers.') from error


class _Tally:
    """Successes so far, as the text beside the bar."""

    def __init__(self, plan: Plan):
        self._labels = [contender.label for contender in plan.contenders]
        self._successes: Counter[str] = Counter()
        self._episodes: Counter[str] = Counter()

    def add(self, rows: Sequence[Mapping]) -> None:
        for row in rows:
            self._successes[row['method']] += row['success']
            self._episodes[row['method']] += 1

    def __str__(self) -> str:
        return ', '.join(
            f'{label} {self._successes[label]}/{self._episodes[label]}' for label in self._labels)


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(20), MofNCompleteColumn(), TextColumn('episodes,'), TimeRemainingColumn(),
        TextColumn('left; {task.description}', markup=False, table_column=Column(overflow='fold')),
        console=console,
    )
