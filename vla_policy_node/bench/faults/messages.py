"""Serialised inputs with stamps, pictures and numbers patched in: microseconds each, no DDS."""

import struct
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from rosbags.typesys import Stores, get_typestore

from vla_policy_node.bench.faults.records import CAMERA_STREAMS, STREAMS, SampleVerdict

WIDTH, HEIGHT = 32, 24
PICTURES = 256  # before one comes again, more than a trial has
_STAMP = struct.Struct('<iI')
_STAMP_AT = 4
_MARK = 7.25  # a number that the templates hold where numbers are patched in


@dataclass(frozen=True)
class Message:
    """One sample on its way to the node.

    captured_s, arrives_s: on the steady clock of the trial. stamp_ns: as it stands in `raw`.
    """

    stream: str
    captured_s: float
    arrives_s: float
    stamp_ns: int
    raw: bytes
    fault: str = ''
    verdict: SampleVerdict = SampleVerdict.GOOD

    def but(self, fault: str, verdict: SampleVerdict = SampleVerdict.BAD, **changes) -> 'Message':
        """Return the same with a fault and other fields; what is bad stays bad."""
        if self.verdict is SampleVerdict.BAD and verdict is not SampleVerdict.BAD:
            verdict, fault = self.verdict, self.fault
        return replace(self, fault=fault, verdict=verdict, **changes)

    def remade(
        self, fault: str, raw: bytes, verdict: SampleVerdict = SampleVerdict.BAD
    ) -> 'Message':
        """Return another message in its place, with nothing of what this one said."""
        return replace(self, fault=fault, verdict=verdict, raw=raw)

    def stamped(
        self, stamp_ns: int, fault: str, verdict: SampleVerdict = SampleVerdict.BAD
    ) -> 'Message':
        """Return the same with another stamp, wrapped like the field."""
        seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
        stamp_ns = ((seconds + 2**31) % 2**32 - 2**31) * 1_000_000_000 + nanoseconds
        return self.but(fault, verdict, stamp_ns=stamp_ns, raw=with_stamp(self.raw, stamp_ns))


def with_stamp(raw: bytes, stamp_ns: int) -> bytes:
    """Return a serialised message with another stamp."""
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    return raw[:_STAMP_AT] + _STAMP.pack(seconds, nanoseconds) + raw[_STAMP_AT + _STAMP.size:]


def picture(stream: str, number: int) -> np.ndarray:
    """Return what a camera sees, [H, W, 3] uint8: a scene with a moving thing, and noise."""
    return _pictures(stream)[number % PICTURES]


@cache
def _pictures(stream: str) -> np.ndarray:
    rng = np.random.default_rng(CAMERA_STREAMS.index(stream))
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    scene = 90 + 50 * np.sin(rows / (5 + 3 * CAMERA_STREAMS.index(stream)) + columns / 7.0)
    frames = np.repeat(np.stack([scene, scene * 0.8, scene * 0.6], -1)[None], PICTURES, axis=0)
    for number, frame in enumerate(frames):
        x = 2 + round(number * 0.7) % (WIDTH - 10)
        frame[8:14, x:x + 6] = (200, 60, 60)
    frames += rng.normal(0.0, 2.0, frames.shape)
    return np.clip(frames, 0, 255).astype(np.uint8)


def image_bytes(pixels: np.ndarray, stamp_ns: int, encoding: str = 'rgb8',
                frame_id: str = 'camera', step: int = 0) -> bytes:
    """Return a serialised Image of [H, W, C] uint8 pixels."""
    height, width, channels = pixels.shape
    raw = _image_template(height, width, channels, encoding, frame_id, step)
    data = pixels.tobytes()
    return with_stamp(raw[:len(raw) - len(data)] + data, stamp_ns)


@cache
def _image_template(height: int, width: int, channels: int, encoding: str, frame_id: str,
                    step: int) -> bytes:
    return _serialise(
        'sensor_msgs/msg/Image', frame_id, height=height, width=width, encoding=encoding,
        is_bigendian=0, step=step or width * channels,
        data=np.zeros(height * width * channels, np.uint8))


def pose_bytes(position_m: np.ndarray, stamp_ns: int, frame_id: str = 'base_link',
               quaternion: tuple = (0.0, 0.0, 0.0, 1.0)) -> bytes:
    """Return a serialised PoseStamped; quaternion x, y, z, w."""
    raw, at = _pose_template(frame_id)
    return with_stamp(raw[:at] + struct.pack('<7d', *position_m, *quaternion), stamp_ns)


@cache
def _pose_template(frame_id: str) -> tuple[bytes, int]:
    types = _typestore().types
    raw = _serialise('geometry_msgs/msg/PoseStamped', frame_id, pose=types[
        'geometry_msgs/msg/Pose'](
            types['geometry_msgs/msg/Point'](_MARK, 0.0, 0.0),
            types['geometry_msgs/msg/Quaternion'](0.0, 0.0, 0.0, 1.0)))
    return raw, raw.index(struct.pack('<d', _MARK))


def gripper_bytes(positions_m: tuple, stamp_ns: int, names: tuple | None = None) -> bytes:
    """Return a serialised JointState."""
    names = ('left', 'right') if names is None else names
    return with_stamp(_gripper_template(tuple(positions_m), tuple(names)), stamp_ns)


@cache
def _gripper_template(positions_m: tuple, names: tuple) -> bytes:
    none = np.empty(0)
    raw = _serialise(
        'sensor_msgs/msg/JointState', 'base_link', name=list(names),
        position=np.array(positions_m, np.float64), velocity=none, effort=none)
    return raw[:-8] + bytes(16)  # like Fast CDR, which aligns behind an empty list, too


def _serialise(kind: str, frame_id: str, **fields) -> bytes:
    store = _typestore()
    header = store.types['std_msgs/msg/Header'](
        stamp=store.types['builtin_interfaces/msg/Time'](0, 0), frame_id=frame_id)
    return bytes(store.serialize_cdr(store.types[kind](header=header, **fields), kind))


@cache
def _typestore():
    return get_typestore(Stores.ROS2_JAZZY)


def healthy(stream: str, number: int, captured_s: float, arrives_s: float, stamp_ns: int,
            position_m: np.ndarray, quaternion: np.ndarray) -> Message:
    """Return a sample that says what is true."""
    if stream in CAMERA_STREAMS:
        raw = image_bytes(picture(stream, number), stamp_ns)
    elif stream == STREAMS[2]:
        raw = pose_bytes(position_m, stamp_ns, quaternion=quaternion)
    else:
        raw = gripper_bytes((0.02, -0.02), stamp_ns)
    return Message(stream, captured_s, arrives_s, stamp_ns, raw)
