"""Evaluates many bags: sequentially, in local processes, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from vla_policy_node.common.printable import printable
from vla_policy_node.common.worker_pool import worker_pool
from vla_policy_node.outputs.folder import OutputError
from vla_policy_node.outputs.whole import check_place, check_target
from vla_policy_node.replay.bag_files import bag_name
from vla_policy_node.replay.merged import BagOutcome, prepare, write_merged
from vla_policy_node.replay.settings import COMMAND, ReplaySettings

Job = tuple[str, str]  # bag, folder of its report
Runner = Callable[[Sequence[Job]], Iterator[BagOutcome]]


def replay_bags(
    bags: Sequence[Path], settings: ReplaySettings, out: Path, workers: int, ray_address: str,
    console: Console,
) -> bool:
    """Replay bags and write one report each, and one over all if there are several.

    Returns whether every bag was replayed and kept the limits. A bag that fails is reported and
    skipped. After an interruption the same call continues with the remaining bags. Raises
    ValueError if nothing can be started.
    """
    check_place(out)
    check_target(out, COMMAND)
    if len(bags) == 1 and not ray_address:
        outcome = _with_bar(bags[0], settings, out, console)
        if outcome.problem:
            raise ValueError(outcome.problem)
        _say(outcome, out / 'report.html', console)
        return outcome.passed
    jobs = [(str(bag), str(out / name)) for bag, name in zip(bags, _names(bags), strict=True)]
    run = _runner(settings, workers, ray_address)
    done = prepare(out, jobs, settings)
    outcomes = list(done.values())
    with _bar(console) as progress:
        bar = progress.add_task('bags', total=len(jobs), completed=len(done))
        waiting = [job for job in jobs if job not in done]
        for outcome in run(waiting):
            outcomes.append(outcome)
            progress.update(bar, advance=1, description=Path(outcome.bag).name)
    order = {bag: index for index, (bag, _) in enumerate(jobs)}
    outcomes.sort(key=lambda outcome: order[outcome.bag])
    write_merged(outcomes, out)
    for outcome in outcomes:
        _say(outcome, out / Path(outcome.folder).name / 'report.html', console)
    console.print(f'All bags: {out / "report.html"}', markup=False, soft_wrap=True)
    return all(outcome.passed for outcome in outcomes)


def run_one(bag: str, folder: str, settings: ReplaySettings, on_progress=None) -> BagOutcome:
    """Replay one bag in the current process; an expected failure is returned as a sentence."""
    from vla_policy_node.replay.evaluate import evaluate_bag

    try:
        evaluation = evaluate_bag(
            Path(bag), settings, Path(folder), on_progress or (lambda what, share: None))
    except OutputError:
        raise
    except ValueError as error:
        return BagOutcome(bag, folder, problem=str(error))
    return BagOutcome(
        bag, folder, evaluation.report, evaluation.latency,
        evaluation.passed)


def _runner(settings: ReplaySettings, workers: int, ray_address: str) -> Runner:
    """Return a function that runs jobs; a cluster is contacted at once. Raises ValueError."""
    if ray_address:
        from vla_policy_node.replay.ray_cluster import connect

        return connect(ray_address, settings)
    if workers == 1:
        return lambda jobs: (run_one(*job, settings) for job in jobs)
    return lambda jobs: _run_apart(jobs, settings, workers)


def _run_apart(jobs, settings: ReplaySettings, workers: int) -> Iterator[BagOutcome]:
    # Spawned, because a forked process would share torch's threads.
    with worker_pool(max(1, min(workers, len(jobs))), 'spawn') as submit:
        futures = {submit(run_one, *job, settings): job for job in jobs}
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool:
                yield BagOutcome(*futures[future], problem=f"The process that replayed "
                              f"'{futures[future][0]}' died, perhaps for lack of memory; try "
                              'fewer --workers.')


def _with_bar(bag: Path, settings: ReplaySettings, out: Path, console: Console) -> BagOutcome:
    with _bar(console) as progress:
        bars: dict[str, object] = {}

        def show(what: str, share: float) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=1.0)
            progress.update(bars[what], completed=share)

        outcome = run_one(str(bag), str(out), settings, show)
        for bar in bars.values():
            progress.update(bar, completed=1.0)
    return outcome


def _bar(console: Console) -> Progress:
    return Progress(TextColumn('{task.description}', markup=False), BarColumn(30),
                    TimeElapsedColumn(), console=console)


def _say(outcome: BagOutcome, page: Path, console: Console) -> None:
    if outcome.problem:
        console.print(printable(outcome.problem), style='red', markup=False, soft_wrap=True)
        return
    for verdict in outcome.gate:
        colour, word = ('green', 'passed') if verdict['passed'] else ('red', 'failed')
        console.print(
            f'{word}: {verdict["text"]}', style=colour, markup=False, soft_wrap=True)
    console.print(printable(f'{Path(outcome.bag).name}: {page}'), markup=False, soft_wrap=True)


def _names(bags: Sequence[Path]) -> list[str]:
    """Return a folder name for each bag; equal ones get a number."""
    names: list[str] = []
    for bag in bags:
        stem = bag_name(bag)
        name, count = stem, 1
        while name in names:
            count += 1
            name = f'{stem}-{count}'
        names.append(name)
    return names


