"""Assembles `vla bench policy`: subject, rows, cameras, tables, files."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from vla_policy_node.acceleration.lightvla import PUBLISHED_COUNT
from vla_policy_node.bench.pictures import observe_demonstrations, observe_world, seen_by
from vla_policy_node.bench.policy import (
    load_rows,
    measure_cameras,
    run_rows,
    shrink,
)
from vla_policy_node.bench.policy_tables import (
    Lines,
    camera_table,
    describe_rates,
    markdown,
    stage_table,
    summarise,
    variant_table,
)
from vla_policy_node.bench.policy_variants import PolicyCache, PolicyVariant, list_variants
from vla_policy_node.bench.random_policy import document_of, load_random, write_files
from vla_policy_node.bench.rates import measure_rates
from vla_policy_node.checkpoints.hub import find_checkpoint
from vla_policy_node.common.code_version import date_and_code
from vla_policy_node.common.machine import processor_name
from vla_policy_node.common.scoped import torch_threads
from vla_policy_node.common.terminal import fitted
from vla_policy_node.families import read_model_config
from vla_policy_node.outputs.files import write_text
from vla_policy_node.outputs.folder import claimed, seal
from vla_policy_node.policy.interface import Observation
from vla_policy_node.runtime.loading import find_device, load_model
from vla_policy_node.system.files import default_checkpoint

COMMAND = 'vla bench policy'  # whose files they are
# Processor time of the process approximates an idle machine on a shared one.
CLOCKS = {'wall': time.perf_counter, 'processor': time.process_time}


@dataclass(frozen=True)
class Options:
    """What to measure and how; the options of `vla bench policy` say what each means."""

    checkpoint: str = ''
    family: str = ''
    size: str = ''
    device: str = 'cpu'
    repetitions: int = 20
    warm_up: int = 2
    pictures: int = 4
    threads: int = 1
    count: int = 0
    compiled: bool = False
    clock: str = 'wall'
    only: Sequence[str] = ()
    demonstrations: Path | None = None


def run(
    options: Options, json_file: Path | None, markdown_file: Path | None, console: Console
) -> None:
    """Measure, print, write. ValueError with one sentence for what this machine cannot measure."""
    _check(options)
    with ExitStack() as stack:
        for path in filter(None, (json_file, markdown_file)):
            stack.enter_context(claimed(path.parent, [path.name], COMMAND))
        stack.enter_context(torch_threads(options.threads))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        figures, tables = _measure(options, Path(folder), console)
    for table in tables:
        console.print(fitted(table.rich()))
    for path, text in ((json_file, json.dumps(figures, indent=2)),
                       (markdown_file, markdown(tables, figures['notes']))):
        if path is not None:
            write_text(path, text + '\n')
            seal(path.parent, COMMAND, [path.name])


def _check(options: Options) -> None:
    cuda = options.device.startswith('cuda')
    if options.family and not options.size:
        raise ValueError('--family names whose --size is measured; a checkpoint tells its own.')
    if options.size:
        document_of(options.family, options.size)
    if options.size and options.checkpoint:
        raise ValueError('Give a checkpoint or a size, not both.')
    if options.size and not cuda:
        raise ValueError(
            f'--size {options.size} is measured on a GPU: --device cuda. On the CPU, leave it out '
            'to measure the small checkpoint.'
        )
    find_device(options.device)
    if options.clock not in CLOCKS or (options.clock == 'processor' and cuda):
        raise ValueError(
            f'clock must be one of {", ".join(CLOCKS)}, the latter on the CPU only, not '
            f'{options.clock!r}.'
        )


def _measure(options: Options, folder: Path, console: Console) -> tuple[dict, list[Lines]]:
    read_s = CLOCKS[options.clock]
    count = options.count or (PUBLISHED_COUNT if options.size else 0)
    directory = (
        write_files(folder, document_of(options.family, options.size)) if options.size
        else find_checkpoint(options.checkpoint or default_checkpoint()))
    read_model_config(directory)  # before anything that takes long
    cache = PolicyCache(
        directory,
        options.device, options.threads, load_random if options.size else load_model,
        {'lightvla': {'count': count}}, read_s)
    variants = [c for c in list_variants(options.device, options.compiled)
                  if _wanted(c, options.only)]
    with console.status('Looking for pictures ...'):
        observations = (
            observe_demonstrations(options.demonstrations, options.pictures)
            if options.demonstrations else observe_world(options.pictures))
    with console.status('Measuring what this device can do ...'):
        rates = measure_rates(options.device, read_s)
    rows = load_rows(cache, variants, console)
    if not rows:
        raise ValueError(f'There is no contender like {", ".join(options.only)} here.')
    notes = [rows[0].policy.description.architecture, _machine(options), describe_rates(rates)]
    for note in notes:
        console.print(note, highlight=False)
    observations = [seen_by(observation, rows[0].policy.description.spec)
                    for observation in observations]
    small = shrink(observations, rows[0].policy.config.image_px)
    rows = run_rows(rows, small, options.repetitions, options.warm_up, console)
    entries = [summarise(row, rows, rates) for row in rows]
    plainest = min((row.variant for row in rows), key=lambda c: (
        c.public, c.optimisation != 'none'))
    cameras = measure_cameras(cache, plainest, observations, options.repetitions)
    figures = {
        'notes': notes, 'repetitions': options.repetitions,
        'rates': {'flop_s': rates.flop_s, 'byte_s': rates.byte_s},
        'contenders': entries, 'cameras': cameras,
    }
    return figures, [
        variant_table(entries, 'From 224-px pictures on the host to actions on the host'),
        stage_table(entries, 'The same by stage'),
        camera_table(
            cameras,
            f'{_size(observations[0])} pictures to what the vision encoders take, one core'),
    ]


def _size(observation: Observation) -> str:
    height, width, _ = next(iter(observation.images.values())).shape
    return f'{width}x{height}'


def _wanted(variant: PolicyVariant, only: Sequence[str]) -> bool:
    name = f'{variant.name}, {variant.dtype}'
    return not only or any(part in name for part in only)


def _machine(options: Options) -> str:
    machine = (
        f'{processor_name()}, {os.cpu_count()} cores, threads: {options.threads}, clock: '
        f'{options.clock}, load average {os.getloadavg()[0]:.1f}, torch {torch.__version__}, '
        f'{", ".join(date_and_code().values())}'
    )
    if options.device.startswith('cuda'):
        return f'{torch.cuda.get_device_name(options.device)}; {machine}'
    return machine
