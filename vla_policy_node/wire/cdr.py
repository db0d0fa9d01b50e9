"""Bounds-checked reader of the input messages in CDR, without copies.

The bytes may come from anybody on the network, and a raw subscription delivers them unchecked.
Any defect raises a MessageError here, never another exception, a crash or a large allocation. It
reads XCDR version 1, which every ROS 2 middleware sends: 4 bytes of encapsulation, then the
fields in order, each number aligned to its size (DDSI-RTPS 2.5, section 10; DDS-XTypes 1.3, 7.4).

All functions are pure and may be called from any thread.
"""

import struct
from dataclasses import dataclass
from typing import Any

from vla_policy_node.control.guard import SentCommand
from vla_policy_node.control.joint_guard import SentJointCommand
from vla_policy_node.control.transform_tree import FrameLink

# Representation identifier of plain CDR -> byte order
_BYTE_ORDER = {b'\x00\x00': '>', b'\x00\x01': '<'}
_ENCAPSULATION_BYTES = 4
_NS = 1_000_000_000
# Longest name of a frame, joint or encoding.
_LONGEST_STRING_BYTES = 1024
# A gripper has two fingers; a humanoid has some eighty joints, and some hundred frames.
_MOST_NAMES = 1024

Bytes = bytes | bytearray | memoryview


class MessageError(ValueError):
    """A serialised message that cannot be used; one sentence."""


@dataclass(frozen=True)
class MessageHeader:
    """A std_msgs/Header."""

    stamp_ns: int
    frame_id: str


@dataclass(frozen=True, eq=False)
class SerialisedImage:
    """A sensor_msgs/Image; `data` is a view of the message's own bytes."""

    stamp_ns: int
    frame_id: str
    height: int
    width: int
    encoding: str
    step: int
    data: memoryview
    is_bigendian: bool = False  # numbers of 16 bits


@dataclass(frozen=True, eq=False)
class SerialisedCompressedImage:
    """A sensor_msgs/CompressedImage; `data` is a view of the message's own bytes."""

    stamp_ns: int
    frame_id: str
    format: str
    data: memoryview


def stamp_of(raw: Bytes) -> int:
    """Return the capture stamp [ns] of a message that begins with a Header; microseconds.

    Raises MessageError if there is none or it is invalid: negative, or with a second or more of
    nanoseconds.
    """
    return _Reader(raw).stamp_ns()


def with_stamp(raw: Bytes, stamp_ns: int) -> bytes:
    """Return a message that begins with a Header, with another capture stamp [ns].

    Raises MessageError if it is too short for one, or if no stamp can be so late.
    """
    reader = _Reader(raw)
    start = reader.take(8, 4)
    return b''.join((raw[:start], _packed_stamp(stamp_ns, reader.order), raw[start + 8:]))


def _packed_stamp(stamp_ns: int, order: str) -> bytes:
    seconds, nanoseconds = divmod(stamp_ns, _NS)
    if not 0 <= seconds < 2**31:
        raise MessageError(f'A stamp of {seconds} s does not fit into a message.')
    return struct.pack(f'{order}iI', seconds, nanoseconds)


def read_image(raw: Bytes) -> SerialisedImage:
    """Return a sensor_msgs/Image. Does not check whether the pixels fit the size."""
    reader = _Reader(raw)
    stamp_ns, frame_id = reader.stamp_ns(), reader.string()
    height, width = reader.uint32(), reader.uint32()
    encoding = reader.string()
    is_bigendian = bool(reader.number('B'))
    step = reader.uint32()
    return SerialisedImage(
        stamp_ns, frame_id, height, width, encoding, step, reader.octets(), is_bigendian)


def read_compressed_image(raw: Bytes) -> SerialisedCompressedImage:
    """Return a sensor_msgs/CompressedImage, still compressed."""
    reader = _Reader(raw)
    return SerialisedCompressedImage(
        reader.stamp_ns(), reader.string(), reader.string(), reader.octets())


def read_pose_stamped(
    raw: Bytes,
) -> tuple[int, str, tuple[float, float, float], tuple[float, float, float, float]]:
    """Return stamp [ns], frame, position x y z [m] and quaternion x y z w of a PoseStamped.

    The numbers are as sent: they may be anything, NaN included.
    """
    reader = _Reader(raw)
    stamp_ns, frame_id = reader.stamp_ns(), reader.string()
    x, y, z, *quaternion = reader.doubles(7)
    qx, qy, qz, qw = quaternion
    return stamp_ns, frame_id, (x, y, z), (qx, qy, qz, qw)


def write_pose_stamped(
    stamp_ns: int, frame_id: str, position: tuple[float, ...], quaternion: tuple[float, ...]
) -> bytes:
    """Return a PoseStamped, which `read_pose_stamped` reads."""
    frame = frame_id.encode() + b'\0'
    head = _packed_stamp(stamp_ns, '<') + struct.pack('<I', len(frame)) + frame
    numbers = struct.pack('<7d', *position, *quaternion)
    return b'\0\1\0\0' + head + b'\0' * (-len(head) % 8) + numbers


def read_transforms(raw: Bytes, static: bool = False) -> list[FrameLink]:
    """Return the transforms of a tf2_msgs/TFMessage; static: as on /tf_static, without stamps.

    The numbers are as sent: they may be anything, NaN included. Leading slashes of frames are
    left out, as tf2 does.
    """
    reader = _Reader(raw)
    links = []
    for _ in range(_count_of_transforms(reader)):
        stamp_ns, parent, child = reader.stamp_ns(), reader.string(), reader.string()
        x, y, z, *turn = reader.doubles(7)
        qx, qy, qz, qw = turn
        links.append(FrameLink(parent.lstrip('/'), child.lstrip('/'), (x, y, z), (qx, qy, qz, qw),
                          None if static else stamp_ns))
    return links


def with_transform_stamps(raw: Bytes, stamp_ns: int) -> bytes:
    """Return a tf2_msgs/TFMessage whose transforms all have another stamp [ns].

    Raises MessageError as `with_stamp`.
    """
    reader, stamped = _Reader(raw), bytearray(raw)
    stamp = _packed_stamp(stamp_ns, reader.order)
    for _ in range(_count_of_transforms(reader)):
        start = reader.take(8, 4)
        stamped[start:start + 8] = stamp
        _, _, _ = reader.string(), reader.string(), reader.doubles(7)
    return bytes(stamped)


def _count_of_transforms(reader: '_Reader') -> int:
    count = reader.uint32()
    if count > _MOST_NAMES:
        raise MessageError(
            f'The message claims {count} transforms; name a topic with those of the robot alone.')
    return count


def read_joint_state(raw: Bytes) -> tuple[int, tuple[str, ...], tuple[float, ...]]:
    """Return stamp [ns], joint names and positions (rad or m) of a sensor_msgs/JointState.

    The numbers are as sent: they may be anything, NaN included.
    """
    names, fields = read_joint_fields(raw)
    return stamp_of(raw), names, fields['position']


def read_joint_fields(raw: Bytes) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
    """Return joint names and the position, velocity and effort of each, of a JointState.

    The numbers are as sent, and as many as were sent.
    """
    reader = _Reader(raw)
    _, _ = reader.stamp_ns(), reader.string()
    count = reader.uint32()
    if count > _MOST_NAMES:
        raise MessageError(
            f'The joint state claims {count} names; send those of the robot alone.')
    names = tuple(reader.string() for _ in range(count))
    return names, {
        field: reader.doubles(reader.uint32()) for field in ('position', 'velocity', 'effort')}


def read_command(raw: Bytes) -> SentCommand:
    """Return a vla_msgs/EndEffectorCommand. The numbers are as sent, NaN included."""
    reader = _Reader(raw)
    stamp_ns, frame_id = reader.stamp_ns(), reader.string()
    x, y, z, rx, ry, rz = reader.doubles(6)
    return SentCommand(
        stamp_ns, frame_id, (x, y, z), (rx, ry, rz), gripper=reader.number('f'),
        **_rest_of_command(reader))


def read_joint_command(raw: Bytes) -> SentJointCommand:
    """Return a vla_msgs/JointCommand. The numbers are as sent, NaN included, as many as sent."""
    reader = _Reader(raw)
    stamp_ns, frame_id = reader.stamp_ns(), reader.string()
    count = reader.uint32()
    if count > _MOST_NAMES:
        raise MessageError(f'The command claims {count} joints; no robot has so many.')
    names = tuple(reader.string() for _ in range(count))
    kinds, many = reader.octets(), reader.uint32()
    if len(kinds) > _MOST_NAMES or many > _MOST_NAMES:  # before they are copied
        raise MessageError(
            f'The command has {max(len(kinds), many)} values; no robot has so many.')
    return SentJointCommand(
        stamp_ns, frame_id, names, tuple(kinds), reader.doubles(many),
        **_rest_of_command(reader))


def _rest_of_command(reader: '_Reader') -> dict[str, Any]:
    """Return what commands of all kinds have behind their motion, in its order."""
    return {
        'hold': bool(reader.number('B')), 'hold_code': reader.number('B'),
        'hold_stream': reader.string(), 'hold_text': reader.string(),
        'observation_stamp_ns': reader.stamp_ns(), 'target_time_ns': reader.stamp_ns(),
        'chunk_step': reader.number('i'), 'disagreement': reader.number('f'),
        'epoch': reader.number('I'), 'limited': bool(reader.number('B')),
    }


class _Reader:
    """Reads field after field; a missing one is a MessageError."""

    def __init__(self, raw: Bytes):
        self._raw = memoryview(raw)
        order = _BYTE_ORDER.get(bytes(self._raw[:2]))
        if order is None or len(self._raw) < _ENCAPSULATION_BYTES:
            raise MessageError(
                'The serialised message does not begin with a plain CDR header; '
                'use a middleware that sends plain CDR.'
            )
        self.order = order
        self._at = _ENCAPSULATION_BYTES

    def take(self, count: int, alignment: int = 1) -> int:
        """Step over `count` bytes and return where they begin."""
        start = self._at + (_ENCAPSULATION_BYTES - self._at) % alignment
        if start + count > len(self._raw):
            raise MessageError(
                f'The serialised message is truncated: {len(self._raw)} bytes, '
                f'{start + count} are needed.'
            )
        self._at = start + count
        return start

    def number(self, form: str) -> Any:
        """Return one number; form: its letter in the module `struct`."""
        size = struct.calcsize(form)
        return struct.unpack_from(f'{self.order}{form}', self._raw, self.take(size, size))[0]

    def uint32(self) -> int:
        return self.number('I')

    def doubles(self, count: int) -> tuple[float, ...]:
        if not count:
            return ()  # not aligned
        return struct.unpack_from(f'{self.order}{count}d', self._raw, self.take(8 * count, 8))

    def stamp_ns(self) -> int:
        seconds, nanoseconds = struct.unpack_from(
            f'{self.order}iI', self._raw, self.take(8, 4))
        if seconds < 0 or nanoseconds >= _NS:
            raise MessageError(
                f'The stamp of {seconds} s and {nanoseconds} ns is no time; '
                'check the clock of the publisher.'
            )
        return seconds * _NS + nanoseconds

    def string(self) -> str:
        size = self.uint32()
        if size > _LONGEST_STRING_BYTES:
            raise MessageError(
                f'A string in the serialised message claims {size} bytes; '
                f'{_LONGEST_STRING_BYTES} are allowed.'
            )
        start = self.take(size)
        try:
            return str(self._raw[start:start + size], 'utf-8').removesuffix('\0')
        except UnicodeDecodeError as error:
            raise MessageError(
                'A string in the serialised message is not UTF-8; check the publisher.'
            ) from error

    def octets(self) -> memoryview:
        size = self.uint32()
        start = self.take(size)
        return self._raw[start:start + size]
