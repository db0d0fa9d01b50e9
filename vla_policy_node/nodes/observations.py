"""Serialised messages of one pair to what the policy takes."""

import numpy as np
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from vla_policy_node.control.freeze import FreezeDetector
from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.pairing import Pair
from vla_policy_node.nodes.images import ImageError, decode_compressed, decode_image
from vla_policy_node.nodes.states import decode_gripper, decode_pose
from vla_policy_node.nodes.streams import CAMERAS, GRIPPER, POSE
from vla_policy_node.policy import Observation

# Encapsulation and stamp of a serialised message: they differ where the picture does not.
_STAMP_BYTES = 12


def decode_pair(
    pair: Pair, instruction: str, frame_id: str, compressed: bool, freeze: FreezeDetector
) -> tuple[Observation, dict[str, Header]]:
    """Return the observation and the header of each camera's message (worker thread).

    Raises HoldError (INPUT_INVALID) naming the stream that cannot be used.
    """
    images, headers = {}, {}
    for camera in CAMERAS:
        raw = pair.payloads[camera]
        freeze.observe(camera, memoryview(raw)[_STAMP_BYTES:])
        msg = deserialize_message(raw, CompressedImage if compressed else Image)
        try:
            images[camera] = decode_compressed(msg) if compressed else decode_image(msg)
        except ImageError as error:
            raise HoldError(Hold(HoldReason.INPUT_INVALID, camera), str(error)) from error
        headers[camera] = msg.header
    pose = decode_pose(pair.payloads[POSE], frame_id)
    proprio = np.concatenate([
        pose.position_m, pose.rotation_rad, decode_gripper(pair.payloads[GRIPPER])])
    return Observation(images, proprio, instruction), headers
