"""Which measured poses may be believed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.robot_state import MeasuredPose, PoseWatch
from vla_policy_node.control.rotations import angle_between, quaternion_to_axis_angle

MS = 1_000_000
INVALID = Hold(HoldReason.INPUT_INVALID, 'ee_pose')


def pose(stamp_ms, x_m=0.0, z_rad=0.0):
    return MeasuredPose(stamp_ms * MS, np.array([x_m, 0.0, 0.5]), np.array([0.0, 0.0, z_rad]))


def held(watch):
    """The hold that the newest pose means, None if it may be used."""
    try:
        watch.newest()
    except HoldError as error:
        return error.hold
    return None


def test_before_the_first_pose_there_is_none():
    assert held(PoseWatch()) == Hold(HoldReason.INPUT_MISSING, 'ee_pose')


def test_holds_call_the_source_by_its_name():
    watch = PoseWatch('left_pose')
    assert held(watch) == Hold(HoldReason.INPUT_MISSING, 'left_pose')
    watch.observe(pose(1000))
    watch.observe(pose(1010, x_m=0.3))
    assert held(watch) == Hold(HoldReason.INPUT_INVALID, 'left_pose')
    with pytest.raises(HoldError) as caught:
        MeasuredPose(0, np.full(3, np.nan), np.zeros(3), 'left_pose')
    assert caught.value.hold == Hold(HoldReason.INPUT_INVALID, 'left_pose')


@pytest.mark.parametrize('there', [pose(1010, x_m=0.3), pose(1010, z_rad=1.0)])
def test_a_jump_is_invalid_until_there_was_none_for_half_a_second(there):
    watch = PoseWatch()
    watch.observe(pose(1000))
    assert held(watch) is None
    for stamp_ms in range(1010, 1510, 10):
        watch.observe(MeasuredPose(stamp_ms * MS, there.position_m, there.rotation_rad))
        assert held(watch) == INVALID
    watch.observe(MeasuredPose(1510 * MS, there.position_m, there.rotation_rad))
    assert held(watch) is None
    assert watch.counts() == {'jumps': 1}


def test_two_sources_that_take_turns_are_never_believed():
    watch = PoseWatch()
    for index in range(300):
        watch.observe(pose(1000 + 10 * index, x_m=0.1 * (index % 2)))
    assert held(watch) == INVALID


def test_a_goal_begins_where_the_arm_is():
    watch = PoseWatch()
    watch.observe(pose(1000))
    watch.observe(pose(1010, x_m=0.3))
    watch.begin()
    assert held(watch) is None


def test_a_clock_that_went_back_is_no_jump():
    watch = PoseWatch()
    watch.observe(pose(90_000))
    watch.observe(pose(1000, x_m=0.3))
    assert held(watch) is None


@pytest.mark.parametrize('period_ms', [1, 10, 50])
def test_an_arm_at_a_real_arms_top_speed_does_not_jump(period_ms):
    watch = PoseWatch()
    for stamp_ms in range(1000, 2000, period_ms):
        watch.observe(pose(stamp_ms, x_m=1.7e-3 * stamp_ms, z_rad=2.5e-3 * stamp_ms))
        assert held(watch) is None


def test_a_rejected_message_holds_until_the_next_good_one():
    watch = PoseWatch()
    watch.observe(pose(1000))
    watch.reject(HoldError(INVALID, 'No pose.'))
    assert held(watch) == INVALID
    watch.observe(pose(1010))
    assert held(watch) is None
    assert watch.counts() == {'invalid': 1}


def test_a_repeated_position_is_as_old_as_its_first_sample_and_so_is_an_orientation():
    watch = PoseWatch()
    for stamp_ms in (1000, 1010, 1020):
        watch.observe(pose(stamp_ms))
    newest = watch.newest()
    assert newest.pose.stamp_ns == 1020 * MS
    assert newest.position_since_ns == newest.rotation_since_ns == 1000 * MS
    watch.observe(pose(1030, x_m=1e-9))
    newest = watch.newest()
    assert (newest.position_since_ns, newest.rotation_since_ns) == (1030 * MS, 1000 * MS)
    watch.observe(pose(1040, x_m=1e-9, z_rad=1e-9))
    newest = watch.newest()
    assert (newest.position_since_ns, newest.rotation_since_ns) == (1030 * MS, 1040 * MS)


@given(st.lists(st.one_of(st.floats(), st.floats(-5.0, 5.0)), min_size=6, max_size=6))
def test_any_numbers_are_a_pose_or_a_hold(numbers):
    watch = PoseWatch()
    watch.observe(pose(1000))
    try:
        there = MeasuredPose(1010 * MS, np.array(numbers[:3]), np.array(numbers[3:]))
    except HoldError as error:
        assert error.hold == INVALID
        assert not np.isfinite(numbers).all() or max(map(abs, numbers)) > 10.0
        return
    assert np.isfinite(numbers).all() and max(map(abs, numbers)) <= 200.0
    watch.observe(there)
    assert held(watch) in (None, INVALID)


def test_the_angle_between_rotations_does_not_depend_on_the_sign_of_a_quaternion():
    quaternion = np.array([0.1, -0.7, 0.2, 0.3])
    quaternion /= np.linalg.norm(quaternion)
    a, b = quaternion_to_axis_angle(quaternion), quaternion_to_axis_angle(-quaternion)
    assert np.linalg.norm(a - b) > 1.0
    assert angle_between(a, b) == pytest.approx(0.0, abs=1e-6)
    assert angle_between(np.zeros(3), [0.0, 0.5, 0.0]) == pytest.approx(0.5)
    assert angle_between([0.0, 0.0, math.pi], np.zeros(3)) == pytest.approx(math.pi)
