"""Rows at a constant rate take the newest sample that is not later than themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_node.replay.bag import BagError
from vla_policy_node.replay.bag_summary import RecordedGoal
from vla_policy_node.replay.row_times import Nearest, Newest, RowTimes, runs

SECOND = 1_000_000_000
STAMPS = st.lists(st.integers(-SECOND, 3 * SECOND), max_size=30)


def grid(fps=10, seconds=2.0):
    return RowTimes([RecordedGoal('go', 0, round(seconds * SECOND))], fps)


@given(STAMPS)
def test_each_row_has_the_newest_sample_that_is_not_later(stamps):
    rows, kept = grid(), Newest(grid(), 1)
    for number, stamp in enumerate(stamps):
        kept.put(stamp, number)
    ages, values = kept.ages_and_values()
    for row, time_ns in enumerate(rows.times_ns):
        there = [stamp for stamp in stamps if stamp <= time_ns]
        if not there:
            assert ages[row] == np.iinfo(np.int64).max
            continue
        assert ages[row] == time_ns - max(there)
        assert stamps[int(values[row, 0])] == max(there)


@given(STAMPS)
def test_a_command_belongs_to_the_row_that_it_is_nearest_to(stamps):
    rows, kept = grid(), Nearest(grid(), 1)
    for stamp in stamps:
        kept.put(stamp, np.array([stamp]))
    near = kept.near(SECOND // 20)
    for row, time_ns in enumerate(rows.times_ns):
        apart = [abs(stamp - time_ns) for stamp in stamps]
        assert near[row] == (min(apart, default=SECOND) <= SECOND // 20)
        if near[row]:
            assert abs(kept.values[row, 0] - time_ns) == min(apart)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1))))
def test_runs_cover_the_valid_rows_and_stay_within_a_goal(rows):
    valid = np.array([row for row, _ in rows], bool)
    goal = np.cumsum([turn for _, turn in rows]) if rows else np.empty(0, int)
    covered = np.zeros(len(rows), bool)
    for first, end in runs(valid, goal):
        assert len({*goal[first:end]}) == 1 and not covered[first:end].any()
        covered[first:end] = True
    np.testing.assert_array_equal(covered, valid)


def test_goals_have_rows_of_their_own_at_exact_times():
    found = RowTimes([RecordedGoal('a', 5, 5 + SECOND),
                      RecordedGoal('b', 2 * SECOND, 2 * SECOND)], 3)
    assert found.times_ns.tolist() == [5, 5 + SECOND // 3, 5 + 2 * SECOND // 3, 5 + SECOND,
                                       2 * SECOND]
    assert found.goal.tolist() == [0, 0, 0, 0, 1]


def test_a_goal_of_endless_stamps_takes_no_memory():
    with pytest.raises(BagError, match='more than 10,000,000 rows'):
        grid(seconds=1e9)
