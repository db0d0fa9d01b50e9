"""Puts `vla bench policy` together: subject, rows, cameras, tables, files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from vla_policy_node.bench.contenders import Contender, Garage, list_contenders
from vla_policy_node.bench.pictures import observe_world
from vla_policy_node.bench.policy import (
    load_rows,
    measure_cameras,
    run_rows,
    shrink,
)
from vla_policy_node.bench.policy_tables import (
    camera_table,
    contender_table,
    describe_rates,
    markdown,
    stage_table,
    summarise,
)
from vla_policy_node.bench.random_policy import SIZES, load_random, write_files
from vla_policy_node.bench.rates import measure_rates
from vla_policy_node.machine import processor_name
from vla_policy_node.models.checkpoint import load_model

PUBLIC_COUNT = 78  # tokens that LightVLA keeps of 512 on LIBERO, on average
_WIDTH = 160  # of lines where output is not a terminal


def run(
    checkpoint: str, size: str, device: str, repetitions: int, warm_up: int, pictures: int,
    threads: int, count: int, compiled: bool, only: Sequence[str], json_file: Path | None,
    markdown_file: Path | None, console: Console,
) -> None:
    """Measure, print, write. ValueError with one sentence for what cannot be measured here."""
    if not console.is_terminal:
        console.width = _WIDTH
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError('There is no GPU that torch can use here; choose --device cpu.')
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        directory, load = _subject(checkpoint, size, device, Path(folder))
        count = count or (PUBLIC_COUNT if size else 0)
        garage = Garage(directory, device, threads, load, {'lightvla': {'count': count}})
        contenders = [c for c in list_contenders(device, compiled) if _wanted(c, only)]
        if not contenders:
            raise ValueError(f'No contender contains any of {", ".join(only)}.')
        with console.status('Looking at the simulated world ...'):
            observations = observe_world(pictures)
        with console.status('Measuring what this device can do ...'):
            rates = measure_rates(device)
        notes = [_machine(device, threads), describe_rates(rates)]
        for note in notes:
            console.print(note, highlight=False)
        rows = load_rows(garage, contenders, console)
        side = rows[0].policy.config.image_px
        run_rows(rows, shrink(observations, side), repetitions, warm_up, console)
        entries = [summarise(row, rows, rates) for row in rows]
        cameras = measure_cameras(garage, _plainest(contenders), observations, repetitions)
        notes.insert(0, rows[0].policy.description.architecture)
    tables = [
        contender_table(entries, 'From 224-px pictures on the host to actions on the host'),
        stage_table(entries, 'The same by stage'),
        camera_table(cameras, 'Two 640x480 pictures to what the towers take, one core'),
    ]
    for table in tables:
        console.print(table.rich())
    figures = {
        'notes': notes, 'repetitions': repetitions,
        'rates': {'flop_s': rates.flop_s, 'byte_s': rates.byte_s},
        'contenders': entries, 'cameras': cameras,
    }
    for path, text in ((json_file, json.dumps(figures, indent=2)),
                       (markdown_file, markdown(tables, notes))):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + '\n', encoding='utf-8')


def _subject(checkpoint: str, size: str, device: str, folder: Path) -> tuple:
    """The checkpoint directory and what loads it."""
    if not size:
        from vla_policy_node.system import default_checkpoint

        return Path(checkpoint or default_checkpoint()), load_model
    if size not in SIZES:
        raise ValueError(f'size must be one of {", ".join(SIZES)}, not {size!r}.')
    if checkpoint:
        raise ValueError('Give a checkpoint or a size, not both.')
    if not device.startswith('cuda'):
        raise ValueError(
            f'--size {size} is measured on a GPU: --device cuda. On the CPU, leave it out to '
            'measure the small checkpoint.'
        )
    return write_files(folder, SIZES[size]), load_random


def _wanted(contender: Contender, only: Sequence[str]) -> bool:
    name = f'{contender.name}, {contender.dtype}'
    return not only or any(part in name for part in only)


def _plainest(contenders: Sequence[Contender]) -> Contender:
    """The one to look at pictures with: the dense network as it is, if it takes part."""
    return min(contenders, key=lambda c: (c.public, c.optimisation != 'none'))


def _machine(device: str, threads: int) -> str:
    load = f'load average {os.getloadavg()[0]:.1f} before the start'
    machine = f'{processor_name()}, {os.cpu_count()} cores, {threads} threads, {load}'
    if device.startswith('cuda'):
        machine = f'{torch.cuda.get_device_name(device)}; {machine}'
    return f'{machine}; torch {torch.__version__}'
