"""The policy node moves robots by their joints: one arm, two arms, positions and velocities."""

import copy
import math

import numpy as np
import pytest
import yaml
from node_bench import checkpoint, make_bench  # noqa: F401 - fixtures
from rclpy.lifecycle import TransitionCallbackReturn
from ros_testing import ros  # noqa: F401
from scripted import ScriptedPolicy
from trajectory_msgs.msg import JointTrajectory

from vla_msgs.msg import HoldReason, JointCommand, PolicyInfo
from vla_policy_node.contract import find_contract, to_plain
from vla_policy_node.contract.fit import spec_of
from vla_policy_node.contract.joints import joint_spec
from vla_policy_node.loop import parameters as loop_parameters
from vla_policy_node.nodes import qos
from vla_policy_node.policy.interface import ActionChunk, PolicyDescription

pytestmark = pytest.mark.usefixtures('ros')


class JointScript(ScriptedPolicy):
    """Wants the same of the joints in every period."""

    def __init__(self, robot):
        super().__init__()
        self.description = PolicyDescription(
            architecture='scripted', chunk_length=8, spec=spec_of(robot))
        self.wanted = np.zeros(robot.action_dimension)

    def answer(self, request):
        return ActionChunk(
            np.tile(self.wanted, (8, 1)), (), {'head': 1.0}, 'scripted', 32, 32)


@pytest.fixture
def make_joints(make_bench, monkeypatch):  # noqa: F811
    """Make active benches of a robot whose joints are where they may be."""

    def make(contract, **parameters):
        robot = find_contract(contract)
        script = JointScript(robot)
        monkeypatch.setattr(loop_parameters, 'load_policy', lambda **_: script)
        bench = make_bench(contract=contract, **parameters)
        spec = joint_spec(robot)
        bench.robot.positions = {
            joint.name: 0.5 * (joint.min_position + joint.max_position) for joint in spec.joints}
        script.wanted = np.array([
            1.0 if joint.gripper else bench.robot.positions[joint.name] / joint.scale
            for joint in spec.joints])
        bench.activate()
        return bench, script, spec

    return make


@pytest.fixture
def turning(tmp_path):
    """joint_arm, moved by velocities."""
    plain = copy.deepcopy(to_plain(find_contract('joint_arm')))
    plain['actions'][0] |= {
        'kind': 'joint_velocity', 'topic': 'arm_velocity_controller/commands',
        'command_timeout_s': 0.1}
    file = tmp_path / 'turning.yaml'
    file.write_text(yaml.safe_dump(plain))
    return str(file)


def run(bench, periods):
    """Observe and obey for some periods; return the last command."""
    for _ in range(periods):
        bench.infer()
        command = bench.advance()
        bench.robot.obey(command)
    return command


@pytest.mark.parametrize('contract', ['joint_arm', 'two_arms'])
def test_all_joints_go_where_the_policy_says_within_their_limits(make_joints, contract):
    bench, script, spec = make_joints(contract)
    bench.start()
    step = 0.5 * spec.column('max_step')
    script.wanted = script.wanted + np.where(
        [joint.gripper is None for joint in spec.joints], 4 * step, 0.0)
    before = np.array([bench.robot.positions[name] for name in spec.names])
    for _ in range(14):
        command = run(bench, 1)
        assert command.hold_reason.code == HoldReason.NONE, command.hold_reason
        assert tuple(command.names) == spec.names
        assert set(command.kinds) == {JointCommand.POSITION}
        values = np.array(command.values)
        assert (np.abs(values - before) <= spec.column('max_step') * (1 + 1e-6)).all()
        before = values
    arms = np.array([joint.gripper is None for joint in spec.joints])
    np.testing.assert_allclose(before[arms], script.wanted[arms], atol=1e-9)
    grippers = [joint for joint in spec.joints if joint.gripper]
    assert all(bench.robot.positions[joint.name] > 0.6 * joint.gripper.open_position
               for joint in grippers)


def test_the_policy_is_told_the_state_and_pictures_of_its_robot(make_joints):
    bench, script, _ = make_joints('two_arms')
    bench.start()
    run(bench, 1)
    observation = script.observations[-1]
    assert list(observation.images) == ['high', 'left_wrist', 'right_wrist']
    assert observation.proprio.shape == (14,)
    assert observation.proprio[6] == pytest.approx(0.5, abs=1e-3), 'the gripper, half open'


def test_velocities_are_sent_and_end_with_a_stop(make_joints, turning):
    bench, script, _ = make_joints(turning)
    bench.start()
    script.wanted[:7] = 0.1
    command = run(bench, 12)
    assert list(command.kinds) == [JointCommand.VELOCITY] * 7 + [JointCommand.POSITION]
    np.testing.assert_allclose(command.values[:7], 0.1)
    bench.robot.call('cancel')
    command = bench.wait_command(lambda command: command.hold)
    assert list(command.values[:7]) == [0.0] * 7
    assert command.values[7] > 0.0


@pytest.mark.parametrize('stale', ['left_arm', 'right_arm'])
def test_an_arm_that_is_not_heard_holds_both(make_joints, stale):
    bench, *_ = make_joints('two_arms')
    bench.start()
    sent = run(bench, 3)
    others = [stream for stream in bench.robot.inputs if stream != stale]
    for _ in range(8):
        bench.observe(streams=others)
        command = bench.advance()
    assert (command.hold_reason.code, command.hold_reason.stream) == (
        HoldReason.INPUT_STALE, stale)
    np.testing.assert_allclose(command.values, sent.values, atol=0.05)
    before = list(command.values)
    assert list(bench.advance().values) == before


@pytest.mark.parametrize(('name', 'position'), [
    (['left_waist'], [0.0]), ([], []), (None, [math.nan] * 8), (None, [0.0] * 3)])
def test_messages_without_the_joints_hold_everything(make_joints, name, position):
    bench, *_ = make_joints('two_arms')
    bench.start()
    assert not run(bench, 2).hold
    bench.robot.alter['left_arm'] = lambda message: type(message)(
        header=message.header, name=message.name if name is None else name, position=position)
    bench.observe()
    command = bench.advance()
    assert command.hold and (command.hold_reason.code, command.hold_reason.stream) == (
        HoldReason.INPUT_INVALID, 'left_arm')


@pytest.mark.parametrize('stop', ['cancel', 'estop', 'deactivate', 'signal'])
def test_every_stop_is_a_hold_at_the_last_positions(make_joints, stop):
    bench, script, _ = make_joints('joint_arm')
    bench.start()
    script.wanted = script.wanted + 0.2
    sent = run(bench, 3)
    assert not sent.hold
    if stop == 'deactivate':
        assert bench.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    elif stop == 'signal':
        bench.node.stand_still()
    else:
        assert bench.robot.call(stop).success
    held = bench.wait_command(lambda command: command.hold)
    assert list(held.values) == list(sent.values)


def test_a_hold_before_the_first_action_names_no_position(make_joints):
    bench, *_ = make_joints('joint_arm')
    command = bench.advance()
    assert command.hold and np.isnan(command.values).all()


def test_a_wild_policy_breaks_no_bound_and_a_nan_holds(make_joints):
    bench, script, spec = make_joints('joint_arm')
    bench.start()
    low, high = spec.column('min_position'), spec.column('max_position')
    for wild in (1e5, -1e5):
        script.wanted[:] = wild
        for _ in range(6):
            command = run(bench, 1)
            assert not command.hold and command.limited
            assert ((low <= command.values) & (np.array(command.values) <= high)).all()
    script.wanted[3] = math.nan
    bench.observe()
    for _ in range(10):
        command = bench.advance()
    assert command.hold


def test_somebody_else_who_commands_a_controller_beside_the_guard_is_a_hold(make_joints):
    bench, *_ = make_joints('two_arms')
    topic = find_contract('two_arms').actions[2].topic
    for _ in range(2):  # the guard, and somebody
        bench.robot.create_publisher(JointTrajectory, topic, 1)
    bench.start()

    def held():
        bench.observe()
        reason = bench.advance().hold_reason
        return (reason.code, reason.stream) == (HoldReason.SOURCE_CONFLICT, f'/{topic}')

    assert bench.robot.wait(held, 'the hold')


def test_a_policy_for_another_robot_does_not_configure(make_joints, make_bench, capfd):  # noqa: F811
    make_joints('joint_arm')  # loads the policy for one arm from now on
    bench = make_bench(contract='two_arms')
    assert bench.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert "the camera 'third_person'" in capfd.readouterr().err


def test_parameters_of_end_effectors_are_none_of_a_robot_with_joints(make_bench, capfd):  # noqa: F811
    bench = make_bench(contract='joint_arm', max_step_translation_m=0.01)
    assert bench.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert 'There is no parameter max_step_translation_m' in capfd.readouterr().err


def test_counters_and_the_description_are_those_of_joints(make_joints):
    bench, script, spec = make_joints('joint_arm')
    bench.start()
    script.wanted[:] = 1e5
    run(bench, 3)
    infos = []
    bench.robot.create_subscription(PolicyInfo, 'policy_info', infos.append, qos.latched())
    bench.robot.wait(lambda: infos, 'the latched description')
    assert tuple(infos[0].action.names) == spec.names
    assert bench.counters()['limit.joint_step'] > 0
