"""Input streams according to the robot's contract: names, message types and topics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vla_policy_node.contract import RobotContract
from vla_policy_node.contract.fit import pose_of
from vla_policy_node.contract.joints import is_moved_by_joints, joint_spec, joint_streams
from vla_policy_node.contract.state import TRANSFORM_TYPE, StateSource
from vla_policy_node.policy.interface import PolicySpec
from vla_policy_node.wire.cdr import stamp_of
from vla_policy_node.wire.transforms import newest_stamp

# After the name of a source of transforms: the stream of those that never change.
_STATIC = '.static'


@dataclass(frozen=True)
class InputStreams:
    """The streams of a robot that are needed. Any thread.

    A policy needs the cameras that it looks at and the sources that it is told something of.
    Besides, what the contract requires is needed, and what measures that which is moved.

    compressed: whether pictures are, or the names of the cameras whose are. spec: of the policy;
    None: everything is needed. moves: whether anything is moved; where nothing is, as in a
    recording without poses, the pose of the end effector may be missing.
    """

    robot: RobotContract
    compressed: bool | frozenset[str]
    spec: PolicySpec | None = None
    moves: bool = True

    @cached_property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras; the first one is the reference."""
        return tuple(camera.name for camera in self.robot.cameras if camera.required
                     or self.spec is None or camera.name in self.spec.cameras)

    @cached_property
    def states(self) -> Mapping[str, StateSource]:
        """Sources of the state by name, in the order of the contract."""
        moved = {self.pose, *self.joints}
        told = None if self.spec is None else {quantity.name for quantity in self.spec.state}
        return {source.name: source for source in self.robot.state
                if told is None or source.name in moved
                or any(value.name in told for value in source.values)}

    @cached_property
    def pose(self) -> str:
        """Name of the stream that measures the end effector, '' where none is moved."""
        return pose_of(self.robot) if self.moves else ''

    @cached_property
    def joints(self) -> Mapping[str, tuple[str, ...]]:
        """Streams that measure moved joints, and these by name in the order of an action."""
        if not is_moved_by_joints(self.robot):
            return {}
        names = joint_spec(self.robot).names
        return {stream: tuple(names[place] for place in places)
                for stream, places in joint_streams(self.robot).items()}

    @cached_property
    def topics(self) -> Mapping[str, tuple[str, str]]:
        """Message type and topic of each stream, without remapping.

        A source of transforms has two: its own, and that of the static ones.
        """
        return {
            **{camera.name: self.pictures(camera.name, camera.topic)
               for camera in self.robot.cameras if camera.name in self.cameras},
            **{name: (source.type, source.topic) for name, source in self.states.items()},
            **{static_of(name): (source.type, f'{source.topic}_static')
               for name, source in self.transforms.items()},
        }

    @cached_property
    def transforms(self) -> Mapping[str, StateSource]:
        """Sources of transforms by name."""
        return {name: source for name, source in self.states.items()
                if source.type == TRANSFORM_TYPE}

    def stamp_of(self, stream: str, raw: bytes) -> int:
        """Return the stamp [ns] of a message of a stream. Raises MessageError."""
        return newest_stamp(raw) if source_of(stream) in self._unstamped else stamp_of(raw)

    @cached_property
    def _unstamped(self) -> frozenset[str]:
        """Sources of transforms, needed or not: the stamps are inside."""
        return frozenset(source.name for source in self.robot.state if source.parent)

    def told(self, state: np.ndarray) -> np.ndarray:
        """Return what the policy reads of the numbers of all `states` [N], in its order."""
        return state if self._places is None else state[self._places]

    @cached_property
    def _places(self) -> list[int] | None:
        if self.spec is None:
            return None
        names = [value.name for source in self.states.values() for value in source.values]
        return [names.index(quantity.name) for quantity in self.spec.state]

    def is_compressed(self, camera: str) -> bool:
        """Whether the pictures of a camera are."""
        return self.compressed if isinstance(self.compressed, bool) else camera in self.compressed

    def pictures(self, camera: str, topic: str) -> tuple[str, str]:
        """Return message type and topic of the pictures of a camera."""
        if self.is_compressed(camera):
            return 'sensor_msgs/msg/CompressedImage', f'{topic}/compressed'
        return 'sensor_msgs/msg/Image', topic


def source_of(stream: str) -> str:
    """Return the name of the camera or source that a stream belongs to."""
    return stream.removesuffix(_STATIC)


def static_of(source: str) -> str:
    """Return the stream of the static transforms of a source."""
    return f'{source}{_STATIC}'


def is_static(stream: str) -> bool:
    """Return whether a stream has the static transforms of a source."""
    return stream.endswith(_STATIC)
