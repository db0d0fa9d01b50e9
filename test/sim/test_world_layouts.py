"""Shuffled layouts: what moves, what does not, and that evaluation never sees training's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_node.world import layouts
from vla_policy_node.world.libero_world import LiberoWorld, tasks

PLACES = np.array([[0.0, 0.0], [0.15, 0.0], [0.0, 0.15], [0.15, 0.15], [0.5, 0.5]])
RADII = [0.04, 0.05, 0.04, 0.05, 0.14]
FIXED = [False, False, False, False, True]


@pytest.fixture(scope='module')
def world():
    world = LiberoWorld(tasks('libero_object')[0], 64)
    yield world
    world.close()


@given(seed=st.integers(0, 2**32))
def test_shuffled_places_are_old_ones_within_the_jitter(seed):
    new = layouts.shuffle(PLACES, RADII, FIXED, np.random.default_rng(seed))
    offset = np.abs(new[:, None] - PLACES).max(-1)
    taken = offset.argmin(1)
    assert sorted(taken) == list(range(len(PLACES)))
    assert taken[4] == 4, 'a fixed object stays'
    assert (offset[range(5), taken] <= layouts.JITTER_M).all()


@given(seed=st.integers(0, 2**32))
def test_shuffled_objects_keep_clear_of_each_other(seed):
    new = layouts.shuffle(PLACES, RADII, FIXED, np.random.default_rng(seed))
    for a in range(5):
        for b in range(a):
            gap = np.linalg.norm(new[a] - new[b]) - RADII[a] - RADII[b]
            assert gap >= layouts.CLEARANCE_M - 1e-12


@given(training=st.integers(0, layouts.HELD_OUT_SEED - 1), held_out=st.integers(0, 10**6))
def test_held_out_seeds_have_initial_states_of_their_own(training, held_out):
    assert layouts.standard_state(training, 50) < 40
    assert 40 <= layouts.standard_state(layouts.HELD_OUT_SEED + held_out, 50) < 50


def test_the_same_seed_lays_out_the_same_scene_whatever_came_before(world):
    world.reset_layout('shuffled', 7)
    first = world.data.qpos.copy()
    world.reset_layout('shuffled', 8)
    for _ in range(5):
        world.step(np.array([1, 0, -1, 0, 0, 0, 1.0]))
    assert not np.allclose(first, world.data.qpos)
    world.reset_layout('shuffled', 7)
    np.testing.assert_array_equal(first, world.data.qpos)


def test_shuffling_moves_the_target_by_decimetres(world):
    places = []
    for seed in range(6):
        world.reset_layout('shuffled', seed)
        places.append(world.object_position(world.target)[:2])
    assert np.ptp(places, axis=0).max() > 0.15


def test_scattering_moves_objects_and_not_the_robot(world):
    world.reset_layout('standard', 0)
    robot, target = world.state(), world.object_position(world.target)
    world.scatter(3)
    np.testing.assert_allclose(robot.position, world.state().position, atol=1e-4)
    assert np.linalg.norm(world.object_position(world.target) - target) > 0.01


def test_another_target_changes_goal_words_and_success(world):
    world.reset_layout('shuffled', 1)
    try:
        world.retarget('milk_1')
        assert world.target == 'milk_1'
        assert world.instruction == 'pick up the milk and place it in the basket'
        assert not world.success
        _put_in_basket(world, 'milk_1')
        assert world.success
        world.retarget('butter_1')
        assert not world.success
    finally:
        world.retarget('alphabet_soup_1')


def test_what_cannot_be_asked_for_is_refused(world):
    with pytest.raises(ValueError, match='cannot ask for'):
        world.retarget('basket_1')
    with pytest.raises(ValueError, match='no layout'):
        world.reset_layout('upside_down', 0)


def test_where_every_task_has_a_goal_of_its_own_nothing_is_shuffled():
    world = LiberoWorld(tasks('libero_goal')[0], 64)
    with pytest.raises(ValueError, match='--layout standard'):
        world.reset_layout('shuffled', 0)
    world.close()


@given(seed=st.integers(0, 2**32))
def test_objects_that_shift_stay_as_they_lie_among_each_other(seed):
    new = layouts.shift(PLACES, FIXED, np.random.default_rng(seed))
    moved = new - PLACES
    assert (moved[4] == 0).all(), 'what stands on furniture stays'
    np.testing.assert_allclose(moved[:4], moved[[0] * 4], atol=1e-12)
    assert (layouts.SHIFT_M[:, 0] <= moved[0]).all()
    assert (moved[0] <= layouts.SHIFT_M[:, 1]).all()


def test_a_relation_holds_wherever_the_objects_are_shifted():
    """'The black bowl on the cookie box'; the other bowl stands on the cabinet and stays."""
    world = LiberoWorld(tasks('libero_spatial')[3], 64)
    bowl, other, cookies, _, plate = world.objects
    plates = []
    for seed in range(4):
        world.reset_layout('shuffled', seed)
        between = world.object_position(bowl) - world.object_position(cookies)
        assert np.linalg.norm(between[:2]) < 0.02
        assert 0.03 < between[2] < 0.06
        assert world.object_position(other)[2] > 1.1, 'on the cabinet'
        plates.append(world.object_position(plate)[:2])
    assert np.ptp(plates, axis=0).max() > 0.02
    world.close()


def test_segments_are_where_objects_project(world):
    world.reset_layout('shuffled', 2)
    masks = world.segment()['third_person']
    for name in world.objects:
        right, down, depth = world.camera_matrix('third_person') @ [
            *world.object_position(name), 1]
        seen = np.argwhere(masks == world.segments.index(name))
        assert len(seen), name
        assert np.linalg.norm(seen - [down / depth, right / depth], axis=1).min() < 3, name
    assert {'gripper', 'arm'} <= {world.segments[i] for i in np.unique(masks) if i >= 0}


def test_a_step_is_robosuites_own_to_the_last_bit(world):
    """The world leaves out what robosuite computes twice; nothing else may change."""
    other = LiberoWorld(world.task, 64)
    other._advance = other._env.step
    rng = np.random.default_rng(0)
    for seed in (3, 4):  # every reset makes another controller
        for each in (world, other):
            each.reset_layout('shuffled', seed)
        del other._env.robots[0].controller.update  # robosuite's own
        for _ in range(15):
            action = rng.uniform(-1, 1, 7)
            world.step(action)
            other.step(action)
            for name in ('qpos', 'qvel', 'ctrl'):
                np.testing.assert_array_equal(
                    getattr(world.data, name), getattr(other.data, name), err_msg=name)
    other.close()


def _put_in_basket(world: LiberoWorld, name: str) -> None:
    import mujoco  # reads MUJOCO_GL, which the world's package sets

    joint = world.data.joint(f'{name}_joint0')
    joint.qpos[:3] = world.object_position('basket_1_contain_region')
    mujoco.mj_forward(world.model, world.data)
