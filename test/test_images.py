"""Image messages: every layout is decoded exactly, every broken one refused in a sentence."""

import array
import struct
import time

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from vla_policy_node.nodes.images import (
    ImageError,
    decode_compressed,
    decode_image,
    stamp_of,
    to_image_message,
)

CHANNELS = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1}
RGB_OF = {
    'rgb8': [0, 1, 2],
    'bgr8': [2, 1, 0],
    'rgba8': [0, 1, 2],
    'bgra8': [2, 1, 0],
    'mono8': [0, 0, 0],
}


def message(pixels, encoding, padding=0):
    height, width, channels = pixels.shape
    rows = np.full((height, width * channels + padding), 0xAB, np.uint8)
    rows[:, : width * channels] = pixels.reshape(height, -1)
    msg = Image(height=height, width=width, encoding=encoding, step=rows.shape[1])
    msg.data = array.array('B', rows.tobytes())
    return msg


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


@given(
    encoding=st.sampled_from(sorted(CHANNELS)),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    padding=st.integers(0, 90),
)
def test_any_encoding_size_and_row_padding_decodes_to_the_same_pixels(
    encoding, height, width, padding
):
    pixels = noise(height, width, CHANNELS[encoding])
    decoded = decode_image(message(pixels, encoding, padding))
    np.testing.assert_array_equal(decoded, pixels[:, :, RGB_OF[encoding]])
    assert decoded.flags.c_contiguous


def test_padding_by_a_multiple_of_the_width_is_not_taken_for_a_fourth_channel():
    pixels = noise(48, 64)
    np.testing.assert_array_equal(decode_image(message(pixels, 'rgb8', padding=64)), pixels)


def test_the_padding_of_the_last_row_may_be_missing():
    pixels = noise(4, 5)
    msg = message(pixels, 'rgb8', padding=7)
    msg.data = msg.data[:-7]
    np.testing.assert_array_equal(decode_image(msg), pixels)


@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_encoding_then_decoding_is_the_identity(height, width):
    pixels = noise(height, width)
    header = Header(stamp=Time(sec=3, nanosec=4), frame_id='camera')
    msg = to_image_message(pixels, header)
    assert (msg.header, msg.step, msg.encoding) == (header, width * 3, 'rgb8')
    np.testing.assert_array_equal(decode_image(msg), pixels)


def test_a_strided_array_is_encoded_as_it_looks():
    pixels = noise(6, 8)[::-1, ::2]
    np.testing.assert_array_equal(decode_image(to_image_message(pixels, Header())), pixels)


def test_encoding_a_camera_image_never_walks_over_its_elements():
    pixels = noise(480, 640)
    durations_s = []
    for _ in range(5):
        start_s = time.perf_counter()
        to_image_message(pixels, Header())
        durations_s.append(time.perf_counter() - start_s)
    assert min(durations_s) < 0.01  # element by element takes more than 50 ms


def replaced(**fields):
    msg = message(noise(4, 5), 'rgb8')
    for name, value in fields.items():
        setattr(msg, name, value)
    return msg


@pytest.mark.parametrize(
    ('msg', 'sentence'),
    [
        (replaced(encoding='bayer_rggb8'), "encoding 'bayer_rggb8' is not supported.*rgb8"),
        (replaced(encoding=''), "encoding '' is not supported"),
        (replaced(height=0), r'rgb8 image is empty \(5x0'),
        (replaced(width=0), r'rgb8 image is empty \(0x4'),
        (replaced(step=14), 'rgb8 image has step 14, but a row of 5 pixels needs 15'),
        (replaced(height=5), 'rgb8 image of 5x5 pixels is truncated: 60 of 75 bytes'),
        (replaced(data=array.array('B')), 'truncated: 0 of 60'),
    ],
)
def test_a_broken_image_is_refused_with_its_reason(msg, sentence):
    with pytest.raises(ImageError, match=sentence):
        decode_image(msg)


@pytest.mark.parametrize(
    'pixels', [noise(4, 5, 4), noise(4, 5)[:, :, 0], noise(4, 5).astype(np.float32)]
)
def test_only_rgb_bytes_become_an_rgb8_message(pixels):
    with pytest.raises(ImageError, match=r'needs .H, W, 3. uint8'):
        to_image_message(pixels, Header())


def compressed(rgb, extension):
    _, data = cv2.imencode(extension, rgb[..., ::-1] if rgb.ndim == 3 else rgb)
    return CompressedImage(format=extension.strip('.'), data=array.array('B', data.tobytes()))


def test_png_decodes_exactly_and_jpeg_closely():
    smooth = cv2.resize(noise(4, 5), (50, 40))
    np.testing.assert_array_equal(decode_compressed(compressed(smooth, '.png')), smooth)
    difference = decode_compressed(compressed(smooth, '.jpg')).astype(int) - smooth
    assert np.abs(difference).mean() < 4


def test_a_compressed_grey_image_becomes_rgb():
    grey = noise(6, 7, 1)[:, :, 0]
    decoded = decode_compressed(compressed(grey, '.png'))
    np.testing.assert_array_equal(decoded, np.repeat(grey[:, :, None], 3, axis=2))


@given(st.binary(max_size=200))
def test_compressed_garbage_is_refused(data):
    with pytest.raises(ImageError, match="compressed image format 'jpeg' cannot be decoded"):
        decode_compressed(CompressedImage(format='jpeg', data=array.array('B', data)))


@given(sec=st.integers(-(2**31), 2**31 - 1), nanosec=st.integers(0, 999_999_999))
def test_the_stamp_is_read_without_deserialising(sec, nanosec):
    header = Header(stamp=Time(sec=sec, nanosec=nanosec), frame_id='camera')
    for msg in (Image(header=header), CompressedImage(header=header)):
        assert stamp_of(serialize_message(msg)) == sec * 1_000_000_000 + nanosec


def test_the_stamp_of_a_big_endian_message_is_read_too():
    assert stamp_of(b'\x00\x00\x00\x00' + struct.pack('>iI', 7, 8)) == 7_000_000_008


@pytest.mark.parametrize('raw', [b'', b'\x00\x01\x00\x00' + bytes(7), b'\x00\x03' + bytes(20)])
def test_a_stamp_is_not_guessed_from_another_layout(raw):
    with pytest.raises(ImageError, match='plain CDR'):
        stamp_of(raw)
