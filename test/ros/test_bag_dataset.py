"""Recorded bags as LeRobot datasets: through the contract, whole or not at all."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('pyarrow')
pytest.importorskip('av')
import yaml
from geometry_msgs.msg import TransformStamped, TwistStamped
from rclpy.serialization import serialize_message
from replay_bag import INSTRUCTION, PERIOD_NS, START_NS, make_bag
from rosbags.rosbag2 import StoragePlugin, Writer
from sensor_msgs.msg import JointState
from std_msgs.msg import Header

from vla_msgs.msg import JointCommand
from vla_policy_node.commands.dataset_from_bag import dataset_from_bags
from vla_policy_node.common.terminal import make_console
from vla_policy_node.contract.shipped import shipped_text
from vla_policy_node.lerobot.reader import LeRobotReader
from vla_policy_node.nodes.image_messages import to_image_message
from vla_policy_node.nodes.message_classes import message_class, type_name
from vla_policy_node.nodes.messages import to_time
from vla_policy_node.replay.dataset import BagDataset
from vla_policy_node.replay.dataset_rows import BagRequest
from vla_policy_node.training.dataset_choice import choose
from vla_policy_node.training.dataset_import import FRESH, DatasetImport
from vla_policy_node.training.demonstrations import Demonstrations
from vla_policy_node.wire.definitions import MessageDefinitions

ROWS = ('observation.state', 'action')
SIZE = (64, 80)


def write(bags, out, lossless=True, **request):
    work = BagDataset([*map(Path, bags)], BagRequest(**request), out, lossless)
    return work, [*work.run()]


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    return make_bag(tmp_path_factory.mktemp('bags') / 'bag', seconds=2.0)


def test_a_bag_becomes_an_episode_in_the_units_of_its_contract(bag, tmp_path):
    write([bag], tmp_path / 'set')
    dataset = LeRobotReader(tmp_path / 'set')
    assert (dataset.info.fps, dataset.tasks) == (20, [INSTRUCTION])
    assert dataset.info.features['action'].names == ('dx', 'dy', 'dz', 'drx', 'dry', 'drz',
                                                     'gripper')
    rows = dataset.rows(0, (*ROWS, FRESH))
    assert len(rows['index']) == 40
    expected = np.array([0, 0, 0.5, 0, 0, 0, 0.02, -0.02], np.float32)
    np.testing.assert_array_equal(rows['observation.state'], np.tile(expected, (40, 1)))
    np.testing.assert_allclose(rows['action'][:, 0], 0.001 / 0.05, rtol=1e-6)
    np.testing.assert_array_equal(rows['action'][:, 6], np.arange(40) < 20)
    np.testing.assert_array_equal(rows[FRESH][:6], [True, False, True, False, True, False])


def test_each_row_has_the_picture_that_was_newest(bag, tmp_path):
    write([bag], tmp_path / 'set')
    pictures = [*LeRobotReader(tmp_path / 'set').pictures(0, 'observation.images.third_person')]
    for row, picture in enumerate(pictures):
        left = (row // 2) % 24
        assert (picture[8:16, left:left + 8] == (200, 120, 40)).all()
        np.testing.assert_array_equal(picture, pictures[row // 2 * 2])


def test_it_is_imported_for_training_with_its_fresh_pictures(bag, tmp_path):
    write([bag], tmp_path / 'set')
    dataset = LeRobotReader(tmp_path / 'set')
    assert all(episode.new for episode in DatasetImport(
        dataset, choose(dataset.info, None, {}), tmp_path / 'demos', 'mine').run())
    demos = Demonstrations(tmp_path / 'demos')
    np.testing.assert_array_equal(demos.read(0, 'frame_step'), np.arange(0, 40, 2))
    assert demos.load(3).instruction == INSTRUCTION


def test_several_bags_become_one_dataset(bag, tmp_path, capsys):
    other = make_bag(tmp_path / 'other', seconds=1.0, instruction='push')
    dataset_from_bags([bag, other], BagRequest(), tmp_path / 'set', True, make_console())
    assert '2 episodes of 60 rows at 20 Hz, 2 of them new' in capsys.readouterr().out
    dataset = LeRobotReader(tmp_path / 'set')
    assert dataset.tasks == [INSTRUCTION, 'push'] and dataset.episodes[1].length == 20


def test_bags_of_different_pictures_are_refused(bag, tmp_path):
    other = make_bag(tmp_path / 'other', seconds=1.0, size=SIZE)
    with pytest.raises(ValueError, match='differ in robot, rate, cameras'):
        BagDataset([bag, other], BagRequest(), tmp_path / 'set', True)


def test_an_interrupted_run_is_no_dataset_and_goes_on_to_the_same(bag, tmp_path):
    write([bag, bag], tmp_path / 'whole')
    work = BagDataset([bag, bag], BagRequest(), tmp_path / 'set', True).run()
    next(work)
    work.close()
    assert not (tmp_path / 'set').exists()
    _, episodes = write([bag, bag], tmp_path / 'set')
    assert [episode.new for episode in episodes] == [False, True]
    for path in sorted((tmp_path / 'whole').rglob('*.parquet')):
        again = tmp_path / 'set' / path.relative_to(tmp_path / 'whole')
        assert again.read_bytes() == path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['set', 'whole']


def test_a_gap_ends_an_episode(tmp_path):
    def lost(index, message):
        return None if 8 <= index < 20 else message  # from 0.8 to 2 s

    bag = make_bag(tmp_path / 'bag', seconds=3.0, alter={'/wrist/image_raw': lost})
    work, _ = write([bag], tmp_path / 'set')
    lengths = [episode.length for episode in LeRobotReader(tmp_path / 'set').episodes]
    assert lengths == [25, 20]  # until half a second after the last picture, and from the next
    assert any('16 of 61 rows were left out' in note for note in work.notes)


def test_a_picture_that_cannot_be_decoded_is_the_one_before(tmp_path):
    def cut(index, message):
        if index == 5:
            message.height += 1
        return message

    bag = make_bag(tmp_path / 'bag', seconds=1.0, alter={'/wrist/image_raw': cut})
    work, _ = write([bag], tmp_path / 'set')
    pictures = [*LeRobotReader(tmp_path / 'set').pictures(0, 'observation.images.wrist')]
    np.testing.assert_array_equal(pictures[10], pictures[9])
    assert work.broken == 1


@pytest.mark.parametrize(('recipe', 'request_', 'sentence'), [
    ({'commands': False}, {}, 'no commands of end_effector.*--actions-topic'),
    ({}, {'fps': 10}, 'motions over 50 ms, and a row is 100 ms; give --fps 20'),
    ({'omit': ('/ee_pose',)}, {}, "no messages on '/ee_pose'.*a dataset is told what ee_pose"),
    ({'omit': ('/policy_status',)}, {}, 'does not say what the robot was asked'),
    ({}, {'measured': True}, '--measured takes joint positions'),
    ({}, {'topics': {'nose': '/nose'}}, 'no stream nose'),
])
def test_what_is_missing_is_said_with_what_to_do(tmp_path, recipe, request_, sentence):
    bag = make_bag(tmp_path / 'bag', seconds=1.0, **recipe)
    with pytest.raises(ValueError, match=sentence):
        BagDataset([bag], BagRequest(**request_), tmp_path / 'set', True)
    assert [path.name for path in tmp_path.iterdir()] == ['bag']


def test_small_pictures_make_no_video_and_that_is_said_before_any_work(bag, tmp_path):
    with pytest.raises(ValueError, match='--images'):
        BagDataset([bag], BagRequest(), tmp_path / 'set', False)


CONTRACT = {
    'format': 1, 'name': 'arm', 'cameras': [
        {'name': 'front', 'topic': 'front', 'transform': 'none', 'required': True}],
    'state': [{'name': 'joint_states', 'topic': 'joint_states',
               'type': 'sensor_msgs/msg/JointState', 'values': [
                   {'name': name, 'unit': 'rad', 'field': 'position', 'joint': name}
                   for name in ('a', 'b', 'finger')]}],
    'actions': [
        {'name': 'arm', 'kind': 'joint_position', 'topic': 'arm', 'joints': [
            {'name': name, 'unit': 'rad', 'min_position': -9.0, 'max_position': 9.0,
             'max_velocity': 1.0, 'max_acceleration': 1.0, 'max_step': 0.1, 'scale': scale}
            for name, scale in (('a', 1.0), ('b', 2.0))]},
        {'name': 'gripper', 'kind': 'gripper', 'open': 1.0, 'closed': 0.0, 'threshold': 0.5,
         'dead_band': 0.2, 'topic': 'gripper', 'open_position': 0.04, 'closed_position': 0.0,
         'joint': {'name': 'finger', 'unit': 'm', 'min_position': 0.0, 'max_position': 0.05,
                   'max_velocity': 1.0, 'max_acceleration': 1.0, 'max_step': 0.1}}]}


@pytest.fixture(scope='module')
def joint_bag(tmp_path_factory):
    """One second at 20 Hz of two joints and a finger, with a leader and with commands."""
    folder = tmp_path_factory.mktemp('joints')
    (folder / 'arm.yaml').write_text(yaml.safe_dump(CONTRACT))

    def messages(i, header):
        at = [0.1 * i, 0.2 * i, 0.002 * i]
        return {
            '/front': to_image_message(np.full((*SIZE, 3), i, np.uint8), header),
            '/joint_states': JointState(header=header, name=['b', 'finger', 'a', 'x'],
                                        position=[at[1], at[2], at[0], 9.0]),
            '/leader': JointState(header=header, name=['a', 'b', 'finger'],
                                  position=[at[0] + 2, at[1] + 2, 0.04]),
            '/joint_command': JointCommand(
                header=header, names=['a', 'b', 'finger'], kinds=[0, 0, 0],
                values=[at[0] + 1, at[1] + 1, at[2]], hold=i == 10)}

    record(folder / 'bag', messages)
    return folder


def record(path, messages):
    """Write a second at 20 Hz of messages by topic."""
    definitions, connections = MessageDefinitions(), {}
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        for i in range(21):
            stamp_ns = START_NS + i * PERIOD_NS
            header = Header(stamp=to_time(stamp_ns), frame_id='base_link')
            for topic, message in messages(i, header).items():
                kind = type_name(type(message))
                if topic not in connections:
                    connections[topic] = writer.add_connection(
                        topic, kind, typestore=definitions.learn(kind))
                writer.write(connections[topic], stamp_ns, serialize_message(message))


def test_poses_of_transforms_and_velocities_as_actions(tmp_path):
    plain = yaml.safe_load(shipped_text('end_effector'))
    plain['state'][0] |= {'topic': '/tf', 'type': 'tf2_msgs/msg/TFMessage',
                          'parent': 'base_link', 'child': 'hand'}
    (tmp_path / 'robot.yaml').write_text(yaml.safe_dump(plain))

    def messages(i, header):
        moved = TransformStamped(header=header, child_frame_id='hand')
        moved.transform.translation.z, moved.transform.rotation.w = 0.01 * i, 1.0
        twist = TwistStamped(header=header)
        twist.twist.linear.x = 0.1
        return {
            '/tf': message_class('tf2_msgs/msg/TFMessage')(transforms=[moved]),
            '/gripper_state': JointState(header=header, name=['l', 'r'], position=[0.01, -0.01]),
            '/third_person/image_raw': to_image_message(np.zeros((8, 8, 3), np.uint8), header),
            '/wrist/image_raw': to_image_message(np.zeros((8, 8, 3), np.uint8), header),
            '/twist': twist}

    record(tmp_path / 'bag', messages)
    request = {'contract': str(tmp_path / 'robot.yaml'), 'instruction': 'lift',
               'actions_topic': '/twist'}
    with pytest.raises(ValueError, match='/twist says nothing of the gripper'):
        write([tmp_path / 'bag'], tmp_path / 'set', **request)
    plain['actions'] = plain['actions'][:1]
    (tmp_path / 'robot.yaml').write_text(yaml.safe_dump(plain))
    write([tmp_path / 'bag'], tmp_path / 'set', **request)
    rows = LeRobotReader(tmp_path / 'set').rows(0, ROWS)
    np.testing.assert_allclose(rows['observation.state'][:, 2], 0.01 * np.arange(21), atol=1e-6)
    np.testing.assert_allclose(rows['action'][:, 0], 0.1 * 0.05 / 0.05, rtol=1e-6)


@pytest.mark.parametrize(('request_', 'expected'), [
    ({}, lambda i: [0.1 * i + 1, (0.2 * i + 1) / 2, 0.05 * i]),
    ({'actions_topic': '/leader'}, lambda i: [0.1 * i + 2, (0.2 * i + 2) / 2, 1.0]),
    ({'measured': True}, lambda i: [0.1 * (i + 1), 0.1 * (i + 1), 0.05 * (i + 1)])])
def test_joints_are_told_measured_or_led(joint_bag, tmp_path, request_, expected):
    write([joint_bag / 'bag'], tmp_path / 'set', contract=str(joint_bag / 'arm.yaml'),
          instruction='lift', **request_)
    dataset = LeRobotReader(tmp_path / 'set')
    assert dataset.info.features['action'].names == ('a', 'b', 'gripper')
    rows = dataset.rows(0, ROWS)
    assert len(rows['index']) == (20 if request_.get('measured') else 21)
    for i, (state, action) in enumerate(zip(*(rows[key] for key in ROWS), strict=True)):
        np.testing.assert_allclose(state, [0.1 * i, 0.2 * i, 0.002 * i], atol=1e-6)
        wanted = expected(9 if not request_ and i == 10 else i)  # what was held is the last one
        np.testing.assert_allclose(action, wanted, atol=1e-6)
    pictures = [*dataset.pictures(0, 'observation.images.front')]
    assert [int(picture[0, 0, 0]) for picture in pictures] == [*range(len(pictures))]


def test_a_topic_of_no_joints_is_refused(joint_bag, tmp_path):
    with pytest.raises(ValueError, match=r'on .*/front.*--actions-topic .*/leader'):
        write([joint_bag / 'bag'], tmp_path / 'set', contract=str(joint_bag / 'arm.yaml'),
              instruction='lift', actions_topic='/front')


def test_where_nothing_is_commanded_the_robot_stands_still_and_the_gripper_stays(tmp_path):
    def paused(index, message):
        return None if 10 <= index < 15 else message

    bag = make_bag(tmp_path / 'bag', seconds=1.0, alter={'/command': paused})
    work, _ = write([bag], tmp_path / 'set')
    actions = LeRobotReader(tmp_path / 'set').rows(0, ROWS)['action']
    np.testing.assert_array_equal(actions[11:14, :6], 0)
    np.testing.assert_array_equal(actions[11:14, 6], 1)
    assert any('nothing was commanded; they stand still' in note for note in work.notes)
