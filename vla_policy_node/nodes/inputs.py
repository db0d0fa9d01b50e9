"""Serialised samples to the pairer, and the poses to the commander."""

from vla_policy_node.control.commander import Commander
from vla_policy_node.control.hold import HoldError
from vla_policy_node.nodes.images import stamp_of
from vla_policy_node.nodes.states import decode_pose
from vla_policy_node.nodes.streams import POSE


class Inputs:
    """Files what the subscriptions hear (executor thread).

    Only poses are decoded here, all of them: every jump of the state source must be seen.
    """

    def __init__(self, commander: Commander):
        self._commander = commander

    def file(self, stream: str, raw: bytes) -> None:
        """File the bytes by stamp. Raises ImageError if they begin with none."""
        is_newest = self._commander.parts.pairer.file(stream, stamp_of(raw), raw)
        if is_newest and stream == POSE:
            self._observe_pose(raw)

    def _observe_pose(self, raw: bytes) -> None:
        poses = self._commander.poses
        try:
            poses.observe(decode_pose(raw, self._commander.spec.frame_id))
        except HoldError as error:
            poses.reject(error)
