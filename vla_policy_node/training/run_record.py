"""`run.json`: what a run of training was made from, so that it goes on from that and nothing else.

    format      1
    settings    entries of the stage, as `TrainingConfig.document` gives them
    base, grounding_heads, demonstrations, scenes
                sha256 of what the run starts from and learns from; null for what there is not
    processes, device
                how a batch is shared out, and on which kind of device
    code        sha256 of the source that computes; `versions`: of what it rests on
    machine     model of the processor, or of the GPU
    lengths     one entry for each number of steps that the run was given: from which step it was
                in force, and how many they were
    despite     what had changed when the run went on all the same, by step
    finished    whether the checkpoint beside it is what the last step left

Readable, without times or absolute paths of its own: the same inputs give the same text.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Collection, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import vla_policy_node
from vla_policy_node.checkpoints.fingerprint import fingerprint
from vla_policy_node.checkpoints.reading import read_json
from vla_policy_node.common.machine import processor_name
from vla_policy_node.outputs.files import write_json
from vla_policy_node.outputs.listing import look
from vla_policy_node.training import demonstrations
from vla_policy_node.training.config import TrainingConfig

RECORD = 'run.json'
FORMAT = 1
# What may differ if the user says so: the run goes on with other last bits, and that is written.
MAY_DIFFER = ('code', 'machine', 'versions')
# Entries that a run may go on with another value of.
_FREE = ('steps', 'save_every_s')
_OF_THE_RUN = ('settings', 'lengths', 'despite', 'finished')  # compared otherwise, or not
_COMPUTING = ('acceleration', 'encoding', 'families', 'nn', 'training')
_RESTS_ON = ('vla_policy_node', 'torch', 'numpy', 'opencv-python-headless', 'simplejpeg', 'peft')
_ADVICE = 'take another --out'


def describe_run(
    config: TrainingConfig, start: Path, heads: Path, demonstrations: Path | None,
    scenes: Path | None, device: str, processes: int,
) -> dict[str, Any]:
    """Return the record of a run that begins now; reads all its inputs once.

    start: checkpoint. heads: file of the grounding heads beside it, which need not be there.
    """
    return {
        'format': FORMAT,
        'settings': {name: value for name, value in config.document().items()
                     if name not in _FREE},
        'base': fingerprint(start),
        'grounding_heads': look(heads)['sha256'] if heads.is_file() else None,
        'demonstrations': demonstrations and folder_fingerprint(demonstrations),
        'scenes': scenes and folder_fingerprint(scenes),
        'processes': processes,
        'device': torch.device(device).type,
        'code': _code(),
        'versions': {'python': platform.python_version(), **_versions()},
        'machine': _machine(device),
        'lengths': [{'from_step': 0, 'steps': config.steps}],
        'despite': [],
        'finished': False,
    }


def folder_fingerprint(folder: Path) -> str:
    """sha256 over the names and contents of a set of demonstrations, which may be gigabytes."""
    names = (demonstrations.DOCUMENT, 'dataset_statistics.json')
    files = [path for path in (folder / name for name in names) if path.is_file()]
    return _digest((path.name, look(path)['sha256']) for path in [
        *files, *sorted(folder.glob('episode-*.safetensors'))])


def go_on(
    out: Path, record: dict[str, Any], step: int, despite: Collection[str] = ()
) -> dict[str, Any]:
    """Return the record of the run in a folder, continued after a step by one described now.

    despite: of MAY_DIFFER, what may have changed. Raises ValueError with one sentence that names
    what differs.
    """
    path = out / RECORD
    if not path.exists():
        raise ValueError(f'{out} holds a run without its {RECORD}, so nobody knows what it was '
                         f'made from; {_ADVICE}.')
    before = read_json(path)
    if before['format'] != FORMAT or not _is_shaped_like_one(before):
        raise ValueError(f'{path} is no record of a training run; {_ADVICE}.')
    changed = [name for name in record if name not in _OF_THE_RUN
               and before[name] != record[name]]
    _refuse_other_settings(path, before['settings'], record['settings'])
    for name in changed:
        if name not in despite:
            raise ValueError(_sentence(path, name, before[name], record[name]))
    steps = record['lengths'][-1]['steps']
    if steps < step:
        raise ValueError(
            f'The run in {out} is at step {step}, beyond steps={steps}; give more steps, or '
            f'{_ADVICE}.')
    lengths, forgiven = before['lengths'], before['despite']
    if steps != lengths[-1]['steps']:
        lengths = [*lengths, {'from_step': step, 'steps': steps}]
    if changed:
        forgiven = [*forgiven, {'step': step, **{name: before[name] for name in changed}}]
    return {**record, 'lengths': lengths, 'despite': forgiven}


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Put the record into the folder of its run."""
    write_json(out / RECORD, record)


def recipe_of(out: Path) -> dict[str, Any]:
    """Return the settings of a run, and `steps`, the number that it was last given.

    Raises ValueError if the folder has no record of a run.
    """
    record = read_json(out / RECORD)
    return {**record['settings'], 'steps': record['lengths'][-1]['steps']}


def finish(out: Path) -> None:
    """Note that the checkpoint of a run is written."""
    write_record(out, {**read_json(out / RECORD), 'finished': True})


def is_finished(out: Path) -> bool:
    """Whether `finish` was called since the run last went on."""
    return read_json(out / RECORD)['finished'] is True


def _refuse_other_settings(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise ValueError(
                f'{path} is of a run with {name}={before.get(name)}, not {now.get(name)}; '
                f'{_ADVICE}, or the settings it was started with.')


def _sentence(path: Path, name: str, before: Any, now: Any) -> str:
    if name in MAY_DIFFER:
        if isinstance(before, dict):
            apart = [key for key in {**before, **now} if before.get(key) != now.get(key)]
            before, now = ({key: values.get(key) for key in apart} for values in (before, now))
        what = 'the source code has changed' if name == 'code' else (
            f'{name} is {now}, and was {before}')
        return (f'{path}: {what}, so the last bits will differ; go on all the same with '
                f'--despite {name}, or {_ADVICE}.')
    if name in ('processes', 'device'):
        return f'{path} is of a run with {name}={before}, not {now}; {_ADVICE}.'
    what, option = {
        'base': ('another checkpoint', '--from'),
        'grounding_heads': ('other grounding heads beside its checkpoint', '--from'),
        'demonstrations': ('other demonstrations', '--demos'),
        'scenes': ('other scenes', '--scenes')}[name]
    return (f'{path} is of a run with {what} (sha256 {str(before)[:12]}, not {str(now)[:12]}); '
            f'give the {option} that it was started with, or {_ADVICE}.')


def _is_shaped_like_one(document: dict[str, Any]) -> bool:
    """Whether a file has the lists and sections of a record; anybody may have written it."""
    lengths = document['lengths']
    return (isinstance(document['settings'], dict) and isinstance(document['versions'], dict)
            and isinstance(document['despite'], list) and isinstance(lengths, list)
            and bool(lengths) and isinstance(lengths[-1], dict))


def _code() -> str:
    """sha256 of the source files of the folders that compute."""
    root = Path(vla_policy_node.__file__).parent
    files = sorted(path for folder in _COMPUTING for path in (root / folder).rglob('*.py'))
    return _digest((str(path.relative_to(root)), look(path)['sha256']) for path in files)


def _versions() -> dict[str, str]:
    found = {}
    for name in _RESTS_ON:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # another distribution of it, or none that says
            found[name] = 'unknown'
    return found


def _machine(device: str) -> str:
    if torch.device(device).type == 'cuda':
        return torch.cuda.get_device_name(torch.device(device))
    return processor_name()


def _digest(parts: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, contents in parts:
        digest.update(f'{name} {contents}\n'.encode())
    return digest.hexdigest()
