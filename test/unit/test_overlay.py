"""Overlay geometry: a token's box is where its pixels came from, through every transform."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_node.drawing.overlay import caption, draw_overlay, highlight, token_boxes

SIDE = 0.9**0.5
CENTRE_CROP = ((1 - SIDE) / 2, (1 - SIDE) / 2, SIDE, SIDE)
WHOLE = (0.0, 0.0, 1.0, 1.0)
GRID = (16, 16)
TRANSFORMED = {
    'none': lambda image: image,
    'rotate_180': lambda image: image[::-1, ::-1],
    'mirror_horizontal': lambda image: image[:, ::-1],
}
SHAPES = [(256, 256), (480, 640), (224, 224), (720, 1280), (360, 200)]


def brightest_patch(image, transform):
    """Preprocess as OpenVLA-OFT does and return (row, column) of the brightest 14 px patch."""
    resized = cv2.resize(TRANSFORMED[transform](image), (224, 224), interpolation=cv2.INTER_AREA)
    # 0.9 of the area around the centre, sampled from corner to corner of the cropped box
    source = (223 * (1 - SIDE) / 2 + SIDE * np.arange(224)).astype(np.float32)
    columns, rows = np.meshgrid(source, source)
    cropped = cv2.remap(resized, columns, rows, cv2.INTER_LINEAR)
    patches = cropped.reshape(16, 14, 16, 14).sum(axis=(1, 3))
    return np.unravel_index(patches.argmax(), patches.shape)


def marked(shape, x, y):
    """Return a black grey-level image with one bright disc, big enough to survive resizing."""
    image = np.zeros(shape, np.float32)
    cv2.circle(image, (x, y), max(2, min(shape) // 80), 255.0, cv2.FILLED)
    return image


def assert_box_holds_the_marker(shape, transform, x, y):
    row, column = brightest_patch(marked(shape, x, y), transform)
    x0, y0, x1, y1 = token_boxes(GRID, CENTRE_CROP, transform, shape)[row, column]
    assert x0 - (x1 - x0) <= x <= x1 + (x1 - x0)
    assert y0 - (y1 - y0) <= y <= y1 + (y1 - y0)


@pytest.mark.parametrize('transform', TRANSFORMED)
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(
    ('u', 'v'), [(0.04, 0.04), (0.96, 0.04), (0.04, 0.96), (0.96, 0.96), (0.3, 0.8)]
)
def test_a_marker_is_found_in_the_box_of_its_token(shape, transform, u, v):
    assert_box_holds_the_marker(shape, transform, int(u * shape[1]), int(v * shape[0]))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    transform=st.sampled_from(sorted(TRANSFORMED)),
    u=st.floats(0.03, 0.97),
    v=st.floats(0.03, 0.97),
)
def test_a_marker_anywhere_is_found_in_the_box_of_its_token(shape, transform, u, v):
    assert_box_holds_the_marker(shape, transform, int(u * shape[1]), int(v * shape[0]))


@given(
    rows=st.integers(1, 32),
    columns=st.integers(1, 32),
    transform=st.sampled_from(sorted(TRANSFORMED)),
    height=st.integers(1, 720),
    width=st.integers(1, 1280),
)
def test_boxes_tile_the_image_when_nothing_is_cropped(rows, columns, transform, height, width):
    boxes = token_boxes((rows, columns), WHOLE, transform, (height, width, 3))
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    assert areas.min() > 0
    assert areas.sum() == pytest.approx(height * width)
    assert boxes.min() >= -1e-9
    assert boxes[..., 2].max() <= width + 1e-9
    assert boxes[..., 3].max() <= height + 1e-9


@pytest.mark.parametrize('transform', TRANSFORMED)
@pytest.mark.parametrize('shape', [(256, 256), (480, 640)])
def test_exactly_the_pixels_in_a_kept_box_stay_clear(shape, transform):
    image = np.full((*shape, 3), 200, np.uint8)
    kept = np.zeros(GRID, bool)
    kept[3:6, 9:13] = True
    picture = highlight(image, kept, CENTRE_CROP, transform)

    boxes = token_boxes(GRID, CENTRE_CROP, transform, shape)[kept]
    x0, y0 = boxes[:, :2].min(axis=0)
    x1, y1 = boxes[:, 2:].max(axis=0)
    x, y = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    border_px = 3  # the outline covers it
    well_in = (x > x0 + border_px) & (x < x1 - border_px)
    well_in &= (y > y0 + border_px) & (y < y1 - border_px)
    well_out = (x < x0 - border_px) | (x > x1 + border_px)
    well_out |= (y < y0 - border_px) | (y > y1 + border_px)
    assert (picture[well_in] == 200).all()
    frame = (picture == (168, 176, 190)).all(axis=-1)
    assert picture[well_out & ~frame].max() < 0.4 * 200


def test_what_the_crop_cut_away_is_grey_and_darker_than_a_dropped_token():
    image = np.full((480, 640, 3), (220, 120, 40), np.uint8)
    picture = highlight(image, np.zeros(GRID, bool), CENTRE_CROP, 'none')
    outside, dropped = picture[2, 2].astype(int), picture[240, 320].astype(int)
    assert np.ptp(outside) == 0
    assert np.ptp(dropped) > 20
    assert outside.sum() < dropped.sum()


def test_scores_mark_only_kept_tokens_and_grow_with_the_score():
    image = np.full((480, 480, 3), 100, np.uint8)
    kept = np.zeros(GRID, bool)
    kept[4, 4] = kept[8, 8] = True
    scores = np.full(GRID, 9.0, np.float32)
    scores[4, 4] = 2.0
    changed = (
        highlight(image, kept, WHOLE, 'none', scores) != highlight(image, kept, WHOLE, 'none')
    ).any(axis=-1)
    per_token = changed.reshape(16, 30, 16, 30).sum(axis=(1, 3))
    assert 0 < per_token[4, 4] < per_token[8, 8]
    assert per_token.sum() == per_token[4, 4] + per_token[8, 8]


@pytest.mark.parametrize('scores', [None, np.empty((0, 0), np.float32), np.zeros(GRID)])
def test_a_method_without_scores_draws_no_dots(scores):
    image = np.full((256, 256, 3), 100, np.uint8)
    kept = np.ones(GRID, bool)
    np.testing.assert_array_equal(
        highlight(image, kept, WHOLE, 'none', scores), highlight(image, kept, WHOLE, 'none')
    )


@pytest.mark.parametrize(('shape', 'width'), [((256, 256), 512), ((480, 640), 640)])
def test_a_small_image_is_enlarged_and_the_caption_goes_below(shape, width):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    before = image.copy()
    picture = draw_overlay(image, np.ones(GRID, bool), WHOLE, 'none', ['one', 'two'])
    assert picture.dtype == np.uint8
    assert picture.shape[1] == width
    assert picture.shape[0] > width * shape[0] // shape[1]
    np.testing.assert_array_equal(image, before)


def test_the_legend_is_below_the_picture_and_speaks_of_dots_only_where_there_are_some():
    image = np.full((480, 640, 3), 100, np.uint8)
    kept, scores = np.eye(16, dtype=bool), np.ones(GRID, np.float32)
    plain, dotted = (draw_overlay(image, kept, WHOLE, 'none', ['one'], s) for s in (None, scores))
    np.testing.assert_array_equal(dotted[:480], highlight(image, kept, WHOLE, 'none', scores))
    np.testing.assert_array_equal(plain[:480], highlight(image, kept, WHOLE, 'none'))
    assert plain.shape == dotted.shape
    signs = [(np.diff((row == (64, 232, 190)).all(axis=-1).any(axis=0).astype(int)) == 1).sum()
             for row in (plain[-40:], dotted[-40:])]  # runs of columns in the colour of kept
    assert signs[1] > signs[0] > 0


def test_a_view_with_reversed_axes_can_be_drawn():
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    kept = np.eye(16, dtype=bool)
    np.testing.assert_array_equal(
        highlight(image[::-1, ::-1], kept, CENTRE_CROP, 'rotate_180'),
        highlight(image[::-1, ::-1].copy(), kept, CENTRE_CROP, 'rotate_180'),
    )


def test_the_caption_tells_camera_count_ratio_method_and_latency():
    kept = np.zeros(GRID, bool)
    kept[:4] = True
    assert caption('wrist', 'lightvla', kept, 41.26, 'open the drawer') == [
        'wrist   64 of 256 tokens (25 %)',
        'lightvla   41 ms   "open the drawer"',
    ]


def test_a_long_caption_or_one_in_another_script_still_fits():
    image = np.zeros((240, 240, 3), np.uint8)
    lines = ['wrist', 'Öffne die Schublade ' * 20]
    picture = draw_overlay(image, np.ones(GRID, bool), WHOLE, 'none', lines)
    assert (picture[-30:, -8:] == picture[-1, -1]).all()


def test_an_unknown_transform_or_an_empty_crop_is_refused():
    image = np.zeros((64, 64, 3), np.uint8)
    kept = np.ones(GRID, bool)
    with pytest.raises(ValueError, match=r"'flip' is unknown; use one of none, rotate_180"):
        highlight(image, kept, WHOLE, 'flip')
    with pytest.raises(ValueError, match='positive width and height'):
        highlight(image, kept, (0.0, 0.0, 0.0, 1.0), 'none')
