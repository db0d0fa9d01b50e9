"""Every task of the three suites runs, repeats exactly, and knows when it is done."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vla_policy_node.world.libero_setup import SUITES, libero_folder, locate
from vla_policy_node.world.libero_world import LiberoWorld, Task, tasks

ALL_TASKS = [task for suite in SUITES for task in tasks(suite)]
TRACE = (
    'import logging; from test_world import trace; print(trace());'
    'print([h for h in logging.getLogger("robosuite_logs").handlers'
    ' if isinstance(h, logging.FileHandler)])'
)


def named(part: str, suite: str):
    """Return the one task of `suite` whose name holds `part`."""
    (task,) = (task for task in tasks(suite) if part in task.name)
    return task


def trace() -> str:
    """Return a digest of states and images of a short episode."""
    world = LiberoWorld(named('bbq', 'libero_object'), 64)
    digest = hashlib.sha256()
    for initial_state in (3, 0, 3):
        world.reset(initial_state)
        for step in range(4):
            world.step(np.array([0.5, -0.3, -0.8, 0.1, 0, 0.2, 1 - 2 * (step % 2)]))
        digest.update(world.data.qpos.tobytes())
        for image in world.render().values():
            digest.update(image.tobytes())
    world.close()
    return digest.hexdigest()


@pytest.fixture(scope='module')
def opened():
    """Keep every world that a test opens: loading one takes longer than a reset."""
    worlds = {}
    yield worlds
    for world in worlds.values():
        world.close()


@pytest.fixture
def open_world(opened):
    def open_one(task: Task) -> LiberoWorld:
        if task not in opened:
            opened[task] = LiberoWorld(task, 64)
        opened[task].reset()
        return opened[task]

    return open_one


def move(world: LiberoWorld, name: str, position, quaternion=None) -> None:
    """Put an object at `position` (m), at rest."""
    joint = world.data.joint(f'{name}_joint0')
    joint.qpos[:3] = position
    if quaternion is not None:
        joint.qpos[3:] = quaternion
    joint.qvel[:] = 0


def rest(world: LiberoWorld, steps: int = 10) -> None:
    for _ in range(steps):
        world.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))


def test_suites_have_ten_tasks_with_instructions():
    assert len(ALL_TASKS) == 30
    first = tasks('libero_object')[0]
    assert first.instruction == 'pick up the alphabet soup and place it in the basket'
    assert [task.task_id for task in tasks('libero_goal')] == list(range(10))
    with pytest.raises(ValueError, match='libero_object, libero_spatial, libero_goal'):
        tasks('libero_90')


@pytest.mark.parametrize('task', ALL_TASKS, ids=lambda task: f'{task.suite}-{task.task_id}')
def test_task_runs_and_starts_unsolved(open_world, task):
    """Objects also stay where, and as upright as, LIBERO's initial state put them."""
    world = open_world(task)
    start = world._states[0][1 : 1 + world.model.nq]
    for name in world._env.env.objects_dict:
        joint = world.data.joint(f'{name}_joint0')
        address = world.model.joint(f'{name}_joint0').qposadr[0]
        position, quaternion = np.split(start[address : address + 7], [3])
        assert np.linalg.norm(joint.qpos[:2] - position[:2]) < 0.02, name
        assert abs(joint.qpos[3:] @ quaternion) > np.cos(0.05), f'{name} has tipped over'
        assert np.abs(joint.qvel).max() < 0.05, f'{name} still moves'
    assert not world.success
    assert world.initial_states == 50
    world.step(np.zeros(7))
    assert world.steps == 1
    assert world.horizon in (220, 280, 300)


def test_another_process_repeats_every_bit_and_says_nothing_else():
    """Nothing is asked on standard input, and robosuite opens no log file."""
    folder = Path(__file__).parent
    path = os.pathsep.join([str(folder), str(folder.parents[1])])
    environment = {**os.environ, 'PYTHONPATH': path}
    other = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', TRACE],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert other.returncode == 0, other.stderr
    assert other.stdout.split() == [trace(), '[]']
    assert other.stderr == ''


def test_a_reset_forgets_the_episode_before(open_world):
    world = open_world(named('milk', 'libero_object'))
    world.reset(5)
    fresh = world.data.qpos.copy()
    for _ in range(5):
        world.step(np.array([1, 1, -1, 0.5, 0, 0, 1.0]))
    world.reset(5)
    assert np.array_equal(world.data.qpos, fresh)
    assert world.steps == 0


def test_a_world_leaves_numpys_generator_alone(open_world):
    np.random.seed(11)  # noqa: NPY002
    world = open_world(tasks('libero_goal')[0])
    np.random.seed(11)  # noqa: NPY002
    expected = np.random.uniform(size=3)  # noqa: NPY002
    np.random.seed(11)  # noqa: NPY002
    world.reset(2)
    assert np.array_equal(np.random.uniform(size=3), expected)  # noqa: NPY002


def test_one_unit_of_action_moves_the_hand_as_documented(open_world):
    world = open_world(tasks('libero_object')[0])
    before = world.state()
    for _ in range(10):
        world.step(np.array([0, 1, 0, 0, 0, 0, 1.0]))
    after = world.state()
    moved = after.position - before.position
    assert moved[1] > 0.08
    assert abs(moved[0]) < 0.03
    assert abs(moved[2]) < 0.03
    assert np.ptp(before.gripper_qpos) > 0.07
    assert np.ptp(after.gripper_qpos) < np.ptp(before.gripper_qpos) - 0.02
    assert np.linalg.norm(after.quaternion_xyzw) == pytest.approx(1)


@pytest.mark.parametrize('action', [[0] * 6, [np.nan] + [0] * 6, [[0] * 7]])
def test_a_malformed_action_moves_nothing(open_world, action):
    world = open_world(tasks('libero_object')[1])
    before = world.data.qpos.copy()
    with pytest.raises(ValueError, match='7 finite numbers'):
        world.step(action)
    assert np.array_equal(world.data.qpos, before)


def test_wrong_names_and_numbers_are_answered_with_the_right_ones(open_world):
    world = open_world(tasks('libero_object')[0])
    with pytest.raises(ValueError, match='0 to 49'):
        world.reset(50)
    with pytest.raises(ValueError, match='basket_1_contain_region'):
        world.object_position('teapot_1')


@pytest.mark.parametrize('task', tasks('libero_object')[:4], ids=lambda task: task.name[12:24])
def test_an_object_in_the_basket_is_success(open_world, task):
    world = open_world(task)
    ((_, target, region),) = world.goals
    move(world, target, world.object_position(region) + (0, 0, 0.02))
    rest(world)
    assert world.success


def test_a_bowl_on_the_plate_is_success_and_beside_it_is_not(open_world):
    world = open_world(tasks('libero_spatial')[0])
    plate = world.object_position('plate_1')
    move(world, 'akita_black_bowl_1', plate + (0, -0.15, 0.02))
    rest(world)
    assert not world.success
    move(world, 'akita_black_bowl_1', plate + (0, 0, 0.03))
    rest(world)
    assert world.success


LYING = (2**-0.5, 2**-0.5, 0, 0)


@pytest.mark.parametrize(
    ('part', 'name', 'target', 'offset', 'quaternion'),
    [
        ('bowl_on_the_stove', 'akita_black_bowl_1', 'flat_stove_1_cook_region', 0.03, None),
        ('bowl_on_top', 'akita_black_bowl_1', 'wooden_cabinet_1_top_side', 0.03, None),
        ('bottle_on_top', 'wine_bottle_1', 'wooden_cabinet_1_top_side', 0.07, None),
        ('bottle_on_the_rack', 'wine_bottle_1', 'wine_rack_1_top_region', 0.035, LYING),
        ('cheese_in_the_bowl', 'cream_cheese_1', 'akita_black_bowl_1', 0.04, None),
        ('front_of_the_stove', 'plate_1', 'main_table_stove_front_region', 0.02, None),
    ],
)
def test_goal_scene_predicates(open_world, part, name, target, offset, quaternion):
    world = open_world(named(part, 'libero_goal'))
    if target == 'main_table_stove_front_region':
        move(world, 'cream_cheese_1', (0.2, 0.3, 0.93))
    move(world, name, world.object_position(target) + (0, 0, offset), quaternion)
    rest(world)
    assert world.success


@pytest.mark.parametrize(
    ('part', 'joint', 'position'),
    [
        ('open_the_middle_drawer', 'wooden_cabinet_1_middle_level', -0.15),
        ('turn_on_the_stove', 'flat_stove_1_button', 1.0),
    ],
)
def test_joints_of_the_furniture_decide(open_world, part, joint, position):
    world = open_world(named(part, 'libero_goal'))
    off = world.render()['third_person']
    world.data.joint(joint).qpos[:] = position
    rest(world, 1)
    assert world.success
    assert not np.array_equal(world.render()['third_person'], off)


def test_the_bowl_in_the_drawer_needs_the_drawer(open_world):
    world = open_world(named('top_drawer', 'libero_goal'))
    world.data.joint('wooden_cabinet_1_top_level').qpos[:] = -0.15
    rest(world, 1)
    assert not world.success
    move(
        world,
        'akita_black_bowl_1',
        world.object_position('wooden_cabinet_1_top_region') + (0, 0, 0.01),
    )
    rest(world)
    assert world.success


def test_generated_assets_live_in_the_cache_and_not_in_the_package():
    files = locate()
    if not files.generated:
        pytest.skip('the official assets are installed')
    assert not (libero_folder() / 'assets').exists()
    assert libero_folder() not in files.robosuite_assets.parents
    panda = files.robosuite_assets / 'robots/panda/obj_meshes/link1_vis/link1_vis.obj'
    assert not panda.is_symlink()
