"""An end effector that nobody measured: its commands without a workspace, for a recording."""

from __future__ import annotations

import numpy as np

from vla_policy_node.control.end_effector import EndEffectorMover
from vla_policy_node.control.limits import Box

# So far away that no command is clipped by it.
_EVERYWHERE = Box(np.full(3, -1e3), np.full(3, 1e3))


class UnmeasuredMover(EndEffectorMover):
    """Bounds steps, velocities and accelerations, but not where the end effector goes.

    Nothing may be moved by it: a robot whose pose is not measured stands still.
    """

    def check(self, now_ns: int) -> None:
        """Look at nothing."""

    def _place(self, now_ns: int) -> tuple[np.ndarray, Box]:
        return np.zeros(3), _EVERYWHERE
