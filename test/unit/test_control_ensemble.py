"""The two published ways of weighting overlapping chunks, against reference vectors."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_policy_node.control.ensemble import EnsembleSettings, age_weights, agreement_weights
from vla_policy_node.control.executors import TemporalEnsembleExecutor

DATA = Path(__file__).parents[1] / 'data' / 'ensemble'
ACT = np.load(DATA / 'act_ensemble.npz')
ADAPTIVE = np.load(DATA / 'adaptive_ensemble.npz')
PERIOD = 50_000_000


@pytest.mark.parametrize('case', range(5))
def test_act_matches_the_reference(case):
    chunks, queries = ACT[f'case{case}_chunks'], ACT[f'case{case}_query_steps']
    decay, expected = float(ACT[f'case{case}_k']), ACT[f'case{case}_out']
    for step, row in enumerate(expected):
        candidates = np.array(
            [c[step - q] for c, q in zip(chunks, queries, strict=True) if 0 <= step - q < len(c)]
        )
        assert len(candidates) == ACT[f'case{case}_num_candidates'][step]
        result = age_weights(len(candidates), decay) @ candidates
        np.testing.assert_allclose(result, row, rtol=0, atol=1e-12)


@pytest.mark.parametrize('case', range(4))
def test_adaptive_matches_the_reference(case):
    chunks, expected = ADAPTIVE[f'case{case}_chunks'], ADAPTIVE[f'case{case}_out']
    alpha, horizon = float(ADAPTIVE[f'case{case}_alpha']), int(ADAPTIVE[f'case{case}_horizon'])
    for step, row in enumerate(expected):
        kept = range(min(horizon, step + 1))
        candidates = np.array([chunks[step - age][age] for age in reversed(kept)])
        result = agreement_weights(candidates, alpha) @ candidates
        np.testing.assert_allclose(result, row, rtol=0, atol=1e-12)


@pytest.mark.parametrize('case', range(5))
def test_the_executor_averages_motion_by_act_and_never_the_gripper(case):
    chunks, queries = ACT[f'case{case}_chunks'], list(ACT[f'case{case}_query_steps'])
    expected, length = ACT[f'case{case}_out'], int(ACT[f'case{case}_chunk_len'])
    settings = EnsembleSettings(decay=float(ACT[f'case{case}_k']), horizon=length)
    executor = TemporalEnsembleExecutor(PERIOD, settings)
    newest = None
    for step, row in enumerate(expected):
        now = step * PERIOD
        if step in queries:
            newest = (step, chunks[queries.index(step)])
            executor.push(newest[1], now, epoch=0)
        result = executor.pop(now + PERIOD)
        np.testing.assert_allclose(result.action[:6], row[:6], rtol=0, atol=1e-12)
        assert result.action[6] == newest[1][step - newest[0]][6]
        assert np.isnan(result.disagreement) == (ACT[f'case{case}_num_candidates'][step] == 1)


@given(st.integers(1, 30), st.sampled_from([0.01, 0.0, -0.2, 0.5, 1e4, -1e4]))
def test_age_weights_order_is_oldest_first(count, decay):
    weights = age_weights(count, decay)
    assert weights.sum() == pytest.approx(1.0)
    if decay == 0.0:
        np.testing.assert_allclose(weights, 1.0 / count)
    elif decay > 0.0:
        assert (np.diff(weights) <= 0.0).all()
    else:
        assert (np.diff(weights) >= 0.0).all()


def test_agreement_weights_have_the_published_limits():
    rng = np.random.default_rng(0)
    candidates = rng.standard_normal((5, 6))
    np.testing.assert_allclose(agreement_weights(candidates, 0.0), 0.2)
    weights = agreement_weights(candidates, 0.1)
    assert weights.max() / weights.min() <= np.exp(0.2)
    np.testing.assert_allclose(agreement_weights(candidates * 3.0, 0.1), weights, rtol=1e-6)
    opposite = agreement_weights(np.array([-candidates[0], candidates[0]]), 5.0)
    assert opposite[0] / opposite[1] == pytest.approx(np.exp(-10.0), rel=1e-5)


def test_exact_zeros_are_predictions_not_gaps():
    executor = TemporalEnsembleExecutor(PERIOD, EnsembleSettings(decay=0.0))
    executor.push(np.zeros((4, 7)), 0, epoch=0)
    executor.push(np.ones((4, 7)), PERIOD, epoch=0)
    assert executor.pop(2 * PERIOD).action[0] == 0.5
    for weighting in ('act', 'adaptive'):
        settings = EnsembleSettings(weighting)
        np.testing.assert_allclose(settings.weights(np.zeros((3, 6))).sum(), 1.0)


def test_disagreement_is_the_rms_distance_to_the_average_without_the_gripper():
    executor = TemporalEnsembleExecutor(PERIOD, EnsembleSettings(decay=0.0))
    old, new = np.zeros((4, 7)), np.ones((4, 7))
    new[:, 6] = 100.0
    executor.push(old, 0, epoch=0)
    executor.push(new, PERIOD, epoch=0)
    assert executor.pop(2 * PERIOD).disagreement == pytest.approx(0.5)


def test_the_horizon_bounds_the_memory():
    executor = TemporalEnsembleExecutor(PERIOD, EnsembleSettings(decay=0.0, horizon=2))
    for step in range(50):
        executor.push(np.full((8, 7), float(step)), step * PERIOD, epoch=0)
    assert executor.pop(50 * PERIOD).action[0] == pytest.approx(48.5)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'weighting': 'mean'}, "'mean' is unknown"),
        ({'decay': float('nan')}, 'decay'),
        ({'alpha': float('inf')}, 'alpha'),
        ({'horizon': 0}, 'horizon'),
    ],
)
def test_unusable_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        EnsembleSettings(**changes)


def actions(rows):
    return arrays(float, st.tuples(rows, st.just(7)), elements=st.floats(-1, 1, width=32))


@given(actions(st.integers(1, 7)), st.floats(0, 10))
def test_the_newest_weighs_most_by_agreement(candidates, alpha):
    weights = agreement_weights(candidates, alpha)
    assert weights.sum() == pytest.approx(1)
    # Its cosine with itself is less than 1 by what keeps the cosine of zeros finite.
    square = candidates[-1] @ candidates[-1]
    missing = 1e-7 / (square + 1e-7) if square else 0.0
    assert weights[-1] >= weights.max() * np.exp(-alpha * missing) * (1 - 1e-9)


@given(actions(st.just(3)))
def test_a_horizon_of_one_is_the_newest_chunk_itself(chunk):
    executor = TemporalEnsembleExecutor(PERIOD, EnsembleSettings('adaptive', horizon=1))
    executor.push(np.ones((4, 7)), -PERIOD, epoch=0)
    executor.push(chunk, 0, epoch=0)
    step = executor.pop(2 * PERIOD)
    np.testing.assert_array_equal(step.action, chunk[1])
    assert np.isnan(step.disagreement)


@pytest.mark.parametrize('case', range(4))
def test_with_the_gripper_the_executor_is_the_adaptive_reference(case):
    alpha, horizon = float(ADAPTIVE[f'case{case}_alpha']), int(ADAPTIVE[f'case{case}_horizon'])
    executor = TemporalEnsembleExecutor(PERIOD, EnsembleSettings('cogact', 0.0, alpha, horizon))
    for step, row in enumerate(ADAPTIVE[f'case{case}_out']):
        executor.push(ADAPTIVE[f'case{case}_chunks'][step], step * PERIOD, epoch=0)
        action = executor.pop((step + 1) * PERIOD).action
        np.testing.assert_allclose(action, row, rtol=0, atol=1e-12)
