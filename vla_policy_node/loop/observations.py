"""Decodes the serialised messages of one pair into a policy's observation."""

import cv2
import numpy as np

from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.pairing import Pair
from vla_policy_node.policy.interface import Observation
from vla_policy_node.wire.cdr import (
    MessageError,
    MessageHeader,
    read_compressed_image,
    read_image,
)
from vla_policy_node.wire.images import decode_compressed, decode_image
from vla_policy_node.wire.states import decode_state
from vla_policy_node.wire.streams import InputStreams


def decode_pair(
    pair: Pair, instruction: str, frame_id: str, streams: InputStreams
) -> tuple[Observation, dict[str, MessageHeader]]:
    """Return the observation and the header of each camera's message (worker thread).

    Raises HoldError (INPUT_INVALID) naming the stream that cannot be used.
    """
    images, headers = {}, {}
    for camera in streams.cameras:
        images[camera], headers[camera] = _decode_picture(
            camera, pair.payloads[camera], streams.is_compressed(camera))
    state = np.concatenate([np.empty(0), *(
        decode_state(pair.payloads[name], source, frame_id)
        for name, source in streams.states.items())])
    return Observation(images, streams.told(state), instruction), headers


def _decode_picture(camera: str, raw: bytes, compressed: bool) -> tuple[np.ndarray, MessageHeader]:
    try:
        msg = read_compressed_image(raw) if compressed else read_image(raw)
        image = decode_compressed(msg) if compressed else decode_image(msg)
    except (MessageError, MemoryError, cv2.error) as error:
        raise HoldError(Hold(HoldReason.INPUT_INVALID, camera), str(error)) from error
    return image, MessageHeader(msg.stamp_ns, msg.frame_id)
