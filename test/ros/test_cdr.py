"""Serialised messages are read as the middleware reads them, and no bytes at all break the reader.

Regressions pinned: a truncated PoseStamped ended the process, text that is no UTF-8 the goal.
"""

import math
import struct

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Header

from vla_msgs.msg import EndEffectorCommand, HoldReason, JointCommand
from vla_policy_node.wire.cdr import (
    MessageError,
    read_command,
    read_compressed_image,
    read_image,
    read_joint_command,
    read_joint_state,
    read_pose_stamped,
    stamp_of,
    with_stamp,
)

READERS = {
    Image: read_image,
    CompressedImage: read_compressed_image,
    PoseStamped: read_pose_stamped,
    JointState: read_joint_state,
    EndEffectorCommand: read_command,
    JointCommand: read_joint_command,
}
texts = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=20)
numbers = st.floats(width=64)
headers = st.builds(
    lambda sec, nanosec, frame_id: Header(stamp=Time(sec=sec, nanosec=nanosec), frame_id=frame_id),
    st.integers(0, 2**31 - 1), st.integers(0, 999_999_999), texts)


def ns(header):
    return header.stamp.sec * 10**9 + header.stamp.nanosec


@given(headers, st.integers(0, 2**32 - 1), texts, st.binary(max_size=40))
def test_images_are_read_as_they_were_serialised(header, number, text, data):
    image = read_image(serialize_message(Image(
        header=header, height=number, width=7, encoding=text, step=number, data=data)))
    assert (image.stamp_ns, image.frame_id) == (ns(header), header.frame_id)
    assert (image.height, image.width, image.step) == (number, 7, number)
    assert (image.encoding, bytes(image.data)) == (text, data)
    compressed = read_compressed_image(serialize_message(CompressedImage(
        header=header, format=text, data=data)))
    assert (compressed.stamp_ns, compressed.frame_id) == (ns(header), header.frame_id)
    assert (compressed.format, bytes(compressed.data)) == (text, data)


@given(headers, st.lists(numbers, min_size=7, max_size=7))
def test_poses_are_read_as_they_were_serialised(header, values):
    msg = PoseStamped(header=header)
    p, q = msg.pose.position, msg.pose.orientation
    p.x, p.y, p.z, q.x, q.y, q.z, q.w = values
    stamp_ns, frame_id, position, quaternion = read_pose_stamped(serialize_message(msg))
    assert (stamp_ns, frame_id) == (ns(header), header.frame_id)
    np.testing.assert_array_equal([*position, *quaternion], values)


@given(headers, st.lists(texts, max_size=4), st.lists(numbers, max_size=4))
def test_joint_states_are_read_as_they_were_serialised(header, names, values):
    stamp_ns, read_names, positions = read_joint_state(serialize_message(JointState(
        header=header, name=names, position=values, velocity=[1.0], effort=[2.0])))
    assert (stamp_ns, list(read_names)) == (ns(header), names)
    np.testing.assert_array_equal(positions, values)


@given(headers, st.lists(st.tuples(texts, st.integers(0, 255), numbers), max_size=20), texts,
       st.booleans(), st.integers(0, 2**32 - 1), st.integers(-2**31, 2**31 - 1))
def test_commands_for_joints_are_read_as_they_were_serialised(
        header, joints, text, hold, epoch, chunk_step):
    command = read_joint_command(serialize_message(JointCommand(
        header=header, names=[name for name, _, _ in joints],
        kinds=[kind for _, kind, _ in joints], values=[value for _, _, value in joints],
        hold=hold, hold_reason=HoldReason(code=3, stream=text, text=text), epoch=epoch,
        target_time=header.stamp, chunk_step=chunk_step, disagreement=0.5, limited=not hold)))
    assert (command.stamp_ns, command.target_time_ns) == (ns(header), ns(header))
    assert list(zip(command.names, command.kinds, strict=True)) == [
        (name, kind) for name, kind, _ in joints]
    np.testing.assert_array_equal(command.values, [value for _, _, value in joints])
    assert (command.hold, command.hold_code, command.hold_stream, command.hold_text) == (
        hold, 3, text, text)
    assert (command.epoch, command.chunk_step, command.disagreement, command.limited) == (
        epoch, chunk_step, 0.5, not hold)


def test_a_command_for_more_joints_than_any_robot_has_costs_no_memory():
    raw = bytearray(serialize_message(JointCommand()))
    raw[20:24] = (2**32 - 1).to_bytes(4, 'little')  # behind the header
    with pytest.raises(MessageError, match='claims'):
        read_joint_command(bytes(raw))


@pytest.mark.parametrize('huge', [
    {'kinds': bytes(2**22)}, {'values': [0.0] * 2**18}, {'names': [''] * 2**16}])
def test_a_command_for_more_joints_than_any_robot_has_is_refused(huge):
    with pytest.raises(MessageError, match='no robot has so many'):
        read_joint_command(serialize_message(JointCommand(**huge)))


def test_big_endian_messages_are_read_too():
    head = struct.pack('>4xiII4s', 7, 8, 4, b'abc\0')
    assert stamp_of(head) == 7_000_000_008
    numbers_of_a_pose = (1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 1.0)
    assert read_pose_stamped(head + struct.pack('>7d', *numbers_of_a_pose)) == (
        7_000_000_008, 'abc', numbers_of_a_pose[:3], numbers_of_a_pose[3:])


@pytest.mark.parametrize('raw', [b'', b'\x00\x01', b'\x00\x03' + bytes(20), b'\xff' * 100])
def test_a_stamp_is_not_guessed_from_another_layout(raw):
    with pytest.raises(MessageError, match='plain CDR'):
        stamp_of(raw)


@pytest.mark.parametrize('stamp', [(-1, 0), (-(2**31), 5), (0, 10**9), (2**31 - 1, 2**32 - 1)])
def test_a_stamp_that_is_no_time_is_refused(stamp):
    with pytest.raises(MessageError, match='no time'):
        stamp_of(struct.pack('<HHiI', 256, 0, *stamp))


EXAMPLES = [
    serialize_message(msg) for msg in (
        Image(header=Header(frame_id='camera'), height=2, width=2, encoding='rgb8', step=6,
              data=bytes(range(12))),
        CompressedImage(header=Header(frame_id='camera'), format='png', data=bytes(range(9))),
        PoseStamped(header=Header(frame_id='base_link')),
        JointState(name=['left', 'right'], position=[0.02, -0.02], velocity=[math.nan],
                   effort=[1.0]),
        EndEffectorCommand(header=Header(frame_id='base_link'), gripper=1.0, epoch=3,
                           hold_reason=HoldReason(stream='wrist', text='Too old.')),
        JointCommand(names=['waist', 'elbow'], kinds=[0, 1], values=[0.5, math.nan], epoch=3,
                     hold_reason=HoldReason(stream='wrist', text='Too old.'), limited=True),
    )
]


# Named by number: what pads a message is whatever was in memory.
@pytest.mark.parametrize('raw', EXAMPLES, ids=range(len(EXAMPLES)))
def test_a_message_that_lacks_its_last_byte_is_refused(raw):
    read = list(READERS.values())[EXAMPLES.index(raw)]
    read(raw)
    with pytest.raises(MessageError, match='truncated'):
        read(raw[:-1])


def tries(raw):
    for read in READERS.values():
        try:
            read(raw)
        except MessageError as error:
            assert str(error).endswith('.')


@pytest.mark.parametrize('raw', EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_truncation_and_every_wrong_length_is_a_message_error_or_a_message(raw):
    for size in range(len(raw)):
        tries(raw[:size])
    for at in range(4, len(raw) - 3):
        for length in (2**32 - 1, 2**31, 2**31 - 1, 2**28):
            broken = bytearray(raw)
            struct.pack_into('<I', broken, at, length)
            tries(broken)


@settings(max_examples=500)
@given(st.sampled_from(EXAMPLES), st.data())
def test_flipped_bytes_are_a_message_error_or_a_message(raw, data):
    broken = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 6))):
        broken[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    tries(bytes(broken))


@given(st.binary(max_size=200))
def test_random_bytes_are_a_message_error_or_a_message(raw):
    tries(raw)
    tries(b'\x00\x01\x00\x00' + raw)


@given(headers, texts, st.integers(0, 2**31 * 10**9 - 1))
def test_a_message_with_another_stamp_is_the_same_but_for_it(header, format, stamp_ns):
    raw = bytes(serialize_message(CompressedImage(header=header, format=format, data=b'abc')))
    other = with_stamp(raw, stamp_ns)
    assert stamp_of(other) == stamp_ns
    assert with_stamp(other, ns(header)) == raw


@pytest.mark.parametrize(('raw', 'stamp_ns'), [
    (b'', 0), (b'\0\1\0\0' + bytes(7), 0), (b'\0\1\0\0' + bytes(8), 2**31 * 10**9)])
def test_what_has_no_place_for_a_stamp_is_refused(raw, stamp_ns):
    with pytest.raises(MessageError):
        with_stamp(raw, stamp_ns)
