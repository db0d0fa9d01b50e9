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
from vla_policy_node.wire.states import decode_gripper, decode_pose
from vla_policy_node.wire.streams import CAMERAS, GRIPPER, POSE


def decode_pair(
    pair: Pair, instruction: str, frame_id: str, compressed: bool
) -> tuple[Observation, dict[str, MessageHeader]]:
    """Return the observation and the header of each camera's message (worker thread).

    Raises HoldError (INPUT_INVALID) naming the stream that cannot be used.
    """
    images, headers = {}, {}
    for camera in CAMERAS:
        images[camera], headers[camera] = _decode_picture(
            camera, pair.payloads[camera], compressed)
    pose = decode_pose(pair.payloads[POSE], frame_id)
    proprio = np.concatenate([
        pose.position_m, pose.rotation_rad, decode_gripper(pair.payloads[GRIPPER])])
    return Observation(images, proprio, instruction), headers


def _decode_picture(camera: str, raw: bytes, compressed: bool) -> tuple[np.ndarray, MessageHeader]:
    try:
        msg = read_compressed_image(raw) if compressed else read_image(raw)
        image = decode_compressed(msg) if compressed else decode_image(msg)
    except (MessageError, MemoryError, cv2.error) as error:
        raise HoldError(Hold(HoldReason.INPUT_INVALID, camera), str(error)) from error
    return image, MessageHeader(msg.stamp_ns, msg.frame_id)
