"""The filmstrip shows what happened, and claims no grasp that did not happen."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_node.drawing.filmstrip import Moment, filmstrip, pick_moments

OPEN_M, HELD_M = 0.08, 0.03


@dataclass(frozen=True)
class Selection:
    """The fields of a policy's token selection that a picture needs."""

    camera: str
    kept: np.ndarray
    crop: tuple = (0.0, 0.0, 1.0, 1.0)
    camera_transform: str = 'none'


def step(index, height_m, opening_m, closing, success=False):
    return {
        'time_s': index / 20,
        'position_m': (0.4, 0.0, height_m),
        'gripper_opening_m': opening_m,
        'gripper_closing': closing,
        'success': success,
    }


def pick_and_place(success=True):
    """Descend for 10 steps, close for 4, lift for 6, lower for 5, open for 4."""
    heights = np.concatenate(
        [
            np.linspace(0.3, 0.02, 10),
            np.full(4, 0.03),
            np.linspace(0.03, 0.25, 6),
            np.linspace(0.2, 0.05, 5),
            np.full(4, 0.05),
        ]
    )
    openings = np.concatenate(
        [
            np.full(10, OPEN_M),
            np.linspace(OPEN_M, HELD_M, 4),
            np.full(11, HELD_M),
            np.linspace(0.04, OPEN_M, 4),
        ]
    )
    closing = [False] * 10 + [True] * 15 + [False] * 4
    return [
        step(i, heights[i], openings[i], closing[i], success and i == len(heights) - 1)
        for i in range(len(heights))
    ]


def test_a_successful_episode_gets_its_four_events():
    assert pick_moments(pick_and_place()) == [
        ('approach', 9),
        ('grasp', 13),
        ('lift', 19),
        ('place', 27),
    ]


def test_a_failed_episode_is_described_without_claiming_a_grasp_or_a_placement():
    labels = [label for label, _ in pick_moments(pick_and_place(success=False))]
    assert labels == ['approach', 'closed', 'highest', 'opened']


@pytest.mark.parametrize('success', [False, True])
def test_an_episode_that_ends_with_the_gripper_closed_says_end(success):
    trace = pick_and_place()[:22]
    trace[-1]['success'] = success
    assert pick_moments(trace)[-1] == ('end', 21)


def test_a_short_wrong_closing_is_not_the_grasp():
    trace = pick_and_place()
    trace[3] = step(3, 0.2, OPEN_M, True)
    assert pick_moments(trace)[1] == ('grasp', 13)


@pytest.mark.parametrize('closing', [False, True])
def test_a_gripper_that_never_moved_gives_evenly_spaced_pictures(closing):
    trace = [step(i, 0.2, OPEN_M, closing) for i in range(31)]
    assert pick_moments(trace) == [('start', 0), ('early', 10), ('late', 20), ('end', 30)]


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 0.08), st.booleans(), st.booleans()), min_size=1
    )
)
def test_any_episode_gives_four_steps_of_it_in_the_order_of_time(rows):
    moments = pick_moments([step(i, *row) for i, row in enumerate(rows)])
    indices = [index for _, index in moments]
    assert len(moments) == 4
    assert indices == sorted(indices)
    assert indices[0] >= 0
    assert indices[-1] < len(rows)


def test_an_episode_without_steps_is_refused():
    with pytest.raises(ValueError, match='no steps'):
        pick_moments([])


def moment(label, shape=(64, 64)):
    images = {
        camera: np.random.default_rng(seed).integers(30, 256, (*shape, 3), np.uint8)
        for seed, camera in enumerate(('third_person', 'wrist'))
    }
    return Moment(label, images, [Selection('third_person', np.eye(16, dtype=bool))])


def test_every_moment_adds_the_same_width():
    widths = [filmstrip([moment('grasp')] * n, tile_px=64).shape[1] for n in (1, 2, 3)]
    assert widths[1] - widths[0] == widths[2] - widths[1] > 2 * 64


def test_further_moments_go_into_another_row_of_the_same_width():
    rows = [filmstrip([moment('grasp')] * n, tile_px=64, most_beside=2) for n in (2, 3, 4)]
    assert len({row.shape[1] for row in rows}) == 1
    assert 2 * rows[0].shape[0] == rows[1].shape[0] == rows[2].shape[0]
    np.testing.assert_array_equal(rows[1][:rows[0].shape[0]], rows[0])


def test_the_raw_pictures_are_unchanged_and_only_a_camera_with_a_selection_is_dimmed():
    one = moment('lift')
    strip = filmstrip([one], tile_px=64)
    views = np.lib.stride_tricks.sliding_window_view(strip, (64, 64, 3))[:, :, 0]

    def times_shown(image):
        corners = (views[..., 0, 0, :] == image[0, 0]).all(axis=-1)
        return sum((views[tuple(at)] == image).all() for at in np.argwhere(corners))

    assert times_shown(one.images['third_person']) == 1
    assert times_shown(one.images['wrist']) == 2


@settings(max_examples=10, deadline=None)
@given(st.integers(40, 160), st.integers(40, 160), st.integers(32, 240))
def test_a_picture_of_any_shape_keeps_its_aspect_ratio(height, width, tile_px):
    one = moment('lift', (height, width))
    other = moment('lift', (height, 2 * width))
    added_px = filmstrip([other], tile_px).shape[1] - filmstrip([one], tile_px).shape[1]
    assert abs(added_px - 2 * width * tile_px / height) <= 2


def test_a_title_goes_above_and_changes_nothing_below():
    plain, titled = filmstrip([moment('a')]), filmstrip([moment('a')], title='open the drawer')
    np.testing.assert_array_equal(titled[-plain.shape[0] :], plain)
    assert (titled[: -plain.shape[0]] < 128).any()


def test_a_filmstrip_of_nothing_is_refused():
    with pytest.raises(ValueError, match='at least one moment'):
        filmstrip([])
