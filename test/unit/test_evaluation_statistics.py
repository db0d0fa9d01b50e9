"""Intervals and paired tests agree with values worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from vla_policy_node.evaluation.statistics import (
    Paired,
    clustered_interval,
    compare,
    holm,
    mcnemar_exact,
    wilson_interval,
)

fours = st.tuples(*[st.integers(0, 120)] * 4)
counts = st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(('successes', 'episodes', 'low', 'high'), [
    (5, 10, 0.236593, 0.763407),  # 0.5 +- 1.96 sqrt(0.025 + 0.0096) / 1.3842, by hand
    (0, 10, 0.0, 0.277533),  # 3.8415 / 13.8415
    (10, 10, 0.722467, 1.0),
    (1, 1, 0.206543, 1.0),
    (170, 200, 0.793942, 0.892860),
])
def test_wilson_by_hand(successes, episodes, low, high):
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=1e-5)


def test_nothing_is_known_without_episodes():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize('pair', [(-1, 5), (6, 5)])
def test_impossible_counts_are_refused(pair):
    with pytest.raises(ValueError, match='cannot be'):
        wilson_interval(*pair)


@given(counts)
def test_wilson_is_scipys_and_holds_the_rate(count):
    successes, episodes = count
    low, high = wilson_interval(successes, episodes)
    assert 0 <= low <= high <= 1
    if episodes:
        assert low <= successes / episodes <= high
        reference = binomtest(successes, episodes).proportion_ci(0.95, 'wilson')
        assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-12)


@given(counts)
def test_wilson_of_failures_is_the_mirror_image(count):
    successes, episodes = count
    low, high = wilson_interval(successes, episodes)
    mirrored = wilson_interval(episodes - successes, episodes)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(('b', 'c', 'p'), [
    (0, 0, 1.0),
    (1, 0, 1.0),
    (0, 5, 2 / 2**5),
    (1, 7, 2 * (1 + 8) / 2**8),
    (3, 3, 1.0),
])
def test_mcnemar_by_hand(b, c, p):
    assert mcnemar_exact(b, c) == pytest.approx(p)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_does_not_care_which_is_first(b, c):
    assert mcnemar_exact(b, c) == pytest.approx(mcnemar_exact(c, b))
    assert 0 < mcnemar_exact(b, c) <= 1 + 1e-12


def test_only_episodes_that_both_ran_are_compared():
    first = {0: True, 1: True, 2: False, 3: True}
    second = {0: True, 1: False, 2: False, 4: True}
    paired = compare(first, second)
    assert (paired.both, paired.only_first, paired.only_second, paired.neither) == (1, 1, 0, 1)
    assert paired.episodes == 3
    assert paired.difference == pytest.approx(-1 / 3)


def test_nothing_shared():
    paired = compare({}, {1: True})
    assert paired.p_value == 1.0
    assert math.isnan(paired.difference)


@given(st.dictionaries(st.integers(0, 50), st.tuples(st.booleans(), st.booleans())))
def test_difference_is_that_of_the_rates(episodes):
    first = {key: value[0] for key, value in episodes.items()}
    second = {key: value[1] for key, value in episodes.items()}
    paired = compare(first, second)
    assert paired.episodes == len(episodes)
    if episodes:
        rates = [sum(side.values()) / len(episodes) for side in (first, second)]
        assert paired.difference == pytest.approx(rates[1] - rates[0])


def paired_of(both, only_first, only_second, neither):
    return Paired(both, only_first, only_second, neither,
                  mcnemar_exact(only_first, only_second))


@given(fours)
def test_the_interval_of_a_difference_holds_it_and_turns_round_with_the_methods(four):
    both, b, c, neither = four
    paired, turned = paired_of(both, b, c, neither), paired_of(both, c, b, neither)
    low, high = paired.interval
    assert turned.interval == pytest.approx((-high, -low), abs=1e-12)
    if paired.episodes:
        assert -1 - 1e-12 <= low <= paired.difference <= high <= 1 + 1e-12


def test_without_correlation_it_is_newcombes_interval_of_independent_rates():
    paired = paired_of(both=48, only_first=32, only_second=12, neither=8)
    assert paired._correlation == 0
    (l1, u1), (l2, u2) = wilson_interval(80, 100), wilson_interval(60, 100)
    below, above = math.hypot(0.6 - l2, u1 - 0.8), math.hypot(u2 - 0.6, 0.8 - l1)
    assert paired.interval == pytest.approx((-0.2 - below, -0.2 + above))


@pytest.mark.parametrize('rates', [
    (0.80, 0.07, 0.07, 0.06), (0.80, 0.10, 0.04, 0.06), (0.45, 0.1, 0.1, 0.35)])
def test_the_interval_holds_the_truth_in_95_of_100_experiments(rates):
    rng = np.random.default_rng(0)
    held = 0
    for drawn in rng.multinomial(200, rates, 2000):
        low, high = paired_of(*map(int, drawn)).interval
        held += low <= rates[2] - rates[1] <= high
    assert 0.94 <= held / 2000 <= 0.98


@pytest.mark.parametrize(('four', 'verdict'), [
    ((100, 0, 30, 70), 'better'),
    ((100, 30, 0, 70), 'worse'),
    ((180, 2, 2, 16), 'not worse by 5 points'),
    ((168, 12, 7, 13), 'undecided'),
    ((0, 0, 0, 0), 'undecided'),
])
def test_a_verdict_says_no_more_than_the_interval(four, verdict):
    assert paired_of(*four).verdict == verdict


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_is_between_no_correction_and_bonferronis(p_values):
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p) + 1e-12
    assert np.array_equal(
        np.argsort(p_values, kind='stable'),
        np.lexsort((np.arange(len(p_values)), p_values, adjusted)))


def test_an_interval_of_tasks_is_wider_where_one_task_makes_the_difference():
    episodes = [(task, episode) for task in range(10) for episode in range(20)]
    dense = dict.fromkeys(episodes, True)
    one_task = {(task, episode): task != 0 for task, episode in episodes}
    everywhere = {(task, episode): episode < 18 for task, episode in episodes}
    narrow, wide = (clustered_interval(dense, other) for other in (everywhere, one_task))
    assert narrow == pytest.approx((-0.1, -0.1))
    assert wide[0] <= -0.2 and wide[1] == 0
    assert clustered_interval(dense, {(0, 1): True}) == (-1.0, 1.0)
