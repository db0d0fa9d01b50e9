"""Content faults: pictures, states and bytes."""

from collections.abc import Callable

import numpy as np

from vla_policy_node.bench.faults import messages
from vla_policy_node.bench.faults.kinds import kind, on_streams, pick, some_streams
from vla_policy_node.bench.faults.messages import Message
from vla_policy_node.bench.faults.records import CAMERA_STREAMS, STREAMS, SampleVerdict, TimeSpan
from vla_policy_node.bench.faults.trial import Fault, Simulation
from vla_policy_node.bench.faults.world import SECOND

POSE, GRIPPER = STREAMS[2:]
# A pose that lies is found out when it differs from what was commanded by so much
# (max_tracking_error_m); until then the robot may be led astray as far.
LIE_M = 0.15
Rng = np.random.Generator


# --- cameras ---

@kind('camera_frozen')
def camera_frozen(rng: Rng, span: TimeSpan) -> Fault:
    """The same picture with new stamps; the frame_id may change, or a clock be drawn over it."""
    style = pick(rng, ('plain', 'frame_id', 'overlay', 'alternating'))
    cameras = pick(rng, (*((camera,) for camera in CAMERA_STREAMS), CAMERA_STREAMS))
    number = int(rng.integers(messages.PICTURES))
    counts = dict.fromkeys(cameras, 0)

    def alter(message: Message) -> Message:
        count = counts[message.stream] = counts[message.stream] + 1
        pixels = messages.picture(
            message.stream, number + (count % 2 if style == 'alternating' else 0))
        if style == 'overlay':
            pixels = pixels.copy()
            pixels[1:4, 1:9] = rng.integers(0, 2, (3, 8, 1)) * 255
        frame_id = f'camera{count}' if style == 'frame_id' else 'camera'
        return message.remade('frozen', messages.image_bytes(
            pixels, message.stamp_ns, frame_id=frame_id))

    return Fault('camera_frozen', span, on_streams(cameras, alter))


@kind('camera_changed')
def camera_changed(rng: Rng, span: TimeSpan) -> Fault:
    """Black, white, of another size, mirrored cables: a picture that is none of that camera's."""
    style = pick(rng, ('black', 'white', '1x1', 'resized', 'swapped'))
    cameras = CAMERA_STREAMS if style == 'swapped' else (pick(rng, CAMERA_STREAMS),)

    def alter(message: Message) -> Message:
        frame = int(rng.integers(messages.PICTURES))
        if style == 'swapped':
            pixels = messages.picture(
                CAMERA_STREAMS[1 - CAMERA_STREAMS.index(message.stream)], frame)
        else:
            noise = rng.integers(0, 2, (messages.HEIGHT, messages.WIDTH, 3), np.uint8)
            pixels = {
                'black': noise, 'white': 255 - noise, '1x1': noise[:1, :1],
                'resized': np.repeat(messages.picture(message.stream, frame), 2, axis=1),
            }[style]
        return message.remade(style, messages.image_bytes(
            np.ascontiguousarray(pixels), message.stamp_ns))

    return Fault('camera_changed', span, on_streams(cameras, alter))


@kind('camera_unreadable')
def camera_unreadable(rng: Rng, span: TimeSpan) -> Fault:
    """A well-formed message that is no picture we can use."""
    style = pick(rng, ('encoding', 'empty', 'step', 'truncated'))
    empty = np.zeros((0, 0, 3), np.uint8)

    def alter(message: Message) -> Message:
        pixels = messages.picture(message.stream, 0)
        raw = {
            'encoding': lambda: messages.image_bytes(pixels, message.stamp_ns, 'yuv422'),
            'empty': lambda: messages.image_bytes(empty, message.stamp_ns),
            'step': lambda: messages.image_bytes(pixels, message.stamp_ns, step=5),
            'truncated': lambda: messages.image_bytes(
                pixels, message.stamp_ns, step=messages.WIDTH * 300),
        }[style]()
        return message.remade('unreadable', raw)

    return Fault('camera_unreadable', span, on_streams((pick(rng, CAMERA_STREAMS),), alter))


# --- state ---

@kind('pose_numbers')
def pose_numbers(rng: Rng, span: TimeSpan) -> Fault:
    """Positions and orientations that no arm has."""
    bad = pick(rng, (np.nan, np.inf, -np.inf, 1e306, -1e308, 1e12, 300.0))
    axis, share = int(rng.integers(3)), pick(rng, (0.3, 1.0))

    def alter(message: Message) -> Message:
        if rng.random() > share:
            return message
        position_m = np.zeros(3)
        position_m[axis] = bad
        return message.remade('pose_numbers', messages.pose_bytes(position_m, message.stamp_ns))

    return Fault('pose_numbers', span, on_streams((POSE,), alter))


@kind('pose_quaternion')
def pose_quaternion(rng: Rng, span: TimeSpan) -> Fault:
    """An orientation that is none."""
    quaternion = pick(rng, ((0.0,) * 4, (np.nan, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 2.0),
                            (1e200, 1e200, 0.0, 0.0), (0.5, 0.0, 0.0, 0.0)))
    return Fault('pose_quaternion', span, on_streams((POSE,), lambda m: m.remade(
        'pose_quaternion',
        messages.pose_bytes(np.zeros(3), m.stamp_ns, quaternion=quaternion))))


@kind('pose_frame')
def pose_frame(rng: Rng, span: TimeSpan) -> Fault:
    """A pose in another frame."""
    frame = pick(rng, ('world', '', 'base_link ', 'x' * 10_000))
    return Fault('pose_frame', span, on_streams((POSE,), lambda m: m.remade(
        'pose_frame', messages.pose_bytes(np.zeros(3), m.stamp_ns, frame))))


@kind('pose_teleports')
def pose_teleports(rng: Rng, span: TimeSpan) -> Fault:
    """A pose that leaps away, for good or to and fro."""
    offset_m = rng.normal(size=3)
    offset_m *= pick(rng, (0.1, 0.3, 1.0, 20.0)) / np.linalg.norm(offset_m)
    to_and_fro = rng.random() < 0.5
    return _lying_pose('pose_teleports', span, lambda position_m, count: (
        position_m + offset_m * (count % 2 if to_and_fro else 1)))


@kind('pose_frozen')
def pose_frozen(rng: Rng, span: TimeSpan) -> Fault:
    """The same pose with new stamps, while the arm moves."""
    first: list[np.ndarray] = []

    def freeze(position_m: np.ndarray, count: int) -> np.ndarray:
        first.append(position_m)
        return first[0]

    return _lying_pose('pose_frozen', span, freeze)


def _lying_pose(name: str, span: TimeSpan, lie: Callable[[np.ndarray, int], np.ndarray]) -> Fault:
    holder: list[Simulation] = []
    count = [0]

    def alter(message: Message) -> Message:
        count[0] += 1
        true_m, quaternion = holder[0].robot.pose(message.captured_s)
        # OPEN: each of these could be the truth; what must not happen is that the robot leaves.
        return message.remade(name, messages.pose_bytes(
            lie(true_m, count[0]), message.stamp_ns, quaternion=quaternion), SampleVerdict.OPEN)

    return Fault(name, span, on_streams((POSE,), alter), begin=holder.append,
                 promise={'workspace_slack_m': LIE_M, 'brakes_hard': True})


@kind('gripper_state')
def gripper_state(rng: Rng, span: TimeSpan) -> Fault:
    """A gripper with other fingers, or numbers that are none."""
    positions = pick(rng, ((), (0.02,), (0.02,) * 9, (np.nan, 0.0), (0.0, np.inf), (1e308, 0.0)))
    return Fault('gripper_state', span, on_streams((GRIPPER,), lambda m: m.remade(
        'gripper', messages.gripper_bytes(positions, m.stamp_ns),
        SampleVerdict.OPEN if positions == (1e308, 0.0) else SampleVerdict.BAD)))


# --- bytes ---

# Middleware sends so many bytes after the last field at most: without them a message is whole.
_APPENDED = 16


@kind('bytes_truncated')
def bytes_truncated(rng: Rng, span: TimeSpan) -> Fault:
    """Messages that end early."""
    share = pick(rng, (0.2, 1.0))

    def alter(message: Message) -> Message:
        if rng.random() > share or not message.raw:
            return message
        end = int(rng.integers(max(1, len(message.raw) - _APPENDED)))
        return message.but('truncated', raw=message.raw[:end])

    return Fault('bytes_truncated', span, on_streams(some_streams(rng), alter))


@kind('bytes_flipped')
def bytes_flipped(rng: Rng, span: TimeSpan) -> Fault:
    """Single flipped bits, mostly where the header and the lengths are."""
    share = pick(rng, (0.2, 1.0))

    def alter(message: Message) -> Message:
        if rng.random() > share or len(message.raw) < 12:
            return message
        raw = bytearray(message.raw)
        for _ in range(int(rng.integers(1, 8))):
            end = len(raw) if rng.random() < 0.3 else min(len(raw), 64)
            raw[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
        stamp_ns = int.from_bytes(raw[4:8], 'little', signed=True) * SECOND + int.from_bytes(
            raw[8:12], 'little')
        return message.but('flipped', SampleVerdict.OPEN, raw=bytes(raw), stamp_ns=stamp_ns)

    return Fault('bytes_flipped', span, on_streams(some_streams(rng), alter),
                 promise={'workspace_slack_m': LIE_M, 'brakes_hard': True})


@kind('bytes_garbage')
def bytes_garbage(rng: Rng, span: TimeSpan) -> Fault:
    """Noise, with or without a head that looks like a message."""
    length = int(pick(rng, (0, 1, 4, 11, 12, 13, 100, 5000)))
    keep = pick(rng, (0, 4, 12, 20))
    return Fault('bytes_garbage', span, on_streams(some_streams(rng), lambda m: m.but(
        'garbage', raw=m.raw[:min(keep, length)] + rng.bytes(max(0, length - keep)))))


@kind('bytes_padded')
def bytes_padded(rng: Rng, span: TimeSpan) -> Fault:
    """More bytes behind the message than belong to it."""
    padding = bytes(int(pick(rng, (1, 3, 4, 1000))))
    return Fault('bytes_padded', span, on_streams(
        some_streams(rng), lambda m: m.but('padded', SampleVerdict.OPEN, raw=m.raw + padding)))


@kind('bytes_huge')
def bytes_huge(rng: Rng, span: TimeSpan) -> Fault:
    """Messages of megabytes where hundreds of bytes are expected."""
    raw = messages.gripper_bytes((0.0,) * 50_000, 0, ())
    return Fault('bytes_huge', span, on_streams((GRIPPER,), lambda m: m.remade(
        'huge', messages.with_stamp(raw, m.stamp_ns))))
