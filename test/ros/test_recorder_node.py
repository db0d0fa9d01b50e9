"""The recorder: a bag that a replay understands, whatever happens to the recorder."""

# ruff: noqa: F401, F811 - fixtures are imported by name

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml
from geometry_msgs.msg import TransformStamped
from node_bench import START_NS, checkpoint, create_tiny_checkpoint, make_bench
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from robot_double import TIMEOUT_S
from ros_testing import ros
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from vla_msgs.msg import ActionChunk, TokenSelection
from vla_policy_node.contract import find_contract, to_plain
from vla_policy_node.contract.fit import differences
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.bag_writer import BagWriter, RecordingError
from vla_policy_node.nodes.message_classes import message_class
from vla_policy_node.nodes.messages import to_ns
from vla_policy_node.nodes.parameters import ParameterError
from vla_policy_node.nodes.recorder_node import RecorderNode
from vla_policy_node.replay.bag import Bag
from vla_policy_node.replay.evaluate import replay_bag
from vla_policy_node.replay.repair import repair_bag
from vla_policy_node.replay.settings import ReplaySettings, parameters_of, read_info
from vla_policy_node.replay.topics import CHUNK, RECORDS, decode
from vla_policy_node.system.files import read_config
from vla_policy_node.system.recorded import RECORDED_PARAMETERS, RECORDED_ROBOT, UntrustedBagError
from vla_policy_node.wire.cdr import read_transforms

HEADER = 'std_msgs/msg/Header'


@pytest.fixture
def recorder(ros, tmp_path):
    node = RecorderNode(parameter_overrides=[
        Parameter('output', value=str(tmp_path / 'bag')),
        Parameter('use_sim_time', value=True)])
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin)
    thread.start()

    def finish():
        if thread.is_alive():
            executor.shutdown()
            thread.join()
            node.destroy_node()
        return tmp_path / 'bag'

    yield node, finish
    finish()


def test_transforms_are_recorded_with_the_static_ones_that_came_before(ros, tmp_path):
    """As a robot's static broadcaster, which speaks once."""
    pytest.importorskip('tf2_msgs')
    plain = to_plain(find_contract('franka_libero'))
    contract = tmp_path / 'robot.yaml'
    contract.write_text(yaml.safe_dump(plain))
    kind = message_class('tf2_msgs/msg/TFMessage')
    talker = Node('talker')
    fixed = talker.create_publisher(kind, '/tf_static', qos.static_transforms())
    moving = talker.create_publisher(kind, '/tf', qos.observation_output())
    fixed.publish(kind(transforms=[TransformStamped(child_frame_id='panda_hand_tcp')]))
    node = RecorderNode(parameter_overrides=[
        Parameter('output', value=str(tmp_path / 'bag')),
        Parameter('contract', value=str(contract))])
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    deadline = time.monotonic() + TIMEOUT_S
    while not {'/tf', '/tf_static'} <= node._heard:
        assert time.monotonic() < deadline
        moving.publish(kind())
        executor.spin_once(timeout_sec=0.05)
    executor.shutdown()
    node.destroy_node()
    talker.destroy_node()
    with Bag(tmp_path / 'bag') as bag:
        assert bag.types['/tf'] == bag.types['/tf_static'] == 'tf2_msgs/msg/TFMessage'
        (raw,) = [raw for _, _, raw in bag.messages(['/tf_static'])]
    assert [link.child for link in read_transforms(raw, static=True)] == ['panda_hand_tcp']


def test_a_recorded_run_is_replayed_with_its_own_parameters(recorder, make_bench):
    """Policy node and robot over DDS; the replay finds instruction, parameters, actions."""
    node, finish = recorder
    bench = make_bench(max_age_s=0.7).activate()
    bench.robot.wait(
        lambda: all(p.get_subscription_count() == 2 for p in bench.robot.inputs.values())
        and bench.node._outputs.commands.get_subscription_count() == 2, 'the recorder')
    bench.start()
    for _ in range(6):
        bench.infer()
        bench.advance()
    bench.robot.wait(lambda: (node._writer.path / RECORDED_PARAMETERS).is_file(), 'policy.yaml')
    bench.robot.wait(lambda: node._writer.written['/action_chunk'] >= 6
                     and node._writer.written['/command'] >= 6, 'the bag')
    bag = finish()
    recorded = read_config(bag / RECORDED_PARAMETERS)['policy']
    assert recorded['max_age_s'] == 0.7
    with Bag(bag) as opened:
        assert {'/policy_info', '/policy_status', '/action_chunk', '/token_selection', '/command',
                '/third_person/image_raw', '/ee_pose'} <= opened.types.keys()
    with pytest.raises(UntrustedBagError, match='asks for the checkpoint'):
        replay_bag(bag, ReplaySettings(), lambda what, share: None)
    trusting = ReplaySettings(trust_bag=True)
    evaluation = replay_bag(bag, trusting, lambda what, share: None)
    assert evaluation.traces[0].label == 'lightvla'
    assert evaluation.report['bag']['recorded_policy']['methods'] == ['lightvla']
    turned, untrained = evaluation.report['notes']
    assert 'rx is 0 rad, outside' in turned  # as no demonstration has it, and nothing else is odd
    assert untrained == 'The policy is untrained: its weights are random.'
    assert evaluation.report['a']['actions']['chunk_elements'] >= 6
    with Bag(bag) as opened:
        chunks = [decode(raw, RECORDS[CHUNK], CHUNK) for _, _, raw in opened.messages({CHUNK})]
    recorded_actions = {to_ns(chunk.header.stamp): list(chunk.actions) for chunk in chunks}
    again = {i.stamp_ns: i.actions.ravel().tolist() for i in evaluation.traces[0].inferences}
    shared = recorded_actions.keys() & again.keys()
    # Of the first the goal was not heard of yet, during the last one it ended.
    assert len(shared) >= 4
    assert all(recorded_actions[stamp_ns] == again[stamp_ns] for stamp_ns in shared)

    # Without its policy.yaml the bag still says most of it.
    (bag / RECORDED_PARAMETERS).unlink()
    with Bag(bag) as opened:
        parameters, notes = parameters_of('', trusting, opened, read_info(opened))
    assert parameters.checkpoint == recorded['checkpoint']
    assert parameters.method_names == ('lightvla',)
    assert 'the rest is as policy_info says' in notes[0]


ROLES = ('high', 'left', 'right')


def test_a_robot_with_other_cameras_is_recorded_and_replayed_by_its_contract(
        recorder, make_bench, tmp_path):
    """Nobody tells the recorder, nor the replay, whose cameras these are."""
    node, finish = recorder
    plain = to_plain(find_contract(''))
    plain['cameras'] = [{'name': role, 'topic': f'cam_{role}/rgb'} for role in ROLES]
    plain['state'][0]['name'] = plain['actions'][0]['pose'] = 'tool'
    contract = tmp_path / 'mine.yaml'
    contract.write_text(yaml.safe_dump(plain))
    checkpoint = create_tiny_checkpoint(tmp_path / 'three', cameras=list(ROLES))
    bench = make_bench(contract=str(contract), checkpoint=str(checkpoint)).activate()
    bench.robot.wait(
        lambda: all(p.get_subscription_count() == 2 for p in bench.robot.inputs.values())
        and bench.node._outputs.commands.get_subscription_count() == 2, 'the recorder')
    selections = []
    bench.robot.create_subscription(
        TokenSelection, 'token_selection', selections.append, qos.event_output())
    bench.start()
    for _ in range(6):
        bench.infer()
        command = bench.advance()
    assert not command.hold
    status = bench.wait_status(lambda status: status.steps > 0)
    assert tuple(status.camera_names) == ROLES and max(status.camera_ages_ms) < 1e3
    bench.robot.wait(lambda: {s.camera for s in selections} == {*ROLES}, 'selections')
    bench.robot.wait(lambda: node._writer.written['/action_chunk'] >= 6
                     and (node._writer.path / RECORDED_PARAMETERS).is_file(), 'the bag')
    bag = finish()
    found = find_contract(str(bag / RECORDED_ROBOT))
    assert found.topics['left'] == '/cam_left/rgb'
    assert differences(found, find_contract(str(contract))) == ()
    assert not any('/third_person/image_raw' in topic for topic in node._silent(needed=True))
    contract.unlink()  # as on another machine
    for change in (lambda: None, (bag / RECORDED_ROBOT).unlink):  # then policy_info says it
        change()
        evaluation = replay_bag(bag, ReplaySettings(trust_bag=True), lambda what, share: None)
        trace = evaluation.traces[0]
        assert tuple(trace.inferences[0].camera_stamps_ns) == ROLES and trace.commands
        assert {*trace.grids} == {*ROLES}


def test_topics_on_which_nothing_came_are_named(ros, tmp_path, capfd):
    node = RecorderNode(parameter_overrides=[
        Parameter('output', value=str(tmp_path / 'bag')),
        Parameter('extra_topics', value=['/tf'])])
    node._keep('/wrist/image_raw', 'sensor_msgs/msg/Image', serialize_message(Image()))
    node.destroy_node()
    assert node.recorded
    said = capfd.readouterr().err
    assert 'Nothing came on /third_person/image_raw, /ee_pose, /gripper_state, /tf; see' in said
    assert 'Also silent: /command, ' in said


def test_messages_without_a_clock_are_said(recorder, capfd):
    node, finish = recorder
    node._keep('/wrist/image_raw', 'sensor_msgs/msg/Image', serialize_message(Image()))
    finish()
    assert not node.recorded
    assert 'Messages come, but no /clock' in capfd.readouterr().err


def test_a_recording_of_nothing_ends_with_exit_code_1(tmp_path):
    process = subprocess.Popen(
        [sys.executable, '-m', 'vla_policy_node.cli', 'record', str(tmp_path / 'bag')],
        stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if 'Recording to' in line:
            process.send_signal(signal.SIGINT)
            break
    said = process.stderr.read()
    assert process.wait(TIMEOUT_S) == 1
    assert f"Nothing came, so '{tmp_path / 'bag'}' is empty." in said
    assert 'Traceback' not in said


def test_a_recording_that_cannot_begin_ends_with_exit_code_2(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'vla_policy_node.cli', 'record', str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert 'exists; name a new folder' in done.stderr


def test_a_recorder_needs_no_torch():
    code = 'import sys, vla_policy_node.nodes.recorder_node; assert "torch" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)


def test_of_a_robot_with_joints_their_commands_are_recorded(ros, tmp_path):
    node = RecorderNode(parameter_overrides=[
        Parameter('output', value=str(tmp_path / 'bag')),
        Parameter('contract', value='two_arms')])
    topics = {subscription.topic_name for subscription in node.subscriptions}
    node.destroy_node()
    assert {'/joint_command', '/follower_left/joint_states', '/cam_high/image_raw'} <= topics
    assert not topics & {'/command', '/ee_pose'}


def test_a_folder_that_exists_is_not_recorded_over(ros, tmp_path):
    for output, reason in ((str(tmp_path), 'exists; name a new folder'), ('', 'output is empty')):
        with pytest.raises(ParameterError, match=reason):
            RecorderNode(parameter_overrides=[Parameter('output', value=output)])


def test_what_the_disk_cannot_take_is_dropped_and_counted(tmp_path, monkeypatch):
    gate = threading.Event()
    write = BagWriter._write
    monkeypatch.setattr(
        BagWriter, '_write', lambda self, *item: (gate.wait(TIMEOUT_S), write(self, *item)))
    writer = BagWriter(tmp_path / 'bag', 'mcap', False, queue_mb=1)
    raw = serialize_message(Header(frame_id='x' * 300_000))
    for index in range(10):
        writer.add('/big', HEADER, index, raw)
    gate.set()
    writer.close()
    assert writer.written['/big'] == 3
    assert writer.dropped['/big'] == 7


def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path, monkeypatch):
    writer = BagWriter(tmp_path / 'bag', 'mcap', False, queue_mb=1)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer._writer, 'write', full)
    writer.add('/a', HEADER, 1, serialize_message(Header()))
    writer.close()
    assert writer.problem.startswith(f"Recording to '{tmp_path / 'bag'}' ended: No space left")
    writer.add('/a', HEADER, 2, b'')
    assert writer.dropped['/a'] == 1


_KILLED = '''
import os, signal, sys
from pathlib import Path
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vla_msgs.msg import ActionChunk, TokenSelection
from vla_policy_node.contract import find_contract, to_plain
from vla_policy_node.contract.fit import differences
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.bag_writer import BagWriter
writer = BagWriter(Path(sys.argv[1]), 'mcap', False, 64)
raw = serialize_message(Header(frame_id='x' * 100_000))
for index in range(40):
    writer.add('/a', 'std_msgs/msg/Header', 1 + index, raw)
while writer.written['/a'] < 40:
    pass
os.kill(os.getpid(), signal.SIGKILL)
'''


def test_a_killed_recorder_leaves_what_can_be_repaired(tmp_path):
    bag = tmp_path / 'bag'
    done = subprocess.run([sys.executable, '-c', _KILLED, str(bag)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    repaired, count = repair_bag(bag)
    assert 25 <= count <= 40  # all but what was in the last chunk
    with Bag(repaired) as whole:
        assert [time_ns for _, time_ns, _ in whole.messages({'/a'})] == [*range(1, count + 1)]
