"""A policy of one camera without state runs on a robot with one camera, live, recorded, played."""

# ruff: noqa: F401, F811 - fixtures are imported by name

import copy

import checkpoint_variants
import pytest
import yaml
from node_bench import PERIOD_NS, checkpoint, is_still, make_bench, script
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from replay_bag import make_bag
from robot_double import TIMEOUT_S
from ros_testing import ros
from test_player_node import parameters, play, replayed

from vla_msgs.msg import HoldReason
from vla_policy_node.contract import find_contract, to_plain
from vla_policy_node.nodes.messages import to_ns
from vla_policy_node.nodes.recorder_node import RecorderNode
from vla_policy_node.replay.evaluate import replay_bag
from vla_policy_node.replay.settings import ReplaySettings

NEEDED = ['third_person', 'ee_pose']


@pytest.fixture(scope='module')
def cogact(tmp_path_factory):
    folder = tmp_path_factory.mktemp('cogact')
    return {'checkpoint': str(checkpoint_variants.make(
        folder / 'tiny', 'cogact', **checkpoint_variants.COGACT)), 'methods': ['dense']}


def contract(folder, change):
    """Write a contract like the default one, but for what `change` does."""
    plain = copy.deepcopy(to_plain(find_contract('')))
    change(plain)
    file = folder / 'robot.yaml'
    file.write_text(yaml.safe_dump(plain))
    return str(file)


def look(bench):
    """Send what a robot with one camera has, and wait for the answer."""
    before = len(bench.robot.chunks)
    bench.observe(streams=NEEDED)
    bench.robot.wait(lambda: len(bench.robot.chunks) > before, 'a chunk')


def test_one_camera_and_a_pose_move_the_arm_and_nothing_else_is_listened_to(
        make_bench, cogact, capfd):
    bench = make_bench(**cogact).activate()
    assert 'Inputs that are needed: third_person, ee_pose.' in capfd.readouterr().err
    assert not any(bench.robot.inputs[stream].get_subscription_count()
                   for stream in ('wrist', 'gripper_state'))
    bench.start()
    look(bench)
    assert not bench.advance().hold
    status = bench.wait_status(lambda status: status.steps > 0)
    assert list(status.camera_names) == ['third_person']
    assert status.state_age_ms < 1e3
    bench.set_clock(bench.now_ns + 20 * PERIOD_NS)
    [values] = bench.robot.wait(lambda: [
        {value.key: value.value for value in found.values}
        for diagnostics in bench.robot.diagnostics[-1:] for found in diagnostics.status
        if found.name.endswith(': commands')], 'diagnostics')
    assert 'third_person age ms' in values and 'wrist age ms' not in values


def test_without_a_pose_nothing_moves_whatever_the_policy_is_told(make_bench, cogact, script):
    bench = make_bench(**cogact).activate()
    script.forget()
    bench.start()
    bench.observe(streams=['third_person'])
    command = bench.advance()
    assert is_still(command)
    assert (command.hold_reason.code, command.hold_reason.stream) == (
        HoldReason.INPUT_MISSING, 'ee_pose')
    assert not script.calls


def test_a_policy_that_can_never_be_in_time_says_so_before_it_holds(make_bench, tmp_path, capfd):
    openvla = checkpoint_variants.make(tmp_path / 'openvla', 'autoregressive')
    bench = make_bench(checkpoint=str(openvla), methods=['dense'], control_rate_hz=200.0)
    bench.configure()
    assert 'too long for 1 action at 200 Hz: none will be in time' in capfd.readouterr().err


def test_a_contract_without_a_pose_moves_nothing(make_bench, cogact, tmp_path, capfd):
    def forget_state(plain):
        plain['state'], plain['actions'][0]['pose'] = [], ''

    bench = make_bench(**cogact, contract=contract(tmp_path, forget_state))
    assert bench.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert 'actions.arm.pose is empty' in capfd.readouterr().err


def test_a_camera_that_is_required_is_missed_though_nobody_looks(make_bench, cogact, tmp_path):
    bench = make_bench(**cogact, contract=contract(
        tmp_path, lambda plain: plain['cameras'][1].update(required=True))).activate()
    bench.start()
    bench.observe(streams=NEEDED)
    command = bench.advance()
    assert is_still(command)
    assert (command.hold_reason.code, command.hold_reason.stream) == (
        HoldReason.INPUT_MISSING, 'wrist')


def test_a_recording_of_one_camera_is_whole_and_is_replayed(
        ros, make_bench, cogact, tmp_path, capfd):
    bench = make_bench(**cogact).activate()
    node = RecorderNode(parameter_overrides=[
        Parameter('output', value=str(tmp_path / 'bag')), Parameter('use_sim_time', value=True)])
    bench._executors[1].add_node(node)
    try:
        bench.robot.wait(lambda: all(
            bench.robot.inputs[stream].get_subscription_count() == 2 for stream in NEEDED)
            and node._listened, 'the recorder')
        bench.start()
        for _ in range(4):
            look(bench)
            bench.advance()
        bench.robot.wait(lambda: node._writer.written['/action_chunk'] >= 4, 'the bag')
        assert node._silent(needed=True) == []
        assert '/wrist/image_raw' in node._silent(needed=False)
    finally:
        bench._executors[1].remove_node(node)
        node.destroy_node()
    assert 'Nothing came on' not in capfd.readouterr().err
    found = replay_bag(tmp_path / 'bag', ReplaySettings(
        'dense', checkpoint=cogact['checkpoint'], video=False), lambda what, share: None)
    assert len(found.traces[0].inferences) >= 3


@pytest.mark.parametrize('lock_step', [True, False])
def test_a_bag_of_one_camera_is_played_and_moves_the_arm(
        ros, play, parameters, cogact, tmp_path, lock_step):
    bag = make_bag(tmp_path / 'bag', seconds=1.0, omit=('/wrist/image_raw', '/gripper_state'))
    changes = cogact if lock_step else {**cogact, 'pacing': 'timer', 'max_age_s': 1.0}
    live = play(bag, changes, lock_step=lock_step)
    assert live.ended.wait(3 * TIMEOUT_S)
    assert not live.player.failed
    if not lock_step:
        assert any(not command.hold for command in live.commands)
        return
    expected = [command for _, command in replayed(bag, {**parameters, **cogact}, tmp_path)]
    sent = live.commands_of_observations()
    assert [to_ns(one.target_time) for one in sent] == [one.target_time_ns for one in expected]
    assert sum(not one.hold for one in sent) > 5


def test_a_bag_without_a_pose_is_not_played_and_says_why(ros, play, cogact, tmp_path, capfd):
    bag = make_bag(tmp_path / 'bag', seconds=0.3, omit=(
        '/wrist/image_raw', '/gripper_state', '/ee_pose'))
    live = play(bag, cogact, lock_step=True)
    assert live.ended.wait(3 * TIMEOUT_S)
    assert live.player.failed
    assert 'without ee_pose nothing may be moved (`vla replay` moves nothing)' in (
        capfd.readouterr().err)
