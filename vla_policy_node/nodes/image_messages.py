"""Converts RGB arrays and compressed pictures to image messages. Pure, any thread."""

import array

import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from vla_policy_node.nodes.messages import to_header
from vla_policy_node.wire.cdr import MessageHeader, read_compressed_image
from vla_policy_node.wire.images import decode_compressed
from vla_policy_node.wire.picture_size import ImageError


def to_image_message(rgb: np.ndarray, header: Header) -> Image:
    """Return [H, W, 3] uint8 RGB as an rgb8 message with unpadded rows."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ImageError(
            f'An rgb8 message needs [H, W, 3] uint8 pixels, got {list(rgb.shape)} {rgb.dtype}.'
        )
    height, width, channels = rgb.shape
    # array('B', view) copies element by element (640x480: 56 ms instead of 0.1 ms), and so does
    # assigning bytes where rclpy checks its fields.
    data = array.array('B')
    data.frombytes(np.ascontiguousarray(rgb).data.cast('B'))
    msg = Image(header=header, height=height, width=width, encoding='rgb8')
    msg.step = width * channels
    msg.data = data
    return msg


def unpacked(raw: bytes) -> bytes | None:
    """Return a serialised CompressedImage as a serialised Image, None for what is no picture.

    It has the pixels that whoever reads the compressed one sees.
    """
    from rclpy.serialization import serialize_message  # the rest needs no rclpy

    try:
        packed = read_compressed_image(raw)
        header = to_header(MessageHeader(packed.stamp_ns, packed.frame_id))
        return serialize_message(to_image_message(decode_compressed(packed), header))
    except ValueError:
        return None
