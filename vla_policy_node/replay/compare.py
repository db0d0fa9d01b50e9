"""Compares two policies on the same observations: where they differ, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vla_policy_node.replay.metrics import (
    chunk_disagreement,
    error_by_axis,
    gripper_agreement,
    sent_actions,
    smoothness,
    spread_of,
)
from vla_policy_node.replay.trace import Trace, TracedInference

MOST_DIFFERENT = 10


@dataclass(frozen=True, eq=False)
class PairedInference:
    """The same observation as two policies saw it.

    distance: RMS over all elements and dimensions of the two chunks, action units.
    translation_m, rotation_rad: largest difference of a displacement, over the elements.
    """

    first: TracedInference
    second: TracedInference
    distance: float
    translation_m: float
    rotation_rad: float


def pair_inferences(a: Trace, b: Trace) -> list[PairedInference]:
    """Return the observations that both inferred from, in order of time."""
    others = {(i.epoch, i.stamp_ns): i for i in b.inferences}
    pairs = []
    for first in a.inferences:
        second = others.get((first.epoch, first.stamp_ns))
        if second is None:
            continue
        length = min(len(first.actions), len(second.actions))
        gap = first.actions[:length] - second.actions[:length]
        delta = (a.metric(first.actions[:length])[0] - b.metric(second.actions[:length])[0])
        pairs.append(PairedInference(
            first, second, float(np.sqrt(np.mean(gap**2))),
            float(np.linalg.norm(delta[:, :3], axis=1).max()),
            float(np.linalg.norm(delta[:, 3:], axis=1).max())))
    return pairs


def most_different(pairs: list[PairedInference]) -> list[PairedInference]:
    """Return the ten pairs that differ most, the worst first."""
    return sorted(pairs, key=lambda p: (-p.distance, p.first.stamp_ns))[:MOST_DIFFERENT]


def compare(a: Trace, b: Trace, pairs: list[PairedInference]) -> dict:
    """Return the paired difference of everything that does not depend on the machine's speed.

    Signed differences are second minus first (`against` minus `config`).
    """
    firsts: list[np.ndarray] = []
    seconds: list[np.ndarray] = []
    gripper_a: list[np.ndarray] = []
    gripper_b: list[np.ndarray] = []
    for pair in pairs:
        length = min(len(pair.first.actions), len(pair.second.actions))
        for trace, inference, deltas, grippers in (
                (a, pair.first, firsts, gripper_a), (b, pair.second, seconds, gripper_b)):
            delta, opening = trace.metric(inference.actions[:length])
            deltas.append(delta)
            grippers.append(opening)
    first, second = _sent_by_both(a, b)
    opening_a, opening_b = np.concatenate(gripper_a), np.concatenate(gripper_b)
    gripper = gripper_agreement(
        (first['target_ns'], first['gripper']), (second['target_ns'], second['gripper']),
        first['epoch'])
    gripper['agreement_of_chunks'] = float(np.mean((opening_a > 0.5) == (opening_b > 0.5)))
    if gripper['agreement'] is None:
        gripper['agreement'] = gripper['agreement_of_chunks']
    return {
        'inferences': len(pairs),
        'only_first': len(a.inferences) - len(pairs),
        'only_second': len(b.inferences) - len(pairs),
        'error': error_by_axis(np.concatenate(firsts), np.concatenate(seconds)),
        'chunk_distance': spread_of([p.distance for p in pairs]),
        'translation_m': spread_of([p.translation_m for p in pairs]),
        'rotation_rad': spread_of([p.rotation_rad for p in pairs]),
        'gripper': gripper,
        'paired': _paired(a, b, pairs, first, second),
    }


def _paired(
    a: Trace, b: Trace, pairs: list[PairedInference], first: Mapping, second: Mapping
) -> dict:
    """Return differences by inference, by control period (first, second: sent), or of means."""
    return {
        'tokens_kept': spread_of(
            [p.second.tokens_kept - p.first.tokens_kept for p in pairs]),
        'tokens_kept_by_camera': {
            camera: spread_of([_count(p.second, camera) - _count(p.first, camera)
                               for p in pairs]) for camera in a.grids if camera in b.grids},
        'gflops': spread_of([(p.second.flops - p.first.flops) / 1e9 for p in pairs]),
        'observation_age_s': spread_of(
            [(p.second.age_ns - p.first.age_ns) / 1e9 for p in pairs]),
        'camera_spread_s': spread_of(
            [(p.second.spread_ns - p.first.spread_ns) / 1e9 for p in pairs]),
        'age_at_actuation_s': spread_of(_age_s(second) - _age_s(first)),
        'ensemble_disagreement': spread_of(second['disagreement'] - first['disagreement']),
        'chunk_disagreement': _mean_difference(
            chunk_disagreement(a), chunk_disagreement(b)),
        **_motion_differences(smoothness(a), smoothness(b)),
        'counts': {name: b.counts.get(name, 0) - a.counts.get(name, 0)
                   for name in sorted(a.counts.keys() | b.counts.keys())
                   if b.counts.get(name, 0) != a.counts.get(name, 0)},
    }


def compare_latency(pairs: list[PairedInference]) -> dict:
    """Return the paired differences of wall time (ms), total and per stage; second minus first."""
    stages = list(dict.fromkeys(s for p in pairs for s in p.second.stage_ms))
    return {
        'total': spread_of([sum(p.second.stage_ms.values()) - sum(p.first.stage_ms.values())
                            for p in pairs]),
        'stages': {s: spread_of([p.second.stage_ms.get(s, 0.0) - p.first.stage_ms.get(s, 0.0)
                                 for p in pairs]) for s in stages},
    }


def compare_errors(first: Mapping, second: Mapping) -> list[dict]:
    """Return by axis how much the error to the bag's actions grew; of two run summaries."""
    if not (first['actions'] and second['actions']):
        return []
    return [{'axis': ours['axis'], 'unit': ours['unit'],
             **{name: _difference(ours[name], theirs[name]) for name in ('mean', 'p95')}}
            for ours, theirs in zip(first['actions']['error'], second['actions']['error'],
                                    strict=True)]


def _count(inference: TracedInference, camera: str) -> int:
    return int(np.unpackbits(inference.kept[camera]).sum())


def _age_s(sent: Mapping[str, np.ndarray]) -> np.ndarray:
    return (sent['time_ns'] - sent['observation_ns']) / 1e9


def _sent_by_both(a: Trace, b: Trace) -> tuple[dict, dict]:
    """Return what each sent in those control periods in which both moved."""
    first, second = sent_actions(a), sent_actions(b)
    _, in_a, in_b = np.intersect1d(
        first['target_ns'], second['target_ns'], return_indices=True)
    return ({name: column[in_a] for name, column in first.items()},
            {name: column[in_b] for name, column in second.items()})


def _motion_differences(first: Mapping, second: Mapping) -> dict[str, float | None]:
    result = {}
    for kind, ours in first.items():
        theirs = second[kind]
        result[f'{kind}_jerk_rms'] = _difference(ours['jerk_rms'], theirs['jerk_rms'])
        for name in ('seam_jump', 'change_within_chunk'):
            result[f'{kind}_{name}_mean'] = _difference(ours[name]['mean'], theirs[name]['mean'])
    return result


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else second - first


def _mean_difference(first: np.ndarray, second: np.ndarray) -> float | None:
    means = [float(np.mean(v[np.isfinite(v)])) if np.isfinite(v).any() else None
             for v in (first, second)]
    return _difference(*means)
