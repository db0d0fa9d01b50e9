"""Tokens and masks meet where the image is: by hand, as laws, and in the real world."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_node.evaluation.grounding import (
    PARTS,
    cells_on,
    count_kept,
    part_masks,
    shares,
    tokens_on_parts,
)
from vla_policy_node.policy.interface import CAMERAS, TokenSelection
from vla_policy_node.world.libero_world import LiberoWorld, tasks

WHOLE = (0.0, 0.0, 1.0, 1.0)


def mask(height, width, *pixels):
    result = np.zeros((height, width), bool)
    for row, column in pixels:
        result[row, column] = True
    return result


def test_a_token_needs_a_tenth_of_its_pixels():
    ten = mask(10, 10, (0, 0))  # 1 of 25 pixels of a cell
    assert not cells_on(ten, (2, 2), WHOLE).any()
    ten[0, :3] = True  # 3 of 25
    assert cells_on(ten, (2, 2), WHOLE).tolist() == [[True, False], [False, False]]


def test_what_lies_outside_of_the_crop_does_not_count():
    image = mask(8, 8, (0, 0), (1, 7), (2, 2))
    crop = (0.25, 0.25, 0.5, 0.5)  # rows and columns 2 to 5
    assert cells_on(image, (4, 4), crop).tolist() == mask(4, 4, (0, 0)).tolist()


@pytest.mark.parametrize(('transform', 'corner'), [
    ('none', (0, 0)), ('mirror_horizontal', (0, 3)), ('rotate_180', (3, 3)),
])
def test_the_cameras_transform_comes_before_the_crop(transform, corner):
    image = mask(4, 4, (0, 0))
    assert cells_on(image, (4, 4), WHOLE, transform).tolist() == mask(4, 4, corner).tolist()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.integers(1, 16),
       st.floats(0.05, 1.0))
def test_a_full_image_covers_every_token_that_has_a_pixel(height, width, rows, columns, side):
    crop = ((1 - side) / 2, (1 - side) / 2, side, side)
    covered = cells_on(np.ones((height, width), bool), (rows, columns), crop)
    assert covered.shape == (rows, columns)
    if side * height >= rows and side * width >= columns:
        assert covered.all()
    assert not cells_on(np.zeros((height, width), bool), (rows, columns), crop).any()


@given(st.integers(0, 2**16 - 1))
def test_keeping_everything_gives_each_part_its_share_of_the_image(bits):
    on = {part: np.array([(bits >> i) & 1 for i in range(16)], bool).reshape(1, 4, 4)
          for part in PARTS}
    counts = count_kept(np.ones((1, 4, 4), bool), on)
    for share in shares(counts).values():
        assert share['kept'] == share['image'] == pytest.approx(bits.bit_count() / 16)


def test_counts_by_hand():
    kept = mask(2, 2, (0, 0), (0, 1))[None]
    on = {part: mask(2, 2, (0, 0), (1, 1))[None] for part in PARTS}
    counts = count_kept(kept, on)
    assert counts['object'] == [1, 2]
    assert counts['all'] == [2, 4]
    assert shares(counts)['object'] == {'kept': 0.5, 'image': 0.5}


def test_the_world_shows_object_gripper_and_basket():
    world = LiberoWorld(tasks('libero_object')[0], 96)
    masks = part_masks(world)
    for part in PARTS:
        assert 20 < masks['third_person'][part].sum() < 96 * 96 / 4, part
    # The middle of the object is where the camera matrix says.
    point = world.camera_matrix('third_person') @ [*world.object_position(world.target), 1]
    column, row = (point[:2] / point[2]).astype(int)
    assert masks['third_person']['object'][row, column]
    selections = [
        TokenSelection(camera, np.ones((8, 8), bool), np.empty(0), WHOLE, 'none')
        for camera in CAMERAS
    ]
    on = tokens_on_parts(world, selections)
    assert on['object'].shape == (2, 8, 8)
    assert on['object'][0, row * 8 // 96, column * 8 // 96]
    world.close()
