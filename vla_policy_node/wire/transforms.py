"""Poses out of a robot's transforms: messages of /tf and /tf_static in, PoseStamped out."""

from __future__ import annotations

from vla_policy_node.contract.state import StateSource
from vla_policy_node.control.transform_tree import (
    Quaternion,
    TransformError,
    TransformTree,
    shown,
)
from vla_policy_node.wire.cdr import read_transforms, write_pose_stamped

# Static transforms may come a little after the others.
_PATIENCE_NS = 1_000_000_000
_SHOWN = 12  # frames in a sentence


class TransformPoses:
    """The pose of a source's child frame in its parent frame, each time a newer one is known.

    Of the two quaternions of a rotation the one that is nearer to the one before, and at first
    the one whose largest number is positive: a rotation vector does not jump on its way. One
    thread.
    """

    def __init__(self, source: StateSource):
        self._parent, self._child = source.parent, source.child
        self._tree = TransformTree()
        self._stamp_ns: int | None = None  # of the last pose
        self._turned: Quaternion | None = None
        self._first_ns: int | None = None

    def take(self, raw: bytes, static: bool) -> bytes | None:
        """Return the pose as a serialised PoseStamped, None if there is none that is newer.

        static: the message is of /tf_static. Raises MessageError for bytes that are no
        TFMessage, TransformError for transforms that lead to no pose.
        """
        links = read_transforms(raw, static)
        for link in links:
            self._tree.put(link)
        found = self._tree.look(self._parent, self._child)
        if found is None:
            self._lose_patience(max((link.stamp_ns or 0 for link in links), default=0))
            return None
        stamp_ns, position, quaternion = found
        if stamp_ns == self._stamp_ns:
            return None  # another link has moved, but this is as old as before
        self._stamp_ns = stamp_ns
        self._turned = quaternion = _nearer(quaternion, self._turned)
        return write_pose_stamped(stamp_ns, self._parent, position, quaternion)

    def _lose_patience(self, now_ns: int) -> None:
        if not now_ns:
            return
        self._first_ns = min(now_ns, self._first_ns or now_ns)
        if now_ns > self._first_ns + _PATIENCE_NS:
            frames = self._tree.frames
            more = ', ...' if len(frames) > _SHOWN else ''
            raise TransformError(
                f"No transforms lead from the frame '{self._parent}' to '{self._child}'; there "
                f'are {", ".join(map(shown, frames[:_SHOWN]))}{more}.')


def newest_stamp(raw: bytes) -> int:
    """Return the newest stamp [ns] of the transforms of a message, 0 if it has none.

    Raises MessageError.
    """
    return max((link.stamp_ns or 0 for link in read_transforms(raw)), default=0)


def _nearer(quaternion: Quaternion, before: Quaternion | None) -> Quaternion:
    away = (max(quaternion, key=abs) if before is None
            else sum(a * b for a, b in zip(quaternion, before, strict=True)))
    x, y, z, w = quaternion
    return (-x, -y, -z, -w) if away < 0.0 else quaternion
