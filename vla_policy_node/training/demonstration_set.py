"""A folder of demonstrations that several processes fill and that can be resumed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from vla_policy_node.common.scoped import environment
from vla_policy_node.common.worker_pool import worker_pool
from vla_policy_node.training.demonstrations import (
    FORMAT,
    SCATTERED,
    episode_path,
    write_demonstration,
    write_document,
)
from vla_policy_node.training.recording import LABELS_STRIDE, RecordingRecipe, record
from vla_policy_node.training.scenes import record_scenes
from vla_policy_node.world.layouts import HELD_OUT_SEED, LAYOUTS
from vla_policy_node.world.libero_world import CAMERAS, LiberoWorld, tasks

SEEDS = 100_000  # layouts that belong to one --seed
DISCARDED = 'discarded.jsonl'
_UNFINISHED = re.compile(r'episode-\d{7,}\.\d+\.tmp')  # of a process that was killed

# One process, one core: the rasteriser and the linear algebra would start threads otherwise.
_ONE_THREAD = {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1', 'LP_NUM_THREADS': '0'}


@dataclass(frozen=True)
class Attempt:
    """One seed that has been tried; `kept` if there is a file of it. new: in this run."""

    seed: int
    kept: bool
    steps: int = 0
    new: bool = True


def make(
    directory: Path, recipe: RecordingRecipe, count: int, seed: int, workers: int
) -> Iterator[Attempt]:
    """Fill `directory` until it holds `count` demonstrations of `seed`; yield every attempt.

    Seeds are taken in order, so the set does not depend on the number of workers. What is there
    already is yielded first. ValueError with one sentence if the options cannot be met.
    """
    _check(recipe, seed)
    write_document(directory, _document(recipe))
    for unfinished in directory.glob('episode-*.tmp'):
        if _UNFINISHED.fullmatch(unfinished.name) and not unfinished.is_symlink():
            unfinished.unlink()
    discarded = _read_discarded(directory)
    kept, tried = 0, iter(range(seed * SEEDS, (seed + 1) * SEEDS))
    running: set[Future] = set()
    with environment(**_ONE_THREAD), worker_pool(
        # Spawned: a forked renderer is a broken one.
        min(workers, count), 'spawn', _start_worker, (directory, recipe)
    ) as submit:
        while kept < count:
            while kept + len(running) < count and len(running) < workers:
                number = next(tried)
                if episode_path(directory, number).is_file():
                    kept += 1
                    yield Attempt(number, kept=True, new=False)
                elif number in discarded:
                    yield Attempt(number, kept=False, new=False)
                else:
                    running.add(submit(_attempt, number))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for attempt in sorted(_results(done), key=lambda attempt: attempt.seed):
                kept += attempt.kept
                if not attempt.kept:
                    _remember_discarded(directory, attempt.seed)
                yield attempt


def _check(recipe: RecordingRecipe, seed: int) -> None:
    if not 0 <= seed < HELD_OUT_SEED // SEEDS:
        raise ValueError(
            f'seed is {seed}; take 0 to {HELD_OUT_SEED // SEEDS - 1}: layouts beyond are for '
            'evaluation.')
    if recipe.layout not in (*LAYOUTS, SCATTERED):
        raise ValueError(f'layout is {recipe.layout!r}; choose one of '
                         f'{", ".join((*LAYOUTS, SCATTERED))}.')
    known = tasks(recipe.suite)
    for task in recipe.tasks:
        if not 0 <= task < len(known):
            raise ValueError(f'{recipe.suite} has no task {task}; it has 0 to {len(known) - 1}.')
    if not 0 <= recipe.noise <= 0.15:
        raise ValueError(
            f'noise is {recipe.noise}; take 0 to 0.15: beyond, the expert misses its grasps.')
    if recipe.retarget and recipe.suite != 'libero_object':
        raise ValueError(f'{recipe.suite} cannot ask for other objects; add --no-retarget.')


def _document(recipe: RecordingRecipe) -> dict:
    recorded = asdict(recipe) | {'tasks': list(recipe.tasks)}
    return {
        'format': FORMAT,
        **recorded,
        'cameras': list(CAMERAS),
        'labels_px': recipe.image_px // LABELS_STRIDE,
        'versions': {name: version(name) for name in ('mujoco', 'robosuite', 'hf-libero')},
    }


def _read_discarded(directory: Path) -> set[int]:
    path = directory / DISCARDED
    lines = path.read_text(encoding='utf-8').splitlines() if path.is_file() else []
    seeds = set()
    for line in lines:
        try:
            seeds.add(json.loads(line)['seed'])
        except ValueError:
            continue  # the last line of a run that was killed
    return seeds


def _remember_discarded(directory: Path, seed: int) -> None:
    with (directory / DISCARDED).open('a', encoding='utf-8') as file:
        file.write(json.dumps({'seed': seed}) + '\n')


def _results(done: set[Future]) -> list[Attempt]:
    try:
        return [future.result() for future in done]
    except BrokenProcessPool as error:
        raise ValueError(
            'A worker was killed, most likely for want of memory; run the same command again with '
            'fewer --workers.') from error


# In a worker process: where to write, what to make, and the worlds that are open, at most the
# ten of a suite.
_work: tuple[Path, RecordingRecipe] | None = None
_worlds: dict[int, LiberoWorld] = {}


def _start_worker(directory: Path, recipe: RecordingRecipe) -> None:
    global _work
    _work = directory, recipe


def _attempt(seed: int) -> Attempt:
    directory, recipe = _work
    task = recipe.task_of(seed)
    if task not in _worlds:
        _worlds[task] = LiberoWorld(tasks(recipe.suite)[task], recipe.image_px)
    scattered = recipe.layout == SCATTERED
    demonstration = (record_scenes if scattered else record)(_worlds[task], recipe, seed)
    if demonstration is None:
        return Attempt(seed, kept=False)
    write_demonstration(directory, demonstration)
    return Attempt(seed, kept=True, steps=len(demonstration.action))
