"""Ranges of a set of demonstrations, in the layout of public OpenVLA-OFT checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from vla_policy_node.outputs.files import write_text
from vla_policy_node.training.demonstrations import Demonstrations

FILE = 'dataset_statistics.json'

# The expert hardly turns the hand: without a floor most of the loss would be about correcting
# noise in the rotation. Least distance of the percentiles from 0, in LIBERO's units; half of it is
# the least deviation.
ACTION_FLOOR = np.array([0, 0, 0, 0.25, 0.25, 0.25, 0])
# Least distance of the percentiles from their middle: position (m), axis-angle (rad), fingers (m).
PROPRIO_FLOOR = np.array([0.02] * 3 + [0.1] * 3 + [0.005] * 2)
# Percentiles so close to each other, of the whole range, are no range to divide by.
RARE_SHARE = 1e-3
# The gripper is 0 or 1 already.
ACTION_MASK = [True] * 6 + [False]


def write_statistics(demonstrations: Demonstrations) -> Path:
    """Write the statistics of all control steps into the folder; return the file's path."""
    episodes = range(len(demonstrations.episodes))
    action = np.concatenate([demonstrations.read(i, 'action') for i in episodes])
    proprio = np.concatenate([demonstrations.read(i, 'proprio') for i in episodes])
    document = demonstrations.document
    if demonstrations.has_labels:
        key, entry = f'{document["suite"]}_{document["layout"]}', statistics_of(action, proprio)
    else:
        key, entry = document['suite'], {
            'action': _widened(action), 'proprio': _widened(proprio)}
    written = {key: entry | {
        'num_transitions': len(action), 'num_trajectories': len(episodes)}}
    path = demonstrations.directory / FILE
    write_text(path, json.dumps(written, indent=2) + '\n')
    return path


def statistics_of(action: np.ndarray, proprio: np.ndarray) -> dict:
    """[N, 7] and [N, 8] -> the entry of one data set, floors applied."""
    entry: dict[str, dict] = {'action': _describe(action), 'proprio': _describe(proprio)}
    low, high = (np.array(entry['action'][q]) for q in ('q01', 'q99'))
    entry['action'] |= {
        'q01': np.minimum(low, -ACTION_FLOOR).tolist(),
        'q99': np.maximum(high, ACTION_FLOOR).tolist(),
        'std': np.maximum(entry['action']['std'], ACTION_FLOOR / 2).tolist(),
        'mask': ACTION_MASK,
    }
    low, high = (np.array(entry['proprio'][q]) for q in ('q01', 'q99'))
    middle, half = (low + high) / 2, np.maximum((high - low) / 2, PROPRIO_FLOOR)
    entry['proprio'] |= {'q01': (middle - half).tolist(), 'q99': (middle + half).tolist()}
    return entry


def _widened(values: np.ndarray) -> dict[str, list[float]]:
    """Describe numbers of any robot: one that hardly ever moves has its bounds as percentiles.

    Otherwise the few other values would be divided by nothing.
    """
    entry = _describe(values)
    low, high, least, most = (np.array(entry[end]) for end in ('q01', 'q99', 'min', 'max'))
    rare = high - low <= RARE_SHARE * (most - least)
    return entry | {'q01': np.where(rare, least, low).tolist(),
                    'q99': np.where(rare, most, high).tolist()}


def _describe(values: np.ndarray) -> dict[str, list[float]]:
    values = np.asarray(values, np.float64)
    return {
        'mean': values.mean(0).tolist(),
        'std': values.std(0).tolist(),
        'max': values.max(0).tolist(),
        'min': values.min(0).tolist(),
        'q01': np.quantile(values, 0.01, axis=0).tolist(),
        'q99': np.quantile(values, 0.99, axis=0).tolist(),
    }
