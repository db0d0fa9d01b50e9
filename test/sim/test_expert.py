"""The scripted expert: quick, deterministic, hard to disturb; and what is recorded of it."""

import numpy as np
import pytest

from vla_policy_node.control.action_spec import ActionSpec
from vla_policy_node.training.recording import RecordingRecipe, record, to_policy
from vla_policy_node.world.actions import to_action
from vla_policy_node.world.expert import Expert
from vla_policy_node.world.grasps import HOME_YAW_RAD, plan_grasps
from vla_policy_node.world.libero_world import LiberoWorld, tasks
from vla_policy_node.world.shapes import Shapes

RECIPE = RecordingRecipe(
    'libero_object', 'shuffled', (0, 1), noise=0.1, frame_every=25, retarget=True, image_px=64)


@pytest.fixture(scope='module')
def soup():
    world = LiberoWorld(tasks('libero_object')[0], 64)
    yield world
    world.close()


@pytest.fixture(scope='module')
def bowl():
    world = LiberoWorld(tasks('libero_spatial')[2], 64)
    yield world
    world.close()


def solve(world, disturb=lambda action, step: action, steps=260):
    """Return the clean actions, [T, 7]."""
    expert, actions = Expert(world), []
    while len(actions) < steps and (action := expert.act()) is not None:
        actions.append(action)
        world.step(disturb(action, len(actions)))
    return np.array(actions)


@pytest.mark.parametrize('seed', [3, 4])
def test_solves_a_shuffled_scene(soup, seed):
    soup.reset_layout('shuffled', seed)
    actions = solve(soup)
    assert soup.success
    assert len(actions) < 150
    assert np.abs(actions).max() <= 1
    # Opened, closed once, opened once: what a policy has to imitate.
    assert np.count_nonzero(np.diff(actions[:, 6])) == 2


def test_solves_a_task_with_a_bowl(bowl):
    bowl.reset_layout('standard', 0)
    solve(bowl)
    assert bowl.success


def test_same_layout_same_actions(soup):
    episodes = []
    for _ in range(2):
        soup.reset_layout('shuffled', 9)
        episodes.append(solve(soup))
    np.testing.assert_array_equal(*episodes)


def test_noise_and_a_push_are_made_up_for(soup):
    rng = np.random.default_rng(0)

    def disturb(action, step):
        push = np.array([0, 1.0, 0.5, 0, 0, 0, 0]) if 12 <= step < 18 else 0.0
        return action + push + [*rng.normal(0, 0.1, 6), 0]

    soup.reset_layout('shuffled', 3)
    solve(soup, disturb)
    assert soup.success


def test_an_object_that_is_lost_is_picked_up_again(soup):
    def drop(action, step):
        return np.array([*action[:6], -1.0]) if 55 <= step < 65 else action

    soup.reset_layout('shuffled', 3)
    actions = solve(soup, drop)
    assert soup.success
    assert np.count_nonzero(np.diff(actions[:, 6])) == 4


def test_a_shape_is_always_taken_in_the_same_way(soup):
    """Turning always in the same direction, and at all only where the object lies across."""
    yaws = {name: set() for name in soup.objects}
    for seed in range(3):
        soup.reset_layout('shuffled', seed)
        shapes = Shapes(soup)
        for name in ('tomato_sauce_1', 'cream_cheese_1', 'butter_1'):
            grasp = plan_grasps(shapes, name, 0.0)[0]
            yaws[name].add(round(grasp.yaw_rad - HOME_YAW_RAD, 2))
            middle = soup.object_position(name)[:2]
            np.testing.assert_allclose(grasp.position[:2], middle, atol=0.003)
    assert yaws['tomato_sauce_1'] == {0.0}
    assert yaws['cream_cheese_1'] == yaws['butter_1'] == {1.57}


def test_a_drawer_is_refused_in_one_sentence():
    world = LiberoWorld(tasks('libero_goal')[0], 64)
    with pytest.raises(ValueError, match='cannot do "open the middle drawer'):
        Expert(world)
    world.close()


def test_recorded_actions_mean_in_the_policy_what_they_meant_in_the_world():
    action = np.array([0.5, -1, 0.1, 0.2, 0, -0.3, 1.0])
    command = ActionSpec.libero().to_command(to_policy(action))
    np.testing.assert_allclose(
        to_action(command.translation_m, command.rotation_rad, command.gripper), action)


def test_a_recording_is_another_target_with_clean_labels_and_a_rest(soup):
    # Of the first seeds one that has noise.
    recordings = (record(soup, RECIPE, seed) for seed in range(4))
    taken = next(d for d in recordings if d is not None and d.noise == 0.1)
    assert taken.success
    thing = taken.target.removesuffix('_1').replace('_', ' ')
    assert taken.instruction == f'pick up the {thing} and place it in the basket'
    assert taken.proprio.shape == (len(taken.action), 8)
    np.testing.assert_array_equal(taken.action[-4:], np.tile([0, 0, 0, 0, 0, 0, 1], (4, 1)))
    assert np.abs(taken.action - taken.executed)[:, :6].max() > 0.1
    np.testing.assert_array_equal(taken.action[:, 6], taken.executed[:, 6])
    assert taken.frame_step[0] == 0
    assert taken.images['wrist'][0].shape == (64, 64, 3)
    seen = set(np.unique(taken.labels['third_person'][0]))
    assert 1 + taken.segments.index('basket_1') in seen
    assert np.ptp(taken.proprio[:, :3], axis=0).max() > 0.2
    assert (taken.proprio[:, 6] > taken.proprio[:, 7]).all()


def test_an_episode_that_was_stuck_is_discarded(soup, monkeypatch):
    monkeypatch.setattr('vla_policy_node.training.recording.LONGEST_STEPS', 20)
    assert record(soup, RECIPE, 0) is None
