"""The policy node on other robots than the default one: more cameras, joints by name."""

import copy
import sys

import numpy as np
import pytest
import yaml
from node_bench import (  # noqa: F401
    checkpoint,
    is_still,
    make_active,
    make_bench,
    script,
)
from rclpy.lifecycle import TransitionCallbackReturn
from ros_testing import ros  # noqa: F401

from vla_msgs.msg import HoldReason, PolicyInfo
from vla_policy_node.contract import find_contract, parse_contract, to_plain
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.message_classes import message_class

FRANKA = ('panda_finger_joint1', 'panda_finger_joint2')


@pytest.fixture
def franka(tmp_path):
    """Three cameras under topics of their own, and fingers that both count upwards."""
    plain = copy.deepcopy(to_plain(find_contract('')))
    plain['cameras'][0]['topic'] = 'front/rgb'
    plain['cameras'].append({'name': 'side', 'topic': 'side/rgb'})
    plain['state'][1]['topic'] = 'joint_states'
    for value, joint, scale in zip(plain['state'][1]['values'], FRANKA, (1.0, -1.0), strict=True):
        value |= {'joint': joint, 'scale': scale}
    file = tmp_path / 'franka.yaml'
    file.write_text(yaml.safe_dump(plain))
    return str(file)


def test_the_default_contract_by_its_name_moves_the_default_robot(make_active):  # noqa: F811
    bench = make_active(contract='end_effector')
    bench.start()
    bench.infer()
    assert not is_still(bench.advance())


def test_three_cameras_and_fingers_by_name_reach_the_policy_and_move_the_arm(
        make_active, script, franka):  # noqa: F811
    bench = make_active(contract=franka)
    assert list(bench.robot.inputs) == [
        'third_person', 'wrist', 'side', 'ee_pose', 'gripper_state']
    script.forget()
    bench.start()
    bench.infer()
    command = bench.advance()
    assert not command.hold and command.translation.x > 0.0
    _, observation = script.calls[-1]
    assert list(observation.images) == ['third_person', 'wrist', 'side']
    # The double sends them in another order, among others, and both upwards.
    np.testing.assert_allclose(observation.proprio[6:], [0.02, -0.02])


def test_a_state_that_no_training_data_had_is_counted_in_the_status(
        make_active, franka):  # noqa: F811
    bench = make_active(contract=franka)
    bench.robot.positions[FRANKA[0]] = -0.03
    bench.start()
    for _ in range(2):
        bench.infer()
        assert not bench.advance().hold
    counts = bench.counters()
    assert counts['worker.state_outside.left_finger'] == 2
    assert 'worker.state_outside.right_finger' not in counts


@pytest.fixture
def transforms(tmp_path):
    """The default robot, whose pose comes from /tf and /tf_static."""
    plain = copy.deepcopy(to_plain(find_contract('')))
    plain['state'][0] |= {'topic': '/tf', 'type': 'tf2_msgs/msg/TFMessage',
                          'parent': 'base_link', 'child': 'tool'}
    file = tmp_path / 'transforms.yaml'
    file.write_text(yaml.safe_dump(plain))
    return str(file)


def test_a_pose_from_transforms_reaches_the_policy_and_moves_the_arm(
        make_active, script, transforms):  # noqa: F811
    pytest.importorskip('tf2_msgs')
    bench = make_active(contract=transforms)
    kind = message_class('tf2_msgs/msg/TFMessage')
    other = bench.robot.create_publisher(kind, '/tf', qos.observation_output())
    bench.start()
    bench.infer()  # several publishers are usual here, and no conflict
    assert not bench.advance().hold
    np.testing.assert_allclose(script.calls[-1][1].proprio[:6], [0.0, 0.0, 0.5, 0.0, 0.0, 0.0])
    assert 'pose.jumps' not in bench.counters()
    bench.robot.destroy_publisher(other)


def test_transforms_that_cease_stop_the_robot_and_name_the_pose(
        make_active, transforms):  # noqa: F811
    pytest.importorskip('tf2_msgs')
    bench = make_active(contract=transforms)
    bench.run_a_little()
    for _ in range(10):
        bench.set_clock(bench.now_ns + 50_000_000)
        bench.observe(streams=[stream for stream in bench.robot.inputs if stream != 'ee_pose'])
    command = bench.advance()
    assert is_still(command)
    assert (command.hold_reason.code, command.hold_reason.stream) == (
        HoldReason.INPUT_STALE, 'ee_pose')


def test_without_the_messages_of_transforms_configure_says_so(
        make_bench, monkeypatch, transforms):  # noqa: F811
    pytest.importorskip('tf2_msgs')
    bench = make_bench(contract=transforms)
    monkeypatch.setitem(sys.modules, 'tf2_msgs.msg', None)
    message_class.cache_clear()
    assert bench.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    monkeypatch.undo()
    message_class.cache_clear()


@pytest.mark.parametrize('missing', ['side', 'gripper_state'])
def test_what_a_contract_requires_is_missed_by_its_name(make_active, franka, missing):  # noqa: F811
    bench = make_active(contract=franka)
    bench.start()
    bench.observe(streams=[stream for stream in bench.robot.inputs if stream != missing])
    command = bench.advance()
    assert is_still(command)
    assert (command.hold_reason.code, command.hold_reason.stream) == (
        HoldReason.INPUT_MISSING, missing)


@pytest.mark.parametrize(('name', 'position'), [
    (['stranger', FRANKA[0]], [0.0, 0.02]),
    ([*FRANKA, FRANKA[0]], [0.02, 0.02, 0.02]),
    (list(FRANKA), [0.02]),
    (list(FRANKA), [0.02, float('nan')]),
    ([], [0.02, 0.02])])
def test_a_joint_that_is_not_there_once_stops_the_robot(
        make_active, franka, name, position):  # noqa: F811
    bench = make_active(contract=franka)
    bench.start()
    bench.infer()
    assert not is_still(bench.advance())
    bench.robot.alter['gripper_state'] = lambda message: type(message)(
        header=message.header, name=name, position=position)
    bench.observe()
    command = bench.advance()
    assert is_still(command)
    assert (command.hold_reason.code, command.hold_reason.stream) == (
        HoldReason.INPUT_INVALID, 'gripper_state')


def test_limits_of_a_contract_hold_and_can_only_be_tightened(
        make_active, franka, script):  # noqa: F811
    script.actions = np.full((8, 7), 1.0)
    bench = make_active(contract=franka)
    bench.start()
    bench.infer()
    most = find_contract('').actions[0].limits.max_step_translation_m
    for _ in range(6):
        bench.observe()
        delta = bench.advance().translation
        assert np.linalg.norm([delta.x, delta.y, delta.z]) <= most


@pytest.mark.parametrize(('given', 'sentence'), [
    ({'contract': 'absolute.yaml'}, 'moves one end effector by displacements'),
    ({'contract': 'mixed.yaml'}, 'moves one end effector by displacements'),
    ({'contract': 'end_effector', 'max_step_translation_m': 0.5}, 'may only be tighter'),
    ({'contract': 'end_effector', 'frame_id': 'world'}, 'frame_id is world, but base_link')])
def test_a_contract_that_cannot_be_obeyed_moves_nothing(
        make_bench, capfd, given, sentence, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    plain, joints = (copy.deepcopy(to_plain(find_contract(name))) for name in ('', 'joint_arm'))
    mixed = {**plain, 'state': [*plain['state'], *joints['state']],
             'actions': [*plain['actions'], joints['actions'][0] | {'name': 'lift'}]}
    (tmp_path / 'mixed.yaml').write_text(yaml.safe_dump(mixed))
    plain['actions'][0]['kind'] = 'end_effector_absolute'
    (tmp_path / 'absolute.yaml').write_text(yaml.safe_dump(plain))
    bench = make_bench(**given)
    assert bench.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert bench.state == 'unconfigured'
    log = capfd.readouterr().err
    assert sentence in log and 'Traceback' not in log


def test_the_age_of_every_camera_is_in_the_diagnostics_by_its_name(make_active, franka):  # noqa: F811
    bench = make_active(contract=franka)
    bench.observe()

    def ages():
        return next(({value.key: float(value.value) for value in status.values
                      if value.key.endswith('age ms')}
                     for array in bench.robot.diagnostics[-1:] for status in array.status
                     if status.name.endswith(': commands')), None)

    assert list(bench.robot.wait(ages, 'diagnostics')) == [
        'third_person age ms', 'wrist age ms', 'side age ms', 'state age ms']


def test_the_status_tells_ages_by_the_names_of_the_contract(make_active, franka):  # noqa: F811
    bench = make_active(contract=franka)
    bench.start()
    bench.observe(streams=[stream for stream in bench.robot.inputs if stream != 'side'])
    bench.advance()
    status = bench.wait_status(lambda status: True)
    assert status.camera_names == ['third_person', 'wrist', 'side']
    *ages_ms, missing = status.camera_ages_ms
    assert all(0.0 <= age < 1e3 for age in ages_ms) and missing == float('inf')


def test_the_description_holds_the_whole_contract(make_active, franka):  # noqa: F811
    bench = make_active(contract=franka)
    infos = []
    bench.robot.create_subscription(PolicyInfo, 'policy_info', infos.append, qos.latched())
    bench.robot.wait(lambda: infos, 'the latched description')
    assert infos[0].cameras == ['third_person', 'wrist', 'side']
    assert len(infos[0].camera_transforms) == 3
    said = parse_contract(infos[0].contract)
    assert said.topics['side'] == '/side/rgb'  # as it is called in the graph
    robot = find_contract(franka)
    assert said.with_topics(robot.topics) == robot
