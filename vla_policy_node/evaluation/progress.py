"""Phases and failure classes of an episode, from the simulator's state (privileged).

Heights and distances suffice: an object counts as lifted when it is LIFTED_M above where it stood,
and as held while it is lifted, the hand is commanded to close, and its distance to the hand is
the same as when it left the ground.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vla_policy_node.world.libero_world import LiberoWorld

PHASES = ('reach', 'grasp', 'carry', 'place')
# 'wrong object': lifted another object, never the target. 'missed grasp': closed the hand, but the
#     target was never lifted. 'dropped': lifted it, and lost it outside the goal. 'never closed':
#     the hand was never commanded to close. 'time': still under way when time was up.
FAILURES = ('wrong object', 'missed grasp', 'dropped', 'never closed', 'time')

LIFTED_M = 0.03
HELD_SLIP_M = 0.03
ABOVE_TARGET_M = 0.05  # horizontally
AT_GOAL_M = 0.10  # horizontally, about half a basket


class EpisodeProgress:
    """Watches one episode; make it after the reset and call `update` after every step."""

    def __init__(self, world: LiberoWorld):
        self._world = world
        goal = world.goals[0]
        self._goal = goal[2] if len(goal) > 2 else ''
        # A cabinet or a stove is moved, but never lifted.
        self._liftable = world.target in world.objects
        movable = [name for name in world.objects if not self._goal.startswith(name)]
        self._start_m = {name: world.object_position(name)[2] for name in movable}
        self._closing = self._closed = False
        self._lifted: set[str] = set()
        self._was_lifted: set[str] = set()
        self._grip_m = np.inf  # from the hand to the target when it left the ground

    def update(self, action: np.ndarray) -> None:
        """Update with the state after the world's action [7]."""
        self._closing = action[6] > 0
        self._closed |= self._closing
        lifted = {
            name for name, start_m in self._start_m.items()
            if self._world.object_position(name)[2] - start_m > LIFTED_M
        }
        if self._world.target in lifted - self._lifted:
            self._grip_m = self._distance_m()
        self._lifted = lifted
        self._was_lifted |= lifted

    @property
    def phase(self) -> str:
        """What the robot is doing now, one of PHASES."""
        target = self._world.object_position(self._world.target)
        if self._world.target in self._was_lifted and self._is_at_goal(target):
            return 'place'
        if self._is_held():
            return 'carry'
        hand = self._world.state().position
        return 'grasp' if np.linalg.norm((target - hand)[:2]) < ABOVE_TARGET_M else 'reach'

    @property
    def failure(self) -> str:
        """Why the episode has not succeeded, one of FAILURES."""
        if not self._closed:
            return 'never closed'
        if not self._liftable:
            return 'time'
        if self._world.target in self._was_lifted:
            return 'time' if self._is_held() else 'dropped'
        return 'wrong object' if self._was_lifted else 'missed grasp'

    def _is_held(self) -> bool:
        return (
            self._closing
            and self._world.target in self._lifted
            and abs(self._distance_m() - self._grip_m) < HELD_SLIP_M
        )

    def _is_at_goal(self, target: np.ndarray) -> bool:
        if not self._goal:
            return False
        goal = self._world.object_position(self._goal)
        return bool(np.linalg.norm((target - goal)[:2]) < AT_GOAL_M)

    def _distance_m(self) -> float:
        target = self._world.object_position(self._world.target)
        return float(np.linalg.norm(target - self._world.state().position))
