"""Serialised samples to the pairer, and the newest pose for the limits."""

import numpy as np

from vla_policy_node.control.commander import Commander
from vla_policy_node.nodes.images import stamp_of
from vla_policy_node.nodes.observations import decode_pose
from vla_policy_node.nodes.streams import POSE


class Inputs:
    """Files what the subscriptions hear; nothing is decoded here.

    `file` belongs to the executor thread, `position_m` to whoever ticks.
    """

    def __init__(self, commander: Commander):
        self._commander = commander
        self._pose_raw = b''

    def file(self, stream: str, raw: bytes) -> None:
        """File the bytes by stamp. Raises ImageError if they begin with none."""
        is_newest = self._commander.parts.pairer.file(stream, stamp_of(raw), raw)
        if is_newest and stream == POSE:
            self._pose_raw = raw

    def position_m(self) -> np.ndarray:
        """Return where the end effector is, [3] in the frame of the commands."""
        return decode_pose(self._pose_raw, self._commander.spec.frame_id)[:3]
