"""Statistics as LeRobot computes them, and the laws of merging them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_policy_node.lerobot import moments

PACK = Path(__file__).parents[1] / 'data' / 'lerobot_v3'
# Relative, as the pack's README asks. With the numpy of the pack it is 1e-15; numpy 1 has the
# edges of histograms in float64.
TOLERANCE = 2e-5
NUMBERS = st.floats(-1e3, 1e3, allow_nan=False, width=32)
ROWS = arrays(np.float32, st.tuples(st.integers(1, 24), st.just(2)), elements=NUMBERS)


def cut_up(rows, cuts):
    return np.split(rows, sorted(cut for cut in cuts if cut < len(rows)))


EPISODES = st.builds(cut_up, ROWS, st.sets(st.integers(1, 23), max_size=4))


@pytest.mark.parametrize('kind', ['video', 'image'])
def test_the_statistics_of_a_data_set_are_lerobots(kind):
    stats = json.loads((PACK / f'dataset_{kind}' / 'meta' / 'stats.json').read_text())
    source = np.load(PACK / f'source_{kind}.npz')
    keys = {name.partition('__')[2] for name in source}
    for key in keys:
        parts = [described(source[name]) for name in sorted(source) if name.endswith(f'__{key}')]
        for name, value in moments.merge(parts).items():
            expected = np.array(stats[key][name])
            assert value.shape == expected.shape
            np.testing.assert_allclose(value, expected, rtol=TOLERANCE, atol=1e-7,
                                       err_msg=f'{key} {name}')


def described(values):
    if values.ndim < 4:
        return moments.describe(values)
    return moments.describe_pictures(
        [moments.thinned(values[row]) for row in moments.sampled(len(values))])


@given(EPISODES)
def test_a_merge_has_the_bounds_the_mean_and_the_count_of_all_rows(episodes):
    merged, rows = moments.merge([*map(moments.describe, episodes)]), np.concatenate(episodes)
    np.testing.assert_array_equal(merged['min'], rows.min(0))
    np.testing.assert_array_equal(merged['max'], rows.max(0))
    np.testing.assert_allclose(merged['mean'], rows.mean(0, np.float64), rtol=1e-4, atol=1e-2)
    assert merged['count'] == len(rows)


@given(EPISODES, st.integers(0, 4))
def test_it_does_not_matter_in_which_groups_parts_are_merged(episodes, cut):
    parts = [{name: value.astype(np.float64) for name, value in moments.describe(rows).items()}
             for rows in episodes]
    groups = [group for group in (parts[:cut], parts[cut:]) if group]
    whole, in_steps = moments.merge(parts), moments.merge([*map(moments.merge, groups)])
    for name in moments.NAMES:
        np.testing.assert_allclose(in_steps[name], whole[name], rtol=1e-9, atol=1e-6)


@given(EPISODES)
def test_the_order_of_parts_does_not_matter_and_one_part_is_itself(episodes):
    parts = [*map(moments.describe, episodes)]
    forth, back = moments.merge(parts), moments.merge(parts[::-1])
    for name in moments.NAMES:
        np.testing.assert_allclose(back[name], forth[name], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(moments.merge(parts[:1])[name], parts[0][name], rtol=1e-6)


@given(arrays(np.float32, st.tuples(st.integers(2, 50), st.just(1)), elements=NUMBERS))
def test_quantiles_ascend_within_the_bounds(rows):
    found = moments.describe(rows)
    ladder = np.concatenate([found['min'], *(found[name] for name in moments.QUANTILES),
                             found['max']])
    assert (np.diff(ladder) >= -1e-3).all()


@given(arrays(np.float64, st.integers(2, 50), elements=st.floats(-1e3, 1e3)))
def test_quantiles_are_within_a_bin_of_the_row_of_that_rank(column):
    found = moments.describe(column)
    bin_width = np.ptp(column) / 5000
    for name, share in moments.QUANTILES.items():
        row = np.sort(column)[math.ceil(share * len(column)) - 1]
        assert abs(found[name][0] - row) <= bin_width + 1e-9
    assert found['mean'][0] == pytest.approx(math.fsum(column) / len(column), abs=1e-9)
    assert found['std'][0] == pytest.approx(np.std(column), abs=1e-4)


def test_the_standard_deviation_loses_digits_in_the_type_of_the_data():
    far = (10_000 + np.random.default_rng(0).normal(size=(100, 1))).astype(np.float32)
    assert abs(moments.describe(far)['std'] - far.astype(float).std()) > 0.1
    assert moments.describe(far.astype(float))['std'] == pytest.approx(far.astype(float).std())


@pytest.mark.parametrize(('length', 'count'), [(1, 1), (99, 99), (101, 100), (1000, 177),
                                               (10_000, 1000), (10**6, 10_000)])
def test_as_many_pictures_count_as_lerobot_takes(length, count):
    chosen = moments.sampled(length)
    assert len(chosen) == count and chosen[0] == 0 and chosen[-1] == length - 1


@pytest.mark.parametrize(('shape', 'left'), [
    ((299, 200), (299, 200)), ((300, 10), (150, 5)), ((480, 640), (120, 160))])
def test_large_pictures_are_thinned(shape, left):
    assert moments.thinned(np.zeros((*shape, 3), np.uint8)).shape == (*left, 3)
