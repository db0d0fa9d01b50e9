"""Closed loop in the real world, with scripted stand-ins for the policy."""

import subprocess
import sys
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scripted import ScriptedPolicy

from vla_policy_node.evaluation.controls import gray_images, wrong_instruction
from vla_policy_node.evaluation.episodes import run_episode
from vla_policy_node.evaluation.lock_step import LockStepControl, node_parameters
from vla_policy_node.evaluation.worker import Worker
from vla_policy_node.policy.interface import CAMERAS, ActionChunk, Observation, PolicySpec
from vla_policy_node.world.expert import Expert
from vla_policy_node.world.layouts import HELD_OUT_SEED
from vla_policy_node.world.libero_world import LiberoWorld, tasks
from vla_policy_node.world.proprio import pose_of, proprio_of
from vla_policy_node.world.robot import world_robot

SEED = HELD_OUT_SEED + 1
CHUNK = 8
STILL_OPEN = np.array([0.0, 0, 0, 0, 0, 0, 1])
STILL_CLOSED = np.array([0.0, 0, 0, 0, 0, 0, 0])
UNSEEN = Observation({}, np.zeros(8), 'go')  # by a policy that looks at nothing


@pytest.fixture(scope='module')
def parameters(tmp_path_factory):
    # Nothing here loads it; naming one keeps the default from being made.
    return node_parameters({'checkpoint': str(tmp_path_factory.mktemp('none'))},
                           execution_mode='sync')[0]


@pytest.fixture(scope='module')
def world():
    world = LiberoWorld(tasks('libero_object')[0], 48)
    yield world
    world.close()


def expert_actions(world, target=None):
    """Solve the layout with the scripted expert; return what it did, as a policy would say it."""
    own = world.target
    world.reset_layout('shuffled', SEED)
    if target:
        world.retarget(target)
    expert, actions = Expert(world), []
    while not world.success and (action := expert.act()) is not None:
        world.step(action)
        actions.append(np.append(action[:6], action[6] < 0))
    assert world.success
    world.retarget(own)
    return actions


@pytest.fixture(scope='module')
def solution(world):
    return expert_actions(world)


class Script(ScriptedPolicy):
    """Plays a list of actions, then stands still; remembers what it was shown."""

    def __init__(self, actions, last=STILL_CLOSED, length=CHUNK):
        super().__init__()
        self.actions, self.last, self.length = list(actions), last, length

    def reset(self):
        super().reset()
        self._rest = chain(self.actions, repeat(self.last))

    def answer(self, request):
        actions = np.array([next(self._rest) for _ in range(self.length)])
        return ActionChunk(actions, (), {'head': 1.0}, 'scripted', 5, 10, 99)


def play(world, parameters, policy, **options):
    world.reset_layout('shuffled', SEED)
    return run_episode(world, policy, parameters, **options)


def test_the_experts_actions_replayed_as_chunks_solve_the_same_episode(
    world, parameters, solution
):
    policy = Script(solution)
    result = play(world, parameters, policy)
    assert (result.success, result.failure, policy.resets) == (True, '', 1)
    # No conversion, limit or latch on the way changes what the world is told.
    assert result.steps == len(solution)
    assert [i.step for i in result.inferences] == list(range(0, len(solution), CHUNK))
    assert (result.inferences[0].chunk.tokens_kept, result.inferences[0].chunk.flops) == (5, 99)
    phases = list(dict.fromkeys(i.phase for i in result.inferences))
    assert phases == ['reach', 'grasp', 'carry', 'place']


def test_what_the_policy_is_shown(world, parameters):
    policy = Script([])
    play(world, parameters, policy, horizon=1)
    shown = policy.observations[0]
    assert shown.instruction == 'pick up the alphabet soup and place it in the basket'
    assert shown.proprio.shape == (8,)
    assert {name: image.shape for name, image in shown.images.items()} == dict.fromkeys(
        CAMERAS, (48, 48, 3))
    assert shown.images['wrist'].std() > 5


def test_only_the_first_actions_of_a_chunk_are_used(world, parameters):
    result = play(world, parameters, Script([]), execute=3, horizon=8)
    assert [i.step for i in result.inferences] == [0, 3, 6]


def test_async_infers_in_every_step(world, tmp_path):
    parameters, _ = node_parameters({'checkpoint': str(tmp_path)}, execution_mode='async')
    result = play(world, parameters, Script([]), horizon=4)
    assert len(result.inferences) == 4


def test_gray_images_replace_both_cameras(world, parameters):
    policy = Script([])
    play(world, parameters, policy, horizon=1, images=lambda _: gray_images(CAMERAS, 40, 30))
    for image in policy.observations[0].images.values():
        assert image.shape == (30, 40, 3)
        assert (image == 128).all()


def test_a_wrong_instruction_asks_for_another_object_of_the_scene(world, parameters):
    world.reset_layout('shuffled', SEED)
    words = {seed: wrong_instruction(world, seed) for seed in range(20)}
    assert words == {seed: wrong_instruction(world, seed) for seed in range(20)}
    assert len(set(words.values())) > 2
    assert world.instruction not in words.values()
    known = {name.rpartition('_')[0].replace('_', ' ') for name in world.objects} - {'basket'}
    for text in words.values():
        assert text.removeprefix('pick up the ').partition(' and place')[0] in known
    # Success still asks for the original.
    assert world.target == 'alphabet_soup_1'
    policy = Script([])
    play(world, parameters, policy, instruction=words[0], horizon=1)
    assert policy.observations[0].instruction == words[0]


def test_a_wrong_instruction_of_another_suite_is_that_of_another_task():
    spatial = LiberoWorld(tasks('libero_spatial')[3], 48)
    words = {wrong_instruction(spatial, seed) for seed in range(10)}
    own = spatial.instruction
    spatial.close()
    assert own not in words
    assert words <= {task.instruction for task in tasks('libero_spatial')}


# --- why an episode failed ---


def lifted_after(solution, world, parameters):
    """Steps of the solution after which the target is well above the ground."""
    world.reset_layout('shuffled', SEED)
    start = world.object_position(world.target)[2]
    control = LockStepControl(Script(solution, length=1), parameters, 'go')
    for step in range(len(solution)):
        control.infer(UNSEEN)
        world.step(control.next_action(*pose_of(world.state())))
        if world.object_position(world.target)[2] - start > 0.06:
            return step + 1
    raise AssertionError('the target was never lifted')


def test_never_closed(world, parameters):
    result = play(world, parameters, Script([], last=STILL_OPEN), horizon=6)
    assert (result.success, result.failure, result.steps) == (False, 'never closed', 6)


def test_missed_grasp(world, parameters):
    assert play(world, parameters, Script([]), horizon=6).failure == 'missed grasp'


def test_wrong_object(world, parameters):
    other = next(name for name in world.objects
                 if name not in (world.target, 'basket_1'))
    actions = expert_actions(world, other)
    result = play(world, parameters, Script(actions), horizon=len(actions))
    assert result.failure == 'wrong object'


def test_carried_but_not_in_time(world, parameters, solution):
    steps = lifted_after(solution, world, parameters)
    result = play(world, parameters, Script(solution), horizon=steps)
    assert result.failure == 'time'
    assert result.inferences[-1].phase in ('grasp', 'carry')


def test_dropped(world, parameters, solution):
    steps = lifted_after(solution, world, parameters)
    actions = [*solution[:steps], *[STILL_OPEN] * 20]
    assert play(world, parameters, Script(actions), horizon=len(actions)).failure == 'dropped'


# --- the control side ---


def test_a_hold_keeps_the_gripper_and_moves_nothing(parameters):
    control = LockStepControl(
        Script([[0.5, 0, 0, 0, 0, 0, 0.0]], length=1), parameters, 'go')
    here = np.zeros(3), np.zeros(3)
    assert control.next_action(*here).tolist() == [0, 0, 0, 0, 0, 0, -1]
    assert control.needs_inference()
    control.infer(UNSEEN)
    assert control.next_action(*here).tolist() == [0.5, 0, 0, 0, 0, 0, 1]
    assert control.next_action(*here).tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_the_nodes_limits_hold(parameters):
    control = LockStepControl(Script([[1.0, 0, 0, 0, 0, 0, 1]], length=1), parameters, 'go')
    control.infer(UNSEEN)
    wall = np.array([parameters.workspace_max_m[0], 0.0, 1.0])
    assert control.next_action(wall, np.zeros(3))[0] == pytest.approx(0.0, abs=1e-9)


def test_a_parameter_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match='no parameter colour'):
        node_parameters({'checkpoint': str(tmp_path)}, colour=1)


def test_the_evaluation_needs_no_ros():
    script = (
        'import pkgutil, importlib, sys, vla_policy_node.evaluation as e\n'
        'for m in pkgutil.iter_modules(e.__path__):\n'
        '    importlib.import_module(f"{e.__name__}.{m.name}")\n'
        'print(*sorted({name.partition(".")[0] for name in sys.modules}))'
    )
    loaded = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    ).stdout.split()
    assert 'torch' in loaded
    assert not {'rclpy', 'vla_msgs', 'rcl_interfaces'} & set(loaded)


# --- whose robot it is ---

def test_the_robot_of_the_world_is_what_the_world_shows_and_measures(world):
    robot = world_robot()
    assert robot.camera_names == tuple(world.render())
    assert len(robot.state_names) == len(proprio_of(world.state()))
    assert robot.action_dimension == len(STILL_OPEN)


def test_a_policy_is_told_the_state_by_name_in_its_own_order(world, parameters):
    policy = Script([], STILL_OPEN)
    usual = policy.description.spec
    chosen = (usual.state[6], usual.state[0])
    policy.description = replace(policy.description, spec=replace(usual, state=chosen))
    world.reset_layout('shuffled', SEED)
    told = proprio_of(world.state())
    run_episode(world, policy, parameters, horizon=1)
    np.testing.assert_array_equal(policy.observations[0].proprio, told[[6, 0]])


def test_a_policy_of_another_robot_is_not_evaluated_here():
    policy = Script([])
    policy.description = replace(policy.description, spec=PolicySpec(cameras=('high', 'wrist')))
    worker = Worker(SimpleNamespace(parameters=None, threads=1))
    contender = SimpleNamespace(label='other', load=lambda parameters, threads: policy)
    with pytest.raises(ValueError, match="camera 'high', which the contract of libero_world do"):
        worker._policy_of(contender)
