"""Two policies on the same observations: where they differ, and by how much."""

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
from vla_policy_node.replay.trace import Inference, Trace

MOST_DIFFERENT = 10


@dataclass(frozen=True, eq=False)
class PairedInference:
    """The same observation as two policies saw it.

    distance: RMS over all elements and dimensions of the two chunks, action units.
    translation_m, rotation_rad: largest difference of a displacement, over the elements.
    """

    first: Inference
    second: Inference
    distance: float
    translation_m: float
    rotation_rad: float


def pair_inferences(a: Trace, b: Trace) -> list[PairedInference]:
    """Return what both inferred from, in order of time."""
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

    Signed differences are second less first (against less config).
    """
    firsts, seconds, gripper_a, gripper_b = [], [], [], []
    for pair in pairs:
        length = min(len(pair.first.actions), len(pair.second.actions))
        for trace, inference, deltas, grippers in (
                (a, pair.first, firsts, gripper_a), (b, pair.second, seconds, gripper_b)):
            delta, opening = trace.metric(inference.actions[:length])
            deltas.append(delta)
            grippers.append(opening)
    if not pairs:
        return {'inferences': 0, 'error': [], 'gripper': {}, 'paired': {}}
    opening_a, opening_b = np.concatenate(gripper_a), np.concatenate(gripper_b)
    gripper = _sent_gripper(a, b)
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
        'paired': {
            'tokens_kept': spread_of(
                [p.second.tokens_kept - p.first.tokens_kept for p in pairs]),
            'gflops': spread_of([(p.second.flops - p.first.flops) / 1e9 for p in pairs]),
            'chunk_disagreement': _mean_difference(
                chunk_disagreement(a), chunk_disagreement(b)),
            **_motion_differences(smoothness(a), smoothness(b)),
            'counts': {name: b.counts.get(name, 0) - a.counts.get(name, 0)
                       for name in sorted(a.counts.keys() | b.counts.keys())
                       if b.counts.get(name, 0) != a.counts.get(name, 0)},
        },
    }


def compare_latency(pairs: list[PairedInference]) -> dict:
    """Return the paired differences of wall time (ms), total and per stage; second less first."""
    stages = list(dict.fromkeys(s for p in pairs for s in p.second.stage_ms))
    return {
        'total': spread_of([sum(p.second.stage_ms.values()) - sum(p.first.stage_ms.values())
                            for p in pairs]),
        'stages': {s: spread_of([p.second.stage_ms.get(s, 0.0) - p.first.stage_ms.get(s, 0.0)
                                 for p in pairs]) for s in stages},
    }


def _sent_gripper(a: Trace, b: Trace) -> dict:
    """Compare what was sent for the same control periods."""
    first, second = sent_actions(a), sent_actions(b)
    _, in_a, in_b = np.intersect1d(
        first['target_ns'], second['target_ns'], return_indices=True)
    return gripper_agreement(
        (first['target_ns'][in_a], first['gripper'][in_a]),
        (second['target_ns'][in_b], second['gripper'][in_b]), first['epoch'][in_a])


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
