"""From the numbers of an action to metres, radians and a gripper."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_policy_node.control.action_spec import ActionSpec, GripperLatch
from vla_policy_node.control.hold import HoldError, HoldReason
from vla_policy_node.control.rotations import (
    angle_between,
    axis_angle_to_euler_xyz,
    axis_angle_to_quaternion,
    euler_xyz_to_axis_angle,
    quaternion_to_axis_angle,
)

angles = st.lists(st.floats(-3.1, 3.1), min_size=3, max_size=3)


def test_libero_units():
    command = ActionSpec.libero().to_command([1.0, -0.5, 0.0, 0.0, 0.0, 1.0, 1.0])
    np.testing.assert_allclose(command.translation_m, [0.05, -0.025, 0.0])
    np.testing.assert_allclose(command.rotation_rad, [0.0, 0.0, 0.5])
    assert command.gripper == 1.0


@pytest.mark.parametrize(
    ('opened', 'closed', 'value', 'expected'),
    [(1, 0, 0.25, 0.25), (0, 1, 0.25, 0.75), (-1, 1, -1, 1), (-1, 1, 0.5, 0.25), (1, 0, 1.2, 1)],
)
def test_gripper_polarity(opened, closed, value, expected):
    spec = dataclasses.replace(
        ActionSpec.libero(), gripper_open=float(opened), gripper_closed=float(closed)
    )
    assert spec.to_command([0.0] * 6 + [value]).gripper == expected


@given(angles)
def test_euler_actions_become_the_same_rotation(euler):
    spec = dataclasses.replace(
        ActionSpec.libero(), rotation_form='euler_xyz', rotation_scale_rad=1.0
    )
    rotation_rad = spec.to_command([0.0, 0.0, 0.0, *euler, 0.0]).rotation_rad
    expected = Rotation.from_euler('xyz', euler)
    assert (Rotation.from_rotvec(rotation_rad).inv() * expected).magnitude() < 1e-7
    assert np.linalg.norm(rotation_rad) <= math.pi + 1e-12


def test_small_euler_angles_keep_their_precision():
    np.testing.assert_allclose(euler_xyz_to_axis_angle([1e-9, 0.0, 0.0]), [1e-9, 0.0, 0.0])
    np.testing.assert_array_equal(euler_xyz_to_axis_angle([0.0, 0.0, 0.0]), np.zeros(3))


@pytest.mark.parametrize('angle', [0.1, 3.0, 3.3, 5.0, 6.2])
def test_proprio_axis_angle_goes_beyond_pi_like_robosuite(angle):
    quaternion = np.array([0.0, math.sin(angle / 2), 0.0, math.cos(angle / 2)])
    np.testing.assert_allclose(quaternion_to_axis_angle(quaternion), [0.0, angle, 0.0], atol=1e-9)


@given(angles)
def test_proprio_axis_angle_is_the_same_rotation(euler):
    expected = Rotation.from_euler('xyz', euler)
    # Near the identity 1 - w^2 has no digits left; it had none in the recorded data either.
    assume(expected.magnitude() > 1e-3)
    for sign in (1.0, -1.0):
        rotation = Rotation.from_rotvec(quaternion_to_axis_angle(sign * expected.as_quat()))
        assert (rotation.inv() * expected).magnitude() < 1e-5


@given(st.tuples(*[st.floats(-math.pi, math.pi)] * 3))
@example((0.3, math.pi / 2, -0.8))
@example((0.3, -math.pi / 2, -0.8))
@example((0.0, 0.0, 0.0))
def test_the_angles_of_a_rotation_make_the_same_rotation(euler):
    rotation = euler_xyz_to_axis_angle(np.array(euler))
    found = axis_angle_to_euler_xyz(rotation)
    assert angle_between(euler_xyz_to_axis_angle(np.array(found)), rotation) < 1e-6
    assert abs(found[1]) <= math.pi / 2 and max(abs(found[0]), abs(found[2])) <= math.pi


@pytest.mark.parametrize('quaternion', [(0.5, -0.5, 0.5, 0.5), (-0.5, 0.5, -0.5, -0.5)])
def test_a_quaternion_comes_back_with_its_sign(quaternion):
    rotation = quaternion_to_axis_angle(np.array(quaternion))
    np.testing.assert_allclose(axis_angle_to_quaternion(rotation), quaternion, atol=1e-12)


def test_a_quaternion_slightly_longer_than_one_is_no_error():
    np.testing.assert_array_equal(quaternion_to_axis_angle([0.0, 0.0, 0.0, 1.0 + 1e-9]), [0, 0, 0])


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_non_finite_action_is_a_hold(bad):
    with pytest.raises(HoldError) as error:
        ActionSpec.libero().to_command([0.0] * 6 + [bad])
    assert error.value.hold.code is HoldReason.ACTION_INVALID


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'frame_id': ''}, 'frame_id'),
        ({'rotation_form': 'quaternion'}, 'axis_angle, euler_xyz'),
        ({'translation_scale_m': 0.0}, 'translation_scale_m'),
        ({'rotation_scale_rad': math.nan}, 'rotation_scale_rad'),
        ({'gripper_open': 0.0}, 'both'),
        ({'gripper_closed': math.inf}, 'finite'),
        ({'names': ('x',)}, 'names'),
        ({'units': ()}, 'units'),
    ],
)
def test_unusable_specifications_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ActionSpec.libero(), **changes)


def test_the_gripper_latch_does_not_chatter():
    latch = GripperLatch(threshold=0.5, dead_band=0.2)
    openings = [0.55, 0.45, 0.41, 0.39, 0.59, 0.45, 0.61, 0.5]
    assert [latch.update(o) for o in openings] == [1, 1, 1, 0, 0, 0, 1, 1]
    latch.reset()
    assert latch.update(0.45) == 0.0
    with pytest.raises(ValueError, match='dead band'):
        GripperLatch(threshold=0.95, dead_band=0.2)
