"""The robot's state out of the bytes of its messages: good ones as the middleware reads them,
bad ones as a hold that names the stream."""

import math
import struct
from dataclasses import replace

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import serialize_message
from sensor_msgs.msg import JointState
from std_msgs.msg import Header

from vla_policy_node.contract import find_contract
from vla_policy_node.control import robot_state
from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.wire.states import decode_pose, decode_state

FRAME = 'base_link'
POSE, GRIPPER = 'ee_pose', 'gripper_state'
_, FINGERS = find_contract('').state


def decode_gripper(raw):
    return decode_state(raw, FINGERS, FRAME)


def make_pose(position=(0.1, 0.2, 0.3), quaternion=(0.0, 0.0, 1.0, 0.0), frame=FRAME):
    message = PoseStamped(header=Header(stamp=Time(sec=12, nanosec=34), frame_id=frame))
    at, turned = message.pose.position, message.pose.orientation
    at.x, at.y, at.z = map(float, position)
    turned.x, turned.y, turned.z, turned.w = map(float, quaternion)
    return serialize_message(message)


def make_gripper(positions=(0.02, -0.02)):
    return serialize_message(
        JointState(header=Header(frame_id='x'), name=['left', 'right'], position=positions))


def test_the_stream_of_poses_has_one_name():
    assert [source.name for source in find_contract('').state] == [robot_state.POSE, GRIPPER]


@pytest.mark.parametrize('frame', ['a', 'world', 'base_link', 'panda_link0_of_the_left_arm'])
def test_a_pose_is_read_whatever_the_length_of_its_frame(frame):
    pose = decode_pose(make_pose(frame=frame), frame)
    assert pose.stamp_ns == 12_000_000_034
    np.testing.assert_array_equal(pose.position_m, [0.1, 0.2, 0.3])
    np.testing.assert_allclose(pose.rotation_rad, [0.0, 0.0, math.pi])


@pytest.mark.parametrize('changes', [
    {'frame': 'camera'},
    {'position': (0.0, math.nan, 0.0)},
    {'position': (math.inf, -math.inf, 0.0)},
    {'position': (0.0, 0.0, 300.0)},
    {'position': (1e306, 0.0, 0.0)},
    {'quaternion': (0.0, 0.0, 0.0, 0.0)},
    {'quaternion': (1.0, 1.0, 1.0, 1.0)},
    {'quaternion': (math.nan, 0.0, 0.0, 1.0)},
    {'quaternion': (1e308, 1e308, 0.0, 1.0)},
])
def test_a_pose_that_is_none_names_its_stream(changes):
    with pytest.raises(HoldError) as caught:
        decode_pose(make_pose(**changes), FRAME)
    assert caught.value.hold == Hold(HoldReason.INPUT_INVALID, POSE)
    assert str(caught.value).endswith('.')


@pytest.mark.parametrize('positions', [(), (0.01,), (0.1,) * 9, (0.0, math.nan)])
def test_a_gripper_state_that_is_none_names_its_stream(positions):
    with pytest.raises(HoldError) as caught:
        decode_gripper(make_gripper(positions))
    assert caught.value.hold == Hold(HoldReason.INPUT_INVALID, GRIPPER)


def test_a_gripper_state_is_two_numbers():
    np.testing.assert_array_equal(decode_gripper(make_gripper()), [0.02, -0.02])


@pytest.mark.parametrize(('decode', 'raw'), [
    (lambda raw: decode_pose(raw, FRAME), make_pose()), (decode_gripper, make_gripper())],
    ids=['pose', 'gripper'])
def test_a_message_cut_anywhere_is_a_hold(decode, raw):
    needed = len(raw) if decode is not decode_gripper else raw.rindex(struct.pack('<d', -0.02)) + 8
    for length in range(needed):
        with pytest.raises(HoldError):
            decode(raw[:length])


@given(st.binary(max_size=200), st.integers(0, 1))
def test_any_bytes_are_a_pose_or_a_hold_and_nothing_else(body, order):
    raw = bytes([0, order, 0, 0]) + body
    for decode in (lambda raw: decode_pose(raw, FRAME), decode_gripper):
        try:
            decode(raw)
        except HoldError as error:
            assert error.hold.code is HoldReason.INPUT_INVALID


def test_a_pose_tells_its_rotation_in_the_words_of_the_contract():
    pose, _ = find_contract('').state
    words = ('euler_x', 'euler_y', 'euler_z', 'qx', 'qy', 'qz', 'qw', 'rz', 'x')
    source = replace(pose, values=tuple(
        replace(pose.values[0], name=word, field=word, unit='one') for word in words))
    half = math.sqrt(0.5)
    told = decode_state(make_pose(quaternion=(0.0, 0.0, -half, -half)), source, FRAME)
    np.testing.assert_allclose(
        told, [0, 0, math.pi / 2, 0, 0, -half, -half, -1.5 * math.pi, 0.1], atol=1e-9)


# --- by the contract: joints by name, with sign and scale ---

JOINTS = find_contract('two_arms').state[0]
MEASURED = {value.joint: 0.01 * (i + 1) for i, value in enumerate(JOINTS.values)}
TOLD = [value.scale * MEASURED[value.joint] + value.offset for value in JOINTS.values]


def joint_state(positions, **fields):
    return serialize_message(
        JointState(name=list(positions), position=list(positions.values()), **fields))


@pytest.mark.parametrize(('hand', 'told'), [
    ({'panda_finger_joint1': 0.04, 'panda_finger_joint2': 0.04}, [0.04, -0.04]),
    ({'panda_finger_joint1': 0.0, 'panda_finger_joint2': 0.0}, [0.0, 0.0])])
def test_the_fingers_of_a_franka_are_found_among_nine_joints(hand, told):
    arm = {f'panda_joint{i}': 0.3 * i for i in range(1, 8)}
    for positions in (arm | hand, hand | arm):
        np.testing.assert_array_equal(
            decode_state(joint_state(positions), find_contract('franka_libero').state[1], FRAME),
            told)


@pytest.mark.parametrize(('angle', 'opening'), [(0.0, 0.04), (0.8, 0.0)])
def test_one_joint_of_a_gripper_is_told_as_two_fingers(angle, opening):
    fingers = find_contract('franka_libero').state[1]
    source = replace(fingers, values=tuple(
        replace(value, joint='knuckle', scale=-0.05 * value.scale, offset=0.04 * value.scale)
        for value in fingers.values))
    np.testing.assert_allclose(
        decode_state(joint_state({'knuckle': angle}), source, FRAME), [opening, -opening],
        atol=1e-12)


@pytest.mark.parametrize('source', [FINGERS, find_contract('franka_libero').state[1]])
def test_joints_that_are_others_are_a_sentence_with_the_names_that_are_there(source):
    message = {f'panda_joint{i}': 0.3 * i for i in range(1, 10)}
    with pytest.raises(HoldError, match=r'\(panda_joint1, panda_joint2, .*panda_joint9\)'):
        decode_state(joint_state(message), source, FRAME)


@given(st.permutations([*MEASURED, 'stranger', 'wheel']))
def test_where_a_joint_stands_in_a_message_is_of_no_importance(names):
    message = {name: MEASURED.get(name, 9.0) for name in names}
    np.testing.assert_array_equal(decode_state(joint_state(message), JOINTS, FRAME), TOLD)


@pytest.mark.parametrize('joint', MEASURED)
def test_each_joint_that_is_missing_or_no_number_is_a_hold(joint):
    for message in ({k: v for k, v in MEASURED.items() if k != joint},
                    MEASURED | {joint: math.nan}, MEASURED | {joint: math.inf}):
        with pytest.raises(HoldError) as caught:
            decode_state(joint_state(message), JOINTS, FRAME)
        assert caught.value.hold == Hold(HoldReason.INPUT_INVALID, 'left_arm')


def test_a_number_that_the_scale_makes_infinite_is_a_hold():
    with pytest.raises(HoldError, match='not finite'):
        decode_state(joint_state(MEASURED | {'left_left_finger': 1e308}), JOINTS, FRAME)


@pytest.mark.parametrize('field', ['velocity', 'effort'])
def test_a_field_that_is_not_sent_for_every_joint_is_a_hold(field):
    source = replace(JOINTS, values=tuple(replace(v, field=field) for v in JOINTS.values))
    some = [0.5] * len(MEASURED)
    told = decode_state(joint_state(MEASURED, **{field: some}), source, FRAME)
    np.testing.assert_allclose(told[:-1], 0.5)
    for sent in ([], some[:-1], [*some, 0.5]):
        with pytest.raises(HoldError, match=f'numbers of {field}'):
            decode_state(joint_state(MEASURED, **{field: sent}), source, FRAME)


def test_a_pose_is_told_in_the_order_and_scale_of_the_contract():
    pose, _ = find_contract('').state
    turned = replace(pose, values=tuple(
        replace(value, scale=1000.0) for value in reversed(pose.values[:3])))
    np.testing.assert_allclose(
        decode_state(make_pose((0.1, 0.2, 0.3)), turned, FRAME), [300.0, 200.0, 100.0])
    assert decode_state(make_pose(), replace(pose, values=()), FRAME).size == 0
    with pytest.raises(HoldError):
        decode_state(make_pose(frame='camera'), replace(pose, values=()), FRAME)


@given(st.binary(max_size=400), st.integers(0, 1))
def test_any_bytes_are_joints_by_name_or_a_hold_and_nothing_else(body, order):
    try:
        decode_state(bytes([0, order, 0, 0]) + body, JOINTS, FRAME)
    except HoldError as error:
        assert error.hold == Hold(HoldReason.INPUT_INVALID, 'left_arm')
