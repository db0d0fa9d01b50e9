"""The policy node's control side in lock-step with a world, without ROS.

The classes and their parameters are the node's: executor, action specification, limits, gripper
latch, and the commander that decides between action and hold. Only the transport is missing:
every input is always there, stamped now.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vla_policy_node.control.hold import HoldReason
from vla_policy_node.control.robot_state import MeasuredPose
from vla_policy_node.loop.control_loop import ControlLoop
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.policy.interface import ActionChunk, Observation, Policy
from vla_policy_node.system.description import describe
from vla_policy_node.world.actions import GRIPPER_OPEN, still, to_action

_START_NS = 1_000_000_000
_FOR_EVER_NS = 10**18


def node_parameters(
    arguments: Mapping[str, str], **changes: object
) -> tuple[PolicyParameters, tuple[int, int]]:
    """Return the policy node's parameters and the (width, height) of the world's images in px.

    arguments: 'checkpoint', 'config' and 'device' as for `vla bringup --world`; an empty one
        means its default. changes: parameters to override.
    Raises ValueError for parameters that cannot be used.
    """
    world, policy = describe({**arguments, 'world': True, 'visualizer': False})
    parameters = PolicyParameters.from_values({**policy.parameters, **changes})
    size = tuple(world.parameters.get(f'image_{side}', 256) for side in ('width', 'height'))
    return parameters, size


class LockStepControl:
    """Turns chunks into the actions of a world, one per control period, for one episode.

    Each period: if `needs_inference`, `infer`; then apply what `next_action` returns.
    """

    def __init__(self, policy: Policy, parameters: PolicyParameters, instruction: str):
        self._loop = ControlLoop(policy, parameters.make_parts(), parameters.period_ns)
        self._commander = self._loop.commander
        self._streams, self._pose = tuple(parameters.streams.topics), parameters.streams.pose
        self._goal = self._commander.begin(instruction, _FOR_EVER_NS)
        self._now_ns = _START_NS
        self._gripper = GRIPPER_OPEN

    def needs_inference(self) -> bool:
        """Return whether a chunk should be computed from the present observation."""
        return self._loop.needs_inference(self._now_ns)

    def infer(self, observation: Observation, execute: int = 0) -> ActionChunk:
        """Return what the policy makes of the present observation.

        execute: actions of it to use, 0 for all.
        """
        return self._loop.infer(observation, self._now_ns, self._goal, execute)

    def next_action(self, position_m: np.ndarray, rotation_rad: np.ndarray) -> np.ndarray:
        """Return the world's action for this period, and go on to the next.

        position_m, rotation_rad: [3] each, where the end effector is, rotation vector. On a hold
        nothing moves and the gripper keeps its state.
        """
        for stream in self._streams:
            self._commander.parts.pairer.file(stream, self._now_ns, None)
        self._commander.parts.mover.measured.observe(
            MeasuredPose(self._now_ns, position_m, rotation_rad, self._pose))
        command = self._commander.tick(self._now_ns, self._now_ns + self._loop.period_ns)
        self._now_ns += self._loop.period_ns
        if command.hold.code is not HoldReason.NONE:
            return still(self._gripper)
        delta = command.motion
        action = to_action(delta.translation_m, delta.rotation_rad, delta.gripper)
        self._gripper = action[6]
        return action
