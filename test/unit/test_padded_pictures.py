"""Pictures fitted into a square as openpi and LeRobot do it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_node.encoding.padded import (
    PADDINGS,
    PaddedPreprocessor,
    fit,
    resize_with_padding,
)

DATA = Path(__file__).parents[1] / 'data' / 'values'
PICTURES = dict(np.load(DATA / 'preprocess.npz'))
SMOLVLA = dict(np.load(DATA / 'resize_pad.npz'))
SIDE = int(PICTURES['size'])
sizes = st.tuples(st.integers(1, 60), st.integers(1, 60))


@pytest.mark.parametrize('index', [0, 3, 4])
def test_lerobots_pictures_are_those_that_it_makes(index):
    made = PaddedPreprocessor('lerobot', SIDE)(PICTURES[f'img{index}_u8'])
    np.testing.assert_allclose(made, PICTURES[f'lerobot{index}'], rtol=0, atol=5e-6)


@pytest.mark.parametrize('index', [0, 2, 3, 4, 5])
def test_openpis_pictures_are_those_that_it_makes(index):
    made = PaddedPreprocessor('openpi', SIDE).picture(PICTURES[f'img{index}_u8'])
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made, PICTURES[f'openpi_pil{index}_u8'])


@pytest.mark.parametrize('index', range(8))
def test_smolvlas_pictures_are_black_on_the_left_and_the_top(index):
    height, width, *target, rows, columns = SMOLVLA[f'hw{index}'].tolist()
    assert fit((height, width), tuple(target), centred=False)[:2] == (rows, columns)
    made = resize_with_padding(SMOLVLA[f'in{index}'], tuple(target), PADDINGS['smolvla'])
    pixels = made.astype(np.float32).transpose(2, 0, 1) / 255 * 2 - 1
    np.testing.assert_allclose(pixels, SMOLVLA[f'out{index}'], rtol=0, atol=5e-6)


@pytest.mark.parametrize('padding', ['lerobot', 'smolvla'])
def test_fast_pictures_of_lerobot_differ_by_rounding_alone(padding):
    exact, fast = (PaddedPreprocessor(padding, SIDE, kind).picture(PICTURES['img4_u8'])
                   for kind in ('exact', 'fast'))
    assert fast.dtype == np.uint8 and np.abs(exact - fast).max() < 1.01
    with pytest.raises(ValueError, match='exact, fast'):
        PaddedPreprocessor(padding, SIDE, 'fastest')


@settings(deadline=None, max_examples=40)
@given(sizes, st.sampled_from(sorted(PADDINGS)), st.sampled_from(['exact', 'fast']))
def test_a_picture_of_one_colour_fills_its_part_and_nothing_else(shape, padding, kind):
    preprocessor = PaddedPreprocessor(padding, 28, kind)
    made = preprocessor.picture(np.full((*shape, 3), 200, np.uint8))
    assert made.shape == (28, 28, 3) and set(np.unique(made.round(3))) <= {0, 200}
    x, y, width, height = preprocessor.crop_of(*shape)
    rows, columns = (made[..., 0] > 0).any(1).nonzero()[0], (made[..., 0] > 0).any(0).nonzero()[0]
    assert (rows[0], columns[0]) == pytest.approx((-y / height * 28, -x / width * 28))
    assert (len(rows), len(columns)) == pytest.approx((28 / height, 28 / width))


def test_pictures_of_the_right_size_are_left_alone_and_turned_before():
    picture = np.arange(28 * 28 * 3, dtype=np.uint8).reshape(28, 28, 3)
    for padding in PADDINGS:
        made = PaddedPreprocessor(padding, 28)
        np.testing.assert_array_equal(made.picture(picture, 'rotate_180'), picture[::-1, ::-1])
        assert made.normalise(picture).max() <= 1 and made.crop_of(28, 28) == (0, 0, 1, 1)
