"""The charts of a replay: pauses, lines that cover each other, text that can be read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from vla_policy_node.replay import charts

# CSS pixels that a chart has of a window of 920 and of 400 px: the rest are margins.
SHOWN_PX = {charts.WIDE: 920 - 62, charts.NARROW: 400 - 34}
LEAST_PX = 11.0
ERROR = [{'axis': axis, 'kind': kind, 'count': 3, 'mean': 0.01, 'p95': 0.03}
         for kind, axes in (('translation', ('x', 'y', 'z')), ('rotation', ('rx', 'ry', 'rz')))
         for axis in axes]


def segments(values):
    """Return how many unbroken pieces a line has."""
    known = np.isfinite(values)
    return int(known[0]) + int((known[1:] & ~known[:-1]).sum())


def test_no_line_is_drawn_between_two_goals_or_over_a_pause():
    time_s = np.array([0.0, 0.1, 0.2, 0.3, 5.0, 5.1, 5.2, 5.3])
    epoch = np.array([1, 1, 1, 1, 1, 1, 2, 2])
    x, y = charts.with_pauses(time_s, epoch, np.arange(8.0))
    assert segments(y) == 3  # 4.7 s without anything, and another goal 0.1 s after the last
    assert np.isnan(x).sum() == 2
    np.testing.assert_array_equal(y[np.isfinite(y)], np.arange(8.0))


@given(st.lists(st.sampled_from([0.1, 0.1, 0.1, 2.0]), min_size=3, max_size=40))
def test_a_line_has_one_piece_more_than_there_are_pauses(steps):
    time_s = np.cumsum([0.0, *steps])
    _, y = charts.with_pauses(time_s, np.ones(len(time_s)), time_s, most_s=0.15)
    assert segments(y) == 1 + steps.count(2.0)


@pytest.mark.parametrize('count', [0, 1])
def test_a_line_of_nothing_or_one_point_has_no_pause(count):
    x, y = charts.with_pauses(np.zeros(count), np.ones(count), np.zeros(count))
    assert len(x) == len(y) == count


def test_a_line_on_another_one_is_thinner_so_both_are_seen():
    widths = [charts._RECORDED_WIDTH, *charts._WIDTHS]
    assert widths == sorted(set(widths), reverse=True)
    assert charts._DOTS[0] > charts._DOTS[1]


@pytest.mark.parametrize('page', SHOWN_PX)
def test_all_text_of_a_chart_can_be_read_on_its_page(page):
    run = {'label': 'random_tokens:count=8', 'actions': {'error': ERROR}}
    figure = charts.error({'a': run, 'b': run, 'difference': {'error': ERROR}}, page)
    charts.png(figure)
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text()]
    assert len(texts) > 12
    shrunk = SHOWN_PX[page] / page.width_in
    for text in texts:
        assert text.get_fontsize() / 72 * shrunk >= LEAST_PX, text.get_text()
        assert text.get_window_extent().x1 <= figure.bbox.width + 1, text.get_text()
