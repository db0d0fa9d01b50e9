"""Turns rows of episodes into the document that `vla eval --json` writes."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from vla_policy_node import families
from vla_policy_node.checkpoints.fingerprint import fingerprint
from vla_policy_node.common.code_version import date_and_code
from vla_policy_node.common.machine import processor_name
from vla_policy_node.control.latency import percentiles
from vla_policy_node.evaluation.grounding import shares
from vla_policy_node.evaluation.plan import Plan
from vla_policy_node.evaluation.progress import FAILURES, PHASES
from vla_policy_node.evaluation.statistics import (
    clustered_interval,
    compare,
    holm,
    wilson_interval,
)

_PACKAGES = ('torch', 'numpy', 'mujoco', 'robosuite')


def summarise(plan: Plan, rows: Sequence[Mapping], workers: int) -> dict:
    """Return the document; all its numbers are finite, missing ones are None.

    success_rate and episodes at the top are those of the first method. rows: one per method and
    task. totals: one per method. paired: every further method against the first. latency_ms:
    percentiles over all inferences, by stage and in 'total'.
    """
    labels = [contender.label for contender in plan.contenders]
    by_method = {label: [row for row in rows if row['method'] == label] for label in labels}
    totals = [{'method': label, **_figures(by_method[label])} for label in labels]
    first = totals[0]
    return {
        'success_rate': first['success_rate'],
        'episodes': first['episodes'],
        'checkpoint': describe_policy(plan),
        'suite': plan.suite,
        'layout': plan.layout,
        'control': plan.control,
        'split': plan.split,
        'seed': plan.seed,
        'execution_mode': plan.parameters.execution_mode,
        'actions_per_chunk': plan.execute or None,
        'dtype': plan.parameters.dtype,
        'device': plan.parameters.device,
        'rows': [
            {
                'method': label,
                'task_id': task,
                'instruction': chosen[0]['instruction'],
                **_figures(chosen),
            }
            for label in labels for task in plan.task_ids
            if (chosen := [row for row in by_method[label] if row['task_id'] == task])
        ],
        'totals': totals,
        'paired': _pairs(labels, by_method),
        'machine': describe_machine(plan.threads, workers),
    }


def _figures(rows: Sequence[Mapping]) -> dict:
    """Return success, cost and failures of some episodes of one method."""
    successes, episodes = sum(row['success'] for row in rows), len(rows)
    low, high = wilson_interval(successes, episodes)
    tokens = [count for row in rows for count in row['tokens']]
    phases = [phase for row in rows for phase in row['phases']]
    failures = Counter(row['failure'] for row in rows if not row['success'])
    return {
        'successes': successes,
        'episodes': episodes,
        'success_rate': successes / episodes if episodes else None,
        'wilson_low': low,
        'wilson_high': high,
        'steps': _mean([row['steps'] for row in rows]),
        'inferences': len(tokens),
        'tokens': _mean(tokens),
        'tokens_total': max((row['tokens_total'] for row in rows), default=0),
        'tokens_by_phase': {
            phase: _mean([count for count, when in zip(tokens, phases, strict=True)
                          if when == phase])
            for phase in PHASES
        },
        'flops': _mean([count for row in rows for count in row['flops']]),
        'layers': _mean([count for row in rows for count in row.get('layers', ())]),
        'reused': _mean([again for row in rows for again in row.get('reused', ())]),
        'latency_ms': _latency(rows),
        'failures': {name: failures[name] for name in FAILURES if failures[name]},
        **_grounding(rows),
    }


def _latency(rows: Sequence[Mapping]) -> dict[str, dict[str, float]]:
    stages = dict.fromkeys(stage for row in rows for stage in row['stage_ms'])
    times = {
        stage: np.concatenate([row['stage_ms'].get(stage, []) for row in rows])
        for stage in stages
    }
    if times:
        times['total'] = np.concatenate([
            np.sum(list(row['stage_ms'].values()), axis=0) for row in rows if row['stage_ms']])
    return {
        stage: {name: round(value, 3) for name, value in percentiles(values).items()
                if name in ('p50', 'p95')}
        for stage, values in times.items() if len(values)
    }


def _grounding(rows: Sequence[Mapping]) -> dict:
    grounded = [row['grounding'] for row in rows if 'grounding' in row]
    if not grounded:
        return {}
    return {'grounding': shares({
        part: np.sum([counts[part] for counts in grounded], axis=0).tolist()
        for part in grounded[0]
    })}


def _pairs(labels: Sequence[str], by_method: Mapping[str, Sequence[Mapping]]) -> list[dict]:
    """Compare every further method with the first, on the episodes that both ran."""
    outcomes = {
        label: {(row['task_id'], row['episode']): row['success'] for row in rows}
        for label, rows in by_method.items()}
    first, *others = labels
    compared = [compare(outcomes[first], outcomes[label]) for label in others]
    adjusted = holm([paired.p_value for paired in compared])
    return [
        {
            'first': first,
            'second': label,
            'episodes': paired.episodes,
            'both': paired.both,
            'only_first': paired.only_first,
            'only_second': paired.only_second,
            'neither': paired.neither,
            'difference': _finite(paired.difference),
            'interval': list(paired.interval),
            'interval_of_tasks': list(clustered_interval(outcomes[first], outcomes[label])),
            'verdict': paired.verdict,
            'p_value': paired.p_value,
            'p_holm': p_holm,
        }
        for label, paired, p_holm in zip(others, compared, adjusted, strict=True)]


def layouts_digest(rows: Sequence[Mapping]) -> str:
    """sha256 over all layouts of some episodes, in order: other digits, other layouts."""
    layouts = {(row['task_id'], row['episode']): row['layout'] for row in rows}
    return hashlib.sha256('\n'.join(layouts[key] for key in sorted(layouts)).encode()).hexdigest()


def describe_policy(plan: Plan) -> dict:
    """Return the identity of the checkpoint that was evaluated."""
    directory = Path(plan.parameters.checkpoint)
    config = families.read_model_config(directory)
    return {
        'name': Path(plan.checkpoint).name,
        'sha256': fingerprint(directory),
        'trained': config.trained,
        'architecture': config.architecture,
        'chunk_length': config.chunk_length,
    }


def describe_machine(threads: int, workers: int) -> dict:
    """Return processor, versions, day and code."""
    return {
        **date_and_code(),
        'processor': processor_name(),
        'cores': os.cpu_count(),
        'workers': workers,
        'threads_per_worker': threads,
        'python': platform.python_version(),
        'versions': {name: version(name) for name in _PACKAGES},
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
