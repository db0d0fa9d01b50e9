"""Draws a trial from case number and seed: setup, faults and when they happen."""

import numpy as np

from vla_policy_node.bench.faults import (  # noqa: F401 - they register
    kinds_content,
    kinds_node,
    kinds_timing,
)
from vla_policy_node.bench.faults.kinds import KINDS, pick
from vla_policy_node.bench.faults.records import TimeSpan
from vla_policy_node.bench.faults.trial import Fault
from vla_policy_node.bench.faults.world import Setup

SECOND_FAULT_SHARE = 0.25
START_M = (0.0, 0.0, 0.5)
# The arm meets its walls within seconds.
_REACH_M = 0.12
_EVERYWHERE = {
    'workspace_min_m': tuple(x - _REACH_M for x in START_M),
    'workspace_max_m': tuple(x + _REACH_M for x in START_M),
}
RECOVER_AFTER_S, RECOVERS_WITHIN_S = 0.6, 1.0


def kind_of(case: int) -> str:
    """Return the fault that a case is about; all kinds take turns."""
    names = sorted(KINDS)
    return names[case % len(names)]


def draw(case: int, seed: int) -> tuple[Setup, list[Fault], np.random.Generator, float]:
    """Return setup, faults, the generator of all that follows, and when all is well again (s)."""
    rng = np.random.default_rng([seed, case])
    setup = _draw_setup(rng)
    names = [kind_of(case)]
    if rng.random() < SECOND_FAULT_SHARE:
        names.append(pick(rng, tuple(sorted(KINDS))))
    faults = []
    for name in names:
        from_s = rng.uniform(0.3, 1.0)
        faults.append(KINDS[name](rng, TimeSpan(from_s, from_s + rng.uniform(0.05, 1.2))))
    over_s = max(fault.span.until_s + fault.lingers_s for fault in faults)
    return setup, faults, rng, over_s + RECOVER_AFTER_S


def draw_fault(kind: str, case: int, seed: int, from_s: float = 0.0) -> Fault:
    """Return the one fault of a case on a running node, which begins at a time (s)."""
    rng = np.random.default_rng([seed, case])
    return KINDS[kind](rng, TimeSpan(from_s, from_s + rng.uniform(0.1, 1.2)))


def _draw_setup(rng: np.random.Generator) -> Setup:
    parameters = {
        'checkpoint': 'none',
        'control_rate_hz': pick(rng, (10.0, 20.0, 20.0, 20.0, 30.0)),
        'execution_mode': pick(rng, ('sync', 'async', 'temporal_ensemble')),
        'ensemble_weighting': pick(rng, ('act', 'adaptive', 'cogact')),
        'rotation_form': pick(rng, ('axis_angle', 'euler_xyz')),
        'input_timeout_s': pick(rng, (0.0, 0.5, 2.0)),
        'max_age_s': 0.3,
        **_EVERYWHERE,
    }
    return Setup(
        parameters=parameters, chunk_length=pick(rng, (8, 8, 10, 16)),
        latency_s=pick(rng, (0.005, 0.03, 0.1)), camera_hz=pick(rng, (15.0, 20.0, 30.0)),
        state_hz=pick(rng, (20.0, 30.0)), transport_s=rng.uniform(0.0, 0.02),
        lag_s=pick(rng, (0.0, 0.02, 0.05)), motion=pick(rng, ('calm', 'push', 'zigzag', 'random')),
        clock_start_s=pick(rng, (1_000.0, 1_700_000_000.0)), start_m=START_M,
        goal_at_s=rng.uniform(0.05, 0.25), simulated=rng.random() < 0.25)
