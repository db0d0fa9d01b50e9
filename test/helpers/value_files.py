"""Writes the files in which LeRobot and openpi keep statistics and settings."""

import json

import numpy as np
import torch
from safetensors.torch import save_file

STATE, ACTION = 'observation.state', 'action'


def made_up(size, seed):
    """Return statistics of so many numbers, in order: min, q01, q10, mean, q90, q99, max."""
    ends = np.sort(np.random.default_rng(seed).normal(size=(7, size)).astype(np.float32), axis=0)
    names = ('min', 'q01', 'q10', 'mean', 'q90', 'q99', 'max')
    return {**dict(zip(names, ends, strict=True)), 'std': (ends[4] - ends[2]) / 2}


def tensors(statistics):
    """Return a table of tensors; statistics: feature -> statistic -> numbers."""
    return {f'{feature}.{name}': torch.tensor(values) for feature, numbers in statistics.items()
            for name, values in numbers.items()}


def write_processors(
    folder, statistics, modes=('MEAN_STD', 'MEAN_STD'), kind='pi0', before=(), after=(), **config
):
    """Write a config.json and both processors as LeRobot 0.6 does.

    statistics: feature -> statistic -> numbers, none for no file. modes: of state and actions.
    before, after: more steps of the two, as (name, settings). config: entries of config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    norm_map = {'VISUAL': 'IDENTITY', 'STATE': modes[0], 'ACTION': modes[1]}
    for name, step, extra in (('preprocessor', 'normalizer', before),
                              ('postprocessor', 'unnormalizer', after)):
        file = f'policy_{name}_step_{len(extra)}_{step}_processor.safetensors'
        normal = {'registry_name': f'{step}_processor',
                  'config': {'eps': 1e-8, 'features': {}, 'norm_map': norm_map}}
        if statistics:
            save_file(tensors(statistics), folder / file)
            normal['state_file'] = file
        steps = [{'registry_name': kind_, 'config': settings} for kind_, settings in extra]
        (folder / f'policy_{name}.json').write_text(
            json.dumps({'name': f'policy_{name}', 'steps': [*steps, normal]}))
    (folder / 'config.json').write_text(json.dumps({'type': kind, **config}))


def write_assets(folder, robots, **config):
    """Write openpi's files; robots: asset id -> statistics of ('state', 'actions')."""
    for robot, pair in robots.items():
        path = folder / 'assets' / robot / 'norm_stats.json'
        path.parent.mkdir(parents=True)
        stats = {name: {key: np.asarray(values, float).tolist() for key, values in part.items()}
                 for name, part in zip(('state', 'actions'), pair, strict=True)}
        path.write_text(json.dumps({'norm_stats': stats}))
    (folder / 'config.json').write_text(json.dumps(config))
