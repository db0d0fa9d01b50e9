"""What lies beside the weights of a checkpoint that was trained: sizes, words, statistics.

OpenVLA's layout keeps statistics as data sets write them. LeRobot's and openpi's have files of
their own, into which those of the demonstrations are put, so that training normalises by the very
files that the checkpoint will have.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from vla_policy_node import families
from vla_policy_node.checkpoints import value_files
from vla_policy_node.checkpoints.adapter import place
from vla_policy_node.checkpoints.conventions import Convention
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.layout import read_json
from vla_policy_node.checkpoints.processors import ACTION, POSTPROCESSOR, PREPROCESSOR, STATE
from vla_policy_node.checkpoints.scaled_statistics import ScaledStatistics
from vla_policy_node.checkpoints.statistics import STATISTICS
from vla_policy_node.families import smolvla_files
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.nn.config import ModelConfig

# Of a checkpoint in OpenVLA's layout, what describes it and is no weight.
DOCUMENTS = ('config.json', 'preprocessor_config.json', 'tokenizer.json', STATISTICS)
# Of one in LeRobot's or openpi's, as far as it is there.
_PUBLIC = ('config.json', 'tiny_sizes.json', 'generation_config.json', 'tokenizer_config.json')
_FEATURES = {'proprio': STATE, 'action': ACTION}  # by what data sets call them
_OPENPI = {'proprio': 'state', 'action': 'actions'}


def write_documents(
    start: Path, config: ModelConfig, statistics: Path | None, target: Path
) -> None:
    """Write what belongs to the weights of `start` into `target`, with other statistics.

    statistics: `dataset_statistics.json` of demonstrations; None: those of `start` go on.
    """
    if isinstance(config, PrismaticConfig):
        for name in DOCUMENTS:
            shutil.copyfile(place(start, name), target / name)
        if statistics is not None:
            shutil.copyfile(statistics, target / STATISTICS)
        return
    for name in _PUBLIC:
        if place(start, name).is_file():
            shutil.copyfile(place(start, name), target / name)
    _copy_backbone(start, config, target)
    for path in value_files.files(start):
        (target / path.relative_to(start)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.relative_to(start))
    if statistics is not None:
        _put_statistics(start, statistics, target)


def training_statistics(directory: Path, config: ModelConfig) -> ScaledStatistics:
    """Statistics of a folder that `write_documents` wrote; ValueError for a robot's own rules."""
    found = families.of(config).load_statistics(directory, config)
    assert isinstance(found, ScaledStatistics)
    if found.convention != Convention():
        raise ValueError(
            'The policy counts actions from the state, or turns an ALOHA into other numbers, and '
            'vla train knows statistics of plain actions alone; fine-tune it with LeRobot or '
            'openpi, whose checkpoint runs here.')
    return found


def _copy_backbone(start: Path, config: ModelConfig, target: Path) -> None:
    """The tokenizer, and what else is looked for beside it."""
    path = families.of(config).load_prompt(start, config).path
    found = (path.parent, start / smolvla_files.FOLDER)
    for folder in {*found} - {start}:
        (target / smolvla_files.FOLDER).mkdir(exist_ok=True)
        for name in ('config.json', 'tokenizer_config.json', path.name):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / smolvla_files.FOLDER / name)
    if path.parent == start:
        shutil.copyfile(path, target / path.name)


def _put_statistics(start: Path, statistics: Path, target: Path) -> None:
    values = value_files.read_values(start)
    if values.older:
        raise ValueError(
            f'{start} keeps its statistics in the weights, as LeRobot did before 0.4, and those '
            "of demonstrations cannot be put there; let LeRobot's migrate_policy_normalization.py "
            'convert it first.')
    document = Entries(read_json(statistics.parent, statistics.name), str(statistics))
    key = document.names()[0]
    entry = document.inside(key)
    numbers = {part: {
        name: entry.inside(part).value(name) for name in entry.inside(part).names()
        if name != 'mask'} for part in _FEATURES}
    if values.processors is not None:
        _into_processors(target, numbers)
    elif 'type' in read_json(start, 'config.json'):
        _write(target / 'stats.json', {_FEATURES[part]: found for part, found in numbers.items()})
    else:
        shutil.rmtree(target / value_files.ASSETS, ignore_errors=True)
        folder = target / value_files.ASSETS / key
        folder.mkdir(parents=True)
        _write(folder / value_files.NORM_STATS, {
            'norm_stats': {_OPENPI[part]: found for part, found in numbers.items()}})


def _into_processors(target: Path, numbers: Mapping[str, Mapping[str, list[float]]]) -> None:
    tensors = {
        f'{_FEATURES[part]}.{name}': torch.tensor(values, dtype=torch.float32)
        for part, found in numbers.items() for name, values in found.items()}
    for name in (PREPROCESSOR, POSTPROCESSOR):
        if not (target / name).is_file():
            continue
        document = json.loads((target / name).read_text(encoding='utf-8'))
        for index, step in enumerate(document['steps']):
            kind = step.get('registry_name', '')
            if kind.endswith('normalizer_processor'):
                step['state_file'] = f'{Path(name).stem}_step_{index}_{kind}.safetensors'
                save_file(tensors, target / step['state_file'])
        _write(target / name, document)


def _write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
