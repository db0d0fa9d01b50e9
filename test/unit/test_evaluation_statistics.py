"""Intervals and paired tests agree with values worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from vla_policy_node.evaluation.statistics import compare, mcnemar_exact, wilson_interval

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
