"""Metrics of one run: error, gripper, seams, jerk, agreement, ages, tokens, drops.

All values are floats or None where there is nothing to measure, in SI units unless a name says
otherwise, so that a document of them is JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vla_policy_node.control.hold import HoldReason
from vla_policy_node.replay.actions import Actions
from vla_policy_node.replay.trace import Trace

AXES = (('x', 'translation', 'm'), ('y', 'translation', 'm'), ('z', 'translation', 'm'),
        ('rx', 'rotation', 'rad'), ('ry', 'rotation', 'rad'), ('rz', 'rotation', 'rad'))
# A picture of a 30 Hz camera is used before the next one comes.
FRAME_INTERVAL_MS = 1e3 / 30
_OPEN = 0.5
# Switches further apart than this do not belong together.
_SWITCH_WINDOW_NS = 1_000_000_000


def spread_of(values: Sequence[float] | np.ndarray) -> dict[str, float | None]:
    """Return count, mean, p50, p95, p99 and max of the finite values."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return {'count': 0, **dict.fromkeys(('mean', 'p50', 'p95', 'p99', 'max'))}
    p50, p95, p99 = (float(np.percentile(finite, q)) for q in (50, 95, 99))
    return {'count': int(finite.size), 'mean': float(finite.mean()), 'p50': p50, 'p95': p95,
            'p99': p99, 'max': float(finite.max())}


def error_by_axis(first: np.ndarray, second: np.ndarray) -> list[dict]:
    """Return |first - second| of displacements [N, 6] per axis, with its unit."""
    return [{'axis': axis, 'kind': kind, 'unit': unit,
             **spread_of(np.abs(first[:, i] - second[:, i]))}
            for i, (axis, kind, unit) in enumerate(AXES)]


def gripper_agreement(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray],
    epoch: np.ndarray,
) -> dict:
    """Compare two openings over time; each is (times ns [N], openings [N]) of the same periods.

    Agreement is the share of periods in which both say open or both say closed. Timing is, for
    each switch of the second, the time to the nearest switch of the first in the same direction,
    positive where the first is late. epoch: [N]; a change between two goals is not a switch.
    """
    (time_ns, a), (_, b) = first, second
    known = np.isfinite(a) & np.isfinite(b)
    if not known.any():
        return {'agreement': None, 'switches': 0, 'matched': 0, 'missed': 0, 'extra': 0,
                'timing_s': spread_of([])}
    time_ns, a, b, epoch = (values[known] for values in (time_ns, a > _OPEN, b > _OPEN, epoch))
    ours, theirs = _switches(time_ns, a, epoch), _switches(time_ns, b, epoch)
    offsets, used = [], set()
    for when, direction in theirs:
        near = [(abs(w - when), k, w) for k, (w, d) in enumerate(ours)
                if d == direction and k not in used and abs(w - when) <= _SWITCH_WINDOW_NS]
        if near:
            _, index, found = min(near)
            used.add(index)
            offsets.append((found - when) / 1e9)
    return {'agreement': float(np.mean(a == b)), 'switches': len(theirs),
            'matched': len(offsets), 'missed': len(theirs) - len(offsets),
            'extra': len(ours) - len(offsets),
            'timing_s': {**spread_of(np.abs(offsets)),
                         'mean_signed': float(np.mean(offsets)) if offsets else None}}


def _switches(time_ns, is_open, epoch) -> list[tuple[int, bool]]:
    at = np.flatnonzero((is_open[1:] != is_open[:-1]) & (epoch[1:] == epoch[:-1])) + 1
    return [(int(time_ns[i]), bool(is_open[i])) for i in at]


def against_actions(trace: Trace, actions: Actions) -> dict | None:
    """Compare every element of every chunk, and every sent command, with the bag's actions.

    None if no element falls on a control period of which the bag has an action.
    """
    tolerance_ns = trace.period_ns // 2
    ours, theirs, first = [], [], []
    for inference in trace.inferences:
        steps = np.arange(1, len(inference.actions) + 1)
        index, near = actions.at(inference.stamp_ns + steps * trace.period_ns, tolerance_ns)
        if near.any():
            ours.append(inference.actions[near])
            theirs.append(index[near])
            first.append(int(near[0]))
    if not ours:
        return None
    delta, _ = trace.metric(np.concatenate(ours))
    known = actions.delta[np.concatenate(theirs)]
    sent = sent_actions(trace)
    index, near = actions.at(sent['target_ns'], tolerance_ns)
    sent_error, gripper = None, None
    if near.any():
        sent_error = error_by_axis(sent['delta'][near], actions.delta[index[near]])
        gripper = gripper_agreement(
            (sent['target_ns'][near], sent['gripper'][near]),
            (sent['target_ns'][near], actions.gripper[index[near]]), sent['epoch'][near])
    return {'chunk_elements': len(delta), 'inferences': len(ours),
            'error': error_by_axis(delta, known), 'periods': int(near.sum()),
            'sent_error': sent_error, 'gripper': gripper or {}}


def sent_actions(trace: Trace) -> dict[str, np.ndarray]:
    """Return the commands that moved, column by column; holds are left out."""
    moving = [(t, c) for t, c in trace.commands if c.hold.code is HoldReason.NONE]

    def column(values, dtype=float):
        return np.array(list(values), dtype)

    return {
        'time_ns': column((t for t, _ in moving), np.int64),
        'target_ns': column((c.target_time_ns for _, c in moving), np.int64),
        'observation_ns': column((c.observation_stamp_ns for _, c in moving), np.int64),
        'epoch': column((c.epoch for _, c in moving), np.int64),
        'delta': column(([*c.motion.translation_m, *c.motion.rotation_rad] for _, c in moving)
                        ).reshape(-1, 6),
        'gripper': column(c.motion.gripper for _, c in moving),
        'disagreement': column(c.disagreement for _, c in moving),
    }


def smoothness(trace: Trace) -> dict:
    """Return seam jumps, changes within a chunk, and jerk of what was sent.

    A seam is where two periods in a row come from different chunks. Jerk is the third difference
    of the commanded position over the control period, of at least three periods in a row.
    """
    sent = sent_actions(trace)
    period_s = trace.period_ns / 1e9
    targets, delta = sent['target_ns'], sent['delta']
    consecutive = (np.abs(np.diff(targets) - trace.period_ns) < trace.period_ns // 2) & (
        np.diff(sent['epoch']) == 0)
    change = np.diff(delta, axis=0)
    seam = np.diff(sent['observation_ns']) != 0
    result = {}
    kinds = (('translation', slice(0, 3), 'm'), ('rotation', slice(3, 6), 'rad'))
    for name, columns, unit in kinds:
        size = np.linalg.norm(change[:, columns], axis=1)
        both = consecutive[1:] & consecutive[:-1]
        jerk = np.linalg.norm(np.diff(change[:, columns], axis=0), axis=1)[both] / period_s**3
        result[name] = {
            'unit': unit,  # jerk: per s^3
            'seam_jump': spread_of(size[consecutive & seam]),
            'change_within_chunk': spread_of(size[consecutive & ~seam]),
            'jerk_rms': float(np.sqrt(np.mean(jerk**2))) if jerk.size else None,
            'jerk': spread_of(jerk),
        }
    return result


def chunk_disagreement(trace: Trace) -> np.ndarray:
    """Return for each chunk the RMS distance (action units, no gripper) to the one before it.

    Over the control periods that both predict; NaN where there are none.
    """
    result = np.full(len(trace.inferences), np.nan)
    for i in range(1, len(trace.inferences)):
        old, new = trace.inferences[i - 1], trace.inferences[i]
        shift = round((new.stamp_ns - old.stamp_ns) / trace.period_ns)
        overlap = min(len(old.actions) - shift, len(new.actions))
        if old.epoch == new.epoch and shift >= 0 and overlap > 0:
            gap = old.actions[shift:shift + overlap, :6] - new.actions[:overlap, :6]
            result[i] = math.sqrt(float(np.mean(gap**2)))
    return result


def summarise(trace: Trace, actions: Actions) -> dict:
    """Return everything about one run that does not depend on the speed of the machine."""
    sent = sent_actions(trace)
    holds: dict[str, int] = {}
    for _, command in trace.commands:
        if command.hold.code is not HoldReason.NONE:
            name = command.hold.code.name.lower()
            holds[name] = holds.get(name, 0) + 1
    inferences = trace.inferences
    return {
        'label': trace.label, 'method': trace.method, 'execution_mode': trace.execution_mode,
        'checkpoint': trace.description.checkpoint, 'sha256': trace.description.sha256,
        'trained': trace.description.trained, 'architecture': trace.description.architecture,
        'parameters': trace.description.parameters, 'dtype': trace.description.dtype,
        'optimisation': trace.description.optimisation,
        'preprocessing': trace.description.preprocessing,
        'inferences': len(inferences), 'commands': len(trace.commands),
        'actions_sent': len(sent['time_ns']), 'holds': dict(sorted(holds.items())),
        'actions': against_actions(trace, actions),
        'smoothness': smoothness(trace),
        'ensemble_disagreement': spread_of(sent['disagreement']),
        'chunk_disagreement': spread_of(chunk_disagreement(trace)),
        'tokens_total': trace.tokens_total,
        'tokens_kept': spread_of([i.tokens_kept for i in inferences]),
        'tokens_kept_by_camera': {
            camera: spread_of([int(np.unpackbits(i.kept[camera]).sum()) for i in inferences])
            for camera in trace.grids},
        'gflops': spread_of([i.flops / 1e9 for i in inferences]),
        'observation_age_s': spread_of([i.age_ns / 1e9 for i in inferences]),
        'age_at_actuation_s': spread_of((sent['time_ns'] - sent['observation_ns']) / 1e9),
        'camera_spread_s': spread_of([i.spread_ns / 1e9 for i in inferences]),
        'counts': trace.counts,
    }


def latency(trace: Trace) -> dict:
    """Return the wall times of the inferences on this machine, ms; they differ in each run."""
    stages = list(dict.fromkeys(s for i in trace.inferences for s in i.stage_ms))
    totals = np.array([sum(i.stage_ms.values()) for i in trace.inferences])
    return {
        'total': spread_of(totals),
        'stages': {s: spread_of([i.stage_ms.get(s, 0.0) for i in trace.inferences])
                   for s in stages},
        'within_33_ms': float(np.mean(totals <= FRAME_INTERVAL_MS)) if totals.size else None,
    }
