"""The robot of the world, in the terms of a contract."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from vla_policy_node.contract import RobotContract, find_contract


@cache
def world_robot() -> RobotContract:
    """Return the contract of LIBERO's robot: what the world shows, measures and obeys.

    Its cameras are `libero_world.CAMERAS`, its state is that of `proprio.proprio_of`.
    """
    return replace(find_contract(''), name='libero_world')
