"""Builds commands and chunks as messages of rclpy (in nodes) or of rosbags (in replays)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from vla_policy_node.control.commander import Command
from vla_policy_node.control.hold import Hold, HoldReason
from vla_policy_node.control.joint_guard import POSITION, VELOCITY
from vla_policy_node.control.joint_spec import JointSpec
from vla_policy_node.policy.interface import ActionChunk

_NS = 1_000_000_000


class MessageBuilder:
    """Makes messages. Pure, any thread.

    kind: 'vla_msgs/msg/ActionChunk' -> its class, which takes every field by name; called once
        each. numbers: converts an array to the library's list of numbers.
    """

    def __init__(self, kind: Callable[[str], Any], numbers: Callable[[np.ndarray], Any]):
        self._kind = cache(kind)
        self._numbers = numbers

    def time(self, ns: int) -> Any:
        """Return nanoseconds as a message; negative times become zero."""
        sec, nanosec = divmod(max(ns, 0), _NS)
        return self._kind('builtin_interfaces/msg/Time')(sec=sec, nanosec=nanosec)

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        """Return a header."""
        return self._kind('std_msgs/msg/Header')(stamp=self.time(stamp_ns), frame_id=frame_id)

    def vector(self, values: np.ndarray) -> Any:
        """Return x, y, z."""
        x, y, z = map(float, values)
        return self._kind('geometry_msgs/msg/Vector3')(x=x, y=y, z=z)

    def hold(self, hold: Hold) -> Any:
        """Return a hold reason with its sentence."""
        return self._kind('vla_msgs/msg/HoldReason')(
            code=int(hold.code), stream=hold.stream, text=hold.text)

    def command(self, command: Command, now_ns: int, frame_id: str) -> Any:
        """Return the command for an end effector, stamped with the time of publication."""
        return self._kind('vla_msgs/msg/EndEffectorCommand')(
            header=self.header(now_ns, frame_id),
            translation=self.vector(command.motion.translation_m),
            rotation=self.vector(command.motion.rotation_rad),
            gripper=command.motion.gripper,
            **self._rest_of_command(command))

    def joint_command(self, command: Command, now_ns: int, spec: JointSpec) -> Any:
        """Return the command for joints, stamped with the time of publication."""
        return self._kind('vla_msgs/msg/JointCommand')(
            header=self.header(now_ns, ''),
            names=list(spec.names),
            kinds=[VELOCITY if joint.by_velocity else POSITION for joint in spec.joints],
            values=self._numbers(command.motion.values),
            **self._rest_of_command(command))

    def _rest_of_command(self, command: Command) -> dict[str, Any]:
        return {
            'hold': command.hold.code is not HoldReason.NONE,
            'hold_reason': self.hold(command.hold),
            'observation_stamp': self.time(command.observation_stamp_ns),
            'target_time': self.time(command.target_time_ns),
            'chunk_step': command.chunk_step,
            'disagreement': command.disagreement,
            'epoch': command.epoch,
            'limited': bool(command.rules),
        }

    def chunk(
        self,
        chunk: ActionChunk,
        header: Any,
        instruction: str,
        sequence: int,
        epoch: int,
        period_ns: int,
        observation_age_ns: int,
        spread_ns: int,
    ) -> Any:
        """Return the result of one inference; header: that of the first camera's picture."""
        length, dimension = chunk.actions.shape
        stage_ms = list(chunk.stage_ms.values())
        return self._kind('vla_msgs/msg/ActionChunk')(
            header=header,
            instruction=instruction,
            sequence=sequence,
            epoch=epoch,
            chunk_length=length,
            action_dimension=dimension,
            actions=self._numbers(chunk.actions.ravel()),
            period_s=period_ns / _NS,
            stage_names=list(chunk.stage_ms),
            stage_ms=self._numbers(np.array(stage_ms, np.float32)),
            inference_ms=float(sum(stage_ms)),
            observation_age_ms=observation_age_ns / 1e6,
            camera_spread_ms=spread_ns / 1e6,
            tokens_kept=chunk.tokens_kept,
            tokens_total=chunk.tokens_total,
            layers_run=chunk.layers_run,
            layers_total=chunk.layers_total,
            reused_by=chunk.reused_by,
            method=chunk.method,
        )


def to_ns(time: Any) -> int:
    """Return a time message (or a duration message) in nanoseconds."""
    return time.sec * _NS + time.nanosec
