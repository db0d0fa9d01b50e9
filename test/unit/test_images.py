"""Image messages: every layout is decoded exactly, every broken one refused in a sentence."""

import array
import struct
import time
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from vla_policy_node.control.views import GRID
from vla_policy_node.nodes.image_messages import to_image_message
from vla_policy_node.wire.cdr import SerialisedCompressedImage
from vla_policy_node.wire.images import (
    decode_compressed,
    decode_image,
    read_reference,
    sample_compressed,
    sample_image,
)
from vla_policy_node.wire.picture_size import ImageError, compressed_size

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


COLOURS = {'red': (254, 0, 0), 'green': (0, 255, 1), 'blue': (0, 0, 254)}
PLACES = {'r': 0, 'g': 1, 'b': 2}


def mosaic(colour, pattern):
    """A Bayer mosaic [12, 16] of one colour."""
    square = np.array([colour[PLACES[letter]] for letter in pattern], np.uint8).reshape(2, 2)
    return np.tile(square, (6, 8))


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize('colour', COLOURS.values(), ids=COLOURS)
def test_a_bayer_picture_has_the_colours_of_its_pattern(pattern, colour):
    pixels = mosaic(colour, pattern)
    decoded = decode_image(message(pixels[..., None], f'bayer_{pattern}8', padding=3))
    assert np.abs(decoded.astype(int) - colour).max() <= 1
    _, samples = sample_image(message(pixels[..., None], f'bayer_{pattern}8', padding=3))
    assert np.abs(samples.astype(int) - colour).max() <= 1


# Y, U and V of BT.601, as cameras send them.
YUV = {'red': (82, 90, 240), 'green': (144, 54, 34), 'blue': (41, 240, 110)}


@pytest.mark.parametrize('colour', YUV)
@pytest.mark.parametrize('encoding', ['yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv', 'nv12', 'nv21'])
def test_a_yuv_picture_has_its_colours(encoding, colour):
    y, u, v = YUV[colour]
    rows = {'yuv422': (u, y, v, y), 'uyvy': (u, y, v, y), 'yuv422_yuy2': (y, u, y, v),
            'yuyv': (y, u, y, v)}.get(encoding)
    if rows:
        msg = message(np.tile(np.array(rows, np.uint8), (6, 4)).reshape(6, 8, 2), encoding, 5)
    else:
        pair = (u, v) if encoding == 'nv12' else (v, u)
        planes = np.full((9, 8, 1), y, np.uint8)
        planes[6:] = np.tile(np.array(pair, np.uint8), 4)[:, None]
        msg = message(planes, encoding, 5)
        msg.height = 6
    decoded = decode_image(msg)
    assert decoded.shape == (6, 8, 3)
    assert np.abs(decoded.astype(int) - COLOURS[colour]).max() < 8
    np.testing.assert_array_equal(sample_image(msg)[1][0, 0], decoded[0, 0])


def test_colours_of_no_defined_order_are_taken_as_opencv_has_them():
    pixels = noise(5, 6)
    np.testing.assert_array_equal(decode_image(message(pixels, '8UC3')), pixels[..., ::-1])


@pytest.mark.parametrize('is_bigendian', [False, True])
@pytest.mark.parametrize('encoding', ['mono16', 'rgb16', 'bgra16'])
def test_of_16_bits_the_upper_ones_count(encoding, is_bigendian):
    channels = {'mono16': 1, 'rgb16': 3, 'bgra16': 4}[encoding]
    numbers = noise(5, 6, 2 * channels)
    msg = message(numbers, encoding)
    msg.is_bigendian = int(is_bigendian)
    upper = numbers[..., (0 if is_bigendian else 1)::2]
    np.testing.assert_array_equal(
        decode_image(msg), upper[..., RGB_OF[encoding.replace('16', '8')]])


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
        (replaced(encoding='16UC1'), "encoding '16UC1' is not supported.*rgb8"),
        (replaced(encoding='yuyv'), 'An image of 5x4 pixels cannot be yuyv'),
        (replaced(encoding='mono16', step=9), 'step 9, but a row of 5 pixels needs 10'),
        (replaced(encoding=''), "encoding '' is not supported"),
        (replaced(height=0), r'rgb8 image is empty \(5x0'),
        (replaced(width=0), r'rgb8 image is empty \(0x4'),
        (replaced(step=14), 'rgb8 image has step 14, but a row of 5 pixels needs 15'),
        (replaced(height=5000, width=5000), '5000x5000 pixels; more than 8.4 million'),
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


@pytest.mark.parametrize(('format', 'swapped'), [
    ('jpeg', False), ('', False), ('png', False), ('bgr8; jpeg compressed bgr8', False),
    ('rgb8; jpeg compressed bgr8', False), ('rgb8; png compressed bgr8', False),
    ('rgb8; jpeg compressed rgb8', True), ('bgr8; png compressed rgb8', True),
    ('rgb8; jpeg compressed ', False), ('yuv422; jpeg compressed bgr8', False),
    ('bayer_rggb8; jpeg compressed bgr8', False), ('mono8; jpeg compressed mono8', False),
    ('something else', False)])
def test_the_format_says_in_which_order_the_colours_are_stored(format, swapped):
    picture = cv2.resize(noise(4, 5), (40, 48))
    msg = compressed(picture, '.png')
    msg.format = format
    expected = picture[..., ::-1] if swapped else picture
    np.testing.assert_array_equal(decode_compressed(msg), expected)
    plain = sample_compressed(compressed(picture, '.png'))[1]
    np.testing.assert_array_equal(
        sample_compressed(msg)[1], plain[..., ::-1] if swapped else plain)


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize('colour', COLOURS.values(), ids=COLOURS)
def test_a_compressed_mosaic_gets_its_colours(pattern, colour):
    msg = compressed(mosaic(colour, pattern), '.png')
    msg.format = f'bayer_{pattern}8; png compressed '
    assert np.abs(decode_compressed(msg).astype(int) - colour).max() <= 1


@pytest.mark.parametrize('format', [
    '16UC1; compressedDepth', '32FC1; compressedDepth png', '16UC1; png compressed ',
    'yuv422; jpeg compressed mono8', 'rgb8; png compressed mono8'])
def test_depth_and_colours_that_were_not_stored_are_refused(format):
    msg = compressed(noise(24, 32), '.png')
    msg.format = format
    for decode in (decode_compressed, sample_compressed):
        with pytest.raises(ImageError, match=r'depth picture|stores the brightness'):
            decode(msg)


@given(st.binary(max_size=200))
def test_compressed_garbage_is_refused(data):
    with pytest.raises(ImageError):
        decode_compressed(CompressedImage(format='jpeg', data=array.array('B', data)))


def png_that_claims(width, height):
    """A PNG of some kB that would decode to three bytes per pixel, all the same."""
    data = bytearray(cv2.imencode('.png', np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    struct.pack_into('>II', data, 16, width, height)
    struct.pack_into('>I', data, 29, zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def jpeg_that_claims(width, height, before=b''):
    data = cv2.imencode('.jpg', noise(16, 16))[1].tobytes()
    at = next(i for i in range(len(data)) if data[i:i + 2] == b'\xff\xc0')
    return (data[:2] + before + data[2:at + 5] + struct.pack('>HH', height, width)
            + data[at + 9:])


# A marker without length, then what a reader that gives it one takes for a small frame header.
HIDDEN = b'\xff\x01\x00\x02\xff\xc0\x00\x11\x08\x00\x10\x00\x10' + bytes(12)
BOMBS = {
    'png': png_that_claims(33_000, 33_000),
    'png_of_2_to_the_31': png_that_claims(2**31 - 1, 2**31 - 1),
    'jpeg': jpeg_that_claims(65_500, 65_500),
    'jpeg_behind_a_small_header': jpeg_that_claims(65_500, 16_000, HIDDEN),
}


@pytest.mark.parametrize('bomb', BOMBS)
def test_a_picture_that_claims_to_be_huge_is_refused_before_anything_is_allocated(
    bomb, monkeypatch
):
    monkeypatch.setattr(cv2, 'imdecode', pytest.fail)
    data = memoryview(BOMBS[bomb])
    for decode in (decode_compressed, sample_compressed):
        with pytest.raises(ImageError, match=r'more than 8\.4 million|no size'):
            decode(SerialisedCompressedImage(0, '', 'png', data))


@pytest.mark.parametrize('extension', ['.png', '.jpg'])
def test_a_picture_that_ends_early_is_refused_and_padding_behind_it_is_not(extension):
    data = compressed(noise(40, 50), extension).data.tobytes()
    whole = decode_compressed(CompressedImage(data=data))
    np.testing.assert_array_equal(decode_compressed(CompressedImage(data=data + bytes(9))), whole)
    for end in (len(data) - 13, len(data) // 2, 30, 8, 3):
        with pytest.raises(ImageError):
            decode_compressed(CompressedImage(format='any', data=data[:end]))


@pytest.mark.parametrize(('fill', 'good'), [(1, True), (16, True), (17, False), (200, False)])
def test_a_jpeg_may_have_a_few_fill_bytes_before_a_marker(fill, good):
    data = compressed(noise(40, 50), '.jpg').data.tobytes()
    msg = CompressedImage(data=data[:2] + b'\xff' * fill + data[2:])
    if good:
        assert decode_compressed(msg).shape == (40, 50, 3)
    else:
        with pytest.raises(ImageError, match='truncated'):
            decode_compressed(msg)


def test_the_header_of_a_large_picture_is_read_without_a_copy_of_it():
    """Nor byte by byte: 33 MB of fill bytes took the executor thread for five seconds."""
    head, end = jpeg_that_claims(40, 50), b'\xff\xd9'
    filled = memoryview(b'\xff\xd8\xff' + b'\xff' * 33_000_000)
    padded = memoryview(head[:-2] + bytes(8_000_000) + end + bytes(65_535))
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match='truncated'):
            compressed_size(filled, 10_000)
        assert compressed_size(padded, 10_000) == ('jpeg', 40, 50)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize('extension', ['.bmp', '.tiff', '.webp'])
def test_only_jpeg_and_png_are_decoded(extension):
    with pytest.raises(ImageError, match='neither a JPEG nor a PNG'):
        decode_compressed(compressed(noise(20, 20), extension))


@settings(max_examples=200)
@given(st.sampled_from(['.png', '.jpg']), st.data())
def test_flipped_bytes_of_a_picture_are_an_image_error_or_a_picture(extension, data):
    whole = bytearray(compressed(noise(24, 32), extension).data.tobytes())
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    msg = SerialisedCompressedImage(0, '', extension, memoryview(bytes(whole)))
    for decode in (decode_compressed, sample_compressed):
        try:
            decode(msg)
        except ImageError as error:
            assert str(error).endswith('.')


@given(
    encoding=st.sampled_from(sorted(CHANNELS)),
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    padding=st.integers(0, 9),
)
def test_samples_are_pixels_of_the_decoded_picture(encoding, height, width, padding):
    msg = message(noise(height, width, CHANNELS[encoding]), encoding, padding)
    shape, samples = sample_image(msg)
    assert (shape.height, shape.width, shape.encoding) == (height, width, encoding)
    rows, columns = ((np.arange(GRID) + 0.5) * side // GRID for side in (height, width))
    picked = decode_image(msg)[rows.astype(int)[:, None], columns.astype(int)]
    order = [2, 1, 0] if encoding.startswith('bgr') else [0, 1, 2]
    np.testing.assert_array_equal(samples[..., order], picked)


def test_a_jpeg_is_sampled_at_an_eighth_of_its_size_and_a_small_one_as_it_is():
    pictures = {}
    for side in (24, 64, 512):
        picture = cv2.resize(noise(4, 4), (side, side), interpolation=cv2.INTER_CUBIC)
        shape, samples = sample_compressed(compressed(picture, '.jpg'))
        assert (shape.width, shape.height, shape.encoding) == (side, side, 'jpeg')
        pictures[side] = samples.astype(int)
    assert np.abs(pictures[512] - pictures[64]).mean() < 6


def test_a_reference_that_is_no_picture_is_refused_with_its_path(tmp_path):
    (tmp_path / 'text.png').write_text('no picture')
    for name in ('text.png', 'missing.png', '.'):
        with pytest.raises(ValueError, match=name):
            read_reference(str(tmp_path / name))
    cv2.imwrite(str(tmp_path / 'view.png'), noise(40, 50))
    assert read_reference(str(tmp_path / 'view.png')).shape == (GRID, GRID, 3)
