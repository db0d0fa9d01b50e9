"""`vla bag info` says which topic feeds which input, how well, and why one does not."""

import re

import checkpoint_variants
import pytest
from sensor_bytes import (
    COMPRESSED,
    IMAGE,
    JOINTS,
    POSE,
    TRANSFORMS,
    compressed,
    image,
    joints,
    pose,
    transforms,
    write_topics,
)
from typer.testing import CliRunner

from vla_policy_node.cli import app
from vla_policy_node.contract import find_contract
from vla_policy_node.contract.fit import kinds_of_policies
from vla_policy_node.replay.bag import Bag
from vla_policy_node.replay.inspection import inspect

T = 10**12
STEP_NS = 100_000_000
TIMES = [T + index * STEP_NS for index in range(20)]
KINDS = {'/third_person/image_raw': IMAGE, '/wrist/image_raw/compressed': COMPRESSED,
         '/ee_pose': POSE, '/gripper_state': JOINTS}
MAKE = {IMAGE: image, COMPRESSED: compressed, POSE: pose, JOINTS: joints}


@pytest.fixture
def look(tmp_path):
    """Write a bag and inspect it. changes: topic -> function of the time, or None to omit it."""
    def run(changes=None, kinds=None):
        named = {**KINDS, **(kinds or {})}
        makers = {name: MAKE.get(kind) for name, kind in named.items()} | (changes or {})
        topics = {name: [(t, make(t)) for t in TIMES] for name, make in makers.items() if make}
        path = write_topics(tmp_path / 'a.mcap', topics, named)
        with Bag(path) as bag:
            return inspect(bag, find_contract(''))

    return run


def of(found, name):
    return next(one for one in found.inputs if one.name == name)


def test_a_complete_bag_is_ready_and_its_rates_and_distances_are_said(look):
    found = look({'/ee_pose': lambda t: pose(t + 7_000_000)})
    assert found.ready
    assert [one.topic for one in found.inputs] == [*KINDS]
    for topic in found.topics:
        assert topic.rate_hz == pytest.approx(10.0)
        assert topic.gap_s == pytest.approx(0.1)
    assert of(found, 'ee_pose').apart_ms == pytest.approx((7.0, 7.0))
    assert of(found, 'wrist').apart_ms == (0.0, 0.0)
    assert of(found, 'third_person').apart_ms is None
    assert {topic.name: topic.contents for topic in found.topics} == {
        '/third_person/image_raw': '32x24 rgb8',
        '/wrist/image_raw/compressed': '32x24 jpeg (rgb8; jpeg compressed bgr8)',
        '/ee_pose': 'in base_link', '/gripper_state': '2 joints: joint0, joint1'}
    assert found.remarks == (
        'No /policy_status says what the robot was asked to do: give --instruction.',
        'No actions on /command to compare with.')


STILL = (0.0, 0.0, 0.0, 1.0)


def arm(t, base='panda_link0'):
    return transforms([(base, 'panda_link8', t, (0.0, 0.0, 1.0), STILL),
                       ('panda_link8', 'panda_hand', 0, (0.0,) * 3, STILL),
                       ('panda_hand', 'panda_hand_tcp', 0, (0.0, 0.0, 0.1), STILL),
                       ('panda_hand', 'panda_leftfinger', t, (0.0,) * 3, STILL),
                       ('panda_hand', 'wrist_camera_tool', t, (0.0,) * 3, STILL),
                       ('map', 'other_base', t, (0.0,) * 3, STILL)])


@pytest.mark.parametrize(('base', 'parent'), [
    ('panda_link0', 'panda_link0'), ('base_link', 'base_link')])
def test_a_franka_is_told_which_frames_and_which_joints_could_be_what_is_missing(
        look, base, parent):
    nine = [f'panda_joint{i}' for i in range(1, 8)] + ['panda_finger_joint1',
                                                       'panda_finger_joint2']
    found = look({
        '/ee_pose': None, '/gripper_state': None, '/tf': lambda t: arm(t, base),
        '/joint_states': lambda t: joints(t, [0.02] * 9, nine)},
        {'/tf': TRANSFORMS, '/joint_states': JOINTS})
    assert of(found, 'ee_pose').problem == (
        'No other topic has geometry_msgs/msg/PoseStamped. From /tf it could be '
        f'tf2_msgs/msg/TFMessage with parent: {parent}, child: panda_hand_tcp or panda_hand.')
    assert of(found, 'gripper_state').problem.endswith(
        'With `joint:` in the contract, /joint_states has panda_finger_joint1 and '
        'panda_finger_joint2.')
    assert not found.ready


@pytest.mark.parametrize('tf', [
    lambda t: b'', lambda t: transforms([]), lambda t: transforms(
        [('a', 'b', t, (0.0,) * 3, STILL), ('b', 'a', t, (0.0,) * 3, STILL)])])
def test_transforms_that_lead_nowhere_are_no_advice(look, tf):
    found = look({'/ee_pose': None, '/tf': tf}, {'/tf': TRANSFORMS})
    assert of(found, 'ee_pose').problem == 'No other topic has geometry_msgs/msg/PoseStamped.'


def test_joints_of_several_nodes_on_one_topic_are_found(look):
    """Every other message is of the arm."""
    found = look({'/gripper_state': lambda t: joints(t, (0.1,) * (2 if t // STEP_NS % 2 else 7))},
                 {})
    assert of(found, 'gripper_state').problem == ''


@pytest.mark.parametrize(('changes', 'kinds', 'stream', 'problem'), [
    ({'/wrist/image_raw/compressed': None}, {'/cam/color': IMAGE, '/cam/depth': IMAGE}, 'wrist',
     'Name one: --wrist-topic /cam/color.'),
    ({'/wrist/image_raw/compressed': None}, {'/cam/depth': IMAGE}, 'wrist',
     'No other topic has a picture with colours.'),
    ({'/gripper_state': None, '/joint_states': lambda t: joints(t, (1.0, 2.0, 3.0))},
     {'/joint_states': JOINTS}, 'gripper_state',
     'Name one: --gripper-state-topic /joint_states; but: A message of gripper_state has 3 '),
    ({'/ee_pose': lambda t: pose(t, 'world')}, {}, 'ee_pose', "is in frame 'world'"),
    ({'/ee_pose': image}, {'/ee_pose': IMAGE}, 'ee_pose',
     'It is sensor_msgs/msg/Image; geometry_msgs/msg/PoseStamped is needed.'),
    ({'/gripper_state': lambda t: joints(0)}, {}, 'gripper_state', '--stamps log'),
    ({'/ee_pose': lambda t: pose(t + 10**12)}, {}, 'ee_pose', 'more than 10 s from those of the'),
    ({'/third_person/image_raw': lambda t: image(t, '32FC1', 4)}, {}, 'third_person',
     "'32FC1' is not supported"),
    ({'/ee_pose': lambda t: b'\0\1'}, {}, 'ee_pose', 'does not begin'),
])
def test_why_an_input_cannot_be_used_is_said(look, changes, kinds, stream, problem):
    found = look(changes, kinds)
    assert problem in of(found, stream).problem
    assert not found.ready


def test_the_command_prints_it_and_its_exit_code_says_whether_all_is_there(tmp_path):
    path = write_topics(tmp_path / 'a.mcap', {
        name: [(t, MAKE[kind](t)) for t in TIMES] for name, kind in KINDS.items()}, KINDS)
    done = CliRunner().invoke(app, ['bag', 'info', str(path)], env={'COLUMNS': '160'})
    assert done.exit_code == 0
    assert 'All inputs are there.' in done.output
    assert re.search(r'wrist\s+│ /wrist/image_raw/compressed\s+│\s+0\.0', done.output)
    path = write_topics(tmp_path / 'b.mcap', {'/ee_pose': [(T, pose(T))]}, KINDS)
    assert CliRunner().invoke(app, ['bag', 'info', str(path)]).exit_code == 1
    done = CliRunner().invoke(app, ['bag', 'info', str(tmp_path / 'c.mcap')])
    assert (done.exit_code, done.output.strip()) == (
        2, f"There is no bag '{tmp_path / 'c.mcap'}'.")
    done = CliRunner().invoke(app, ['bag', 'info', str(path), '--contract', 'nobody'])
    assert done.exit_code == 2


def test_names_of_a_bag_move_no_cursor_and_are_no_markup(tmp_path):
    name = '/a\x1b[2J[red]b'
    path = write_topics(tmp_path / 'a.mcap', {name: [(T, pose(T, '\x1b]0;x'))]}, {name: POSE})
    done = CliRunner().invoke(app, ['bag', 'info', str(path)], env={'COLUMNS': '160'})
    assert '\x1b' not in done.output
    assert '/a?[2J[red]b' in done.output


@pytest.mark.parametrize('columns', ['40', '60', '80'])
def test_a_narrow_terminal_shows_the_whole_names(tmp_path, columns):
    path = write_topics(tmp_path / 'a.mcap', {
        name: [(t, MAKE[kind](t)) for t in TIMES] for name, kind in KINDS.items()}, KINDS)
    done = CliRunner().invoke(app, ['bag', 'info', str(path)], env={'COLUMNS': columns})
    assert done.exit_code == 0
    assert '…' not in done.output


def test_a_robot_in_a_namespace_is_found_and_the_frame_is_that_of_the_recording(tmp_path):
    kinds = {f'/r1{name}': kind for name, kind in KINDS.items()}
    make = MAKE | {POSE: lambda t: pose(t, 'world')}
    bag = str(write_topics(
        tmp_path / 'a.mcap', {name: [(t, make[kind](t)) for t in TIMES]
                              for name, kind in kinds.items()}, kinds))
    (tmp_path / 'policy.yaml').write_text('policy: {ros__parameters: {frame_id: world}}')
    result = CliRunner().invoke(app, ['bag', 'info', bag])
    assert result.exit_code == 0, result.output
    assert 'No /r1/policy_status says' in result.output
    result = CliRunner().invoke(app, ['bag', 'info', bag, '--bag-namespace', 'r2'])
    assert result.exit_code == 2 and "no topics in the namespace '/r2'" in result.output


@pytest.mark.parametrize(('lost', 'answers'), [
    ((), ('yes', 'yes', 'yes')),
    (('/wrist/image_raw/compressed',), ('yes', 'no', 'no')),
    (('/ee_pose',), ('yes', 'yes', 'no')),
    (('/wrist/image_raw/compressed', '/ee_pose', '/gripper_state'), ('yes', 'no', 'no')),
    (('/third_person/image_raw',), ('no', 'no', 'no')),
    ({'/ee_pose': lambda t: pose(t, 'world')}, ('yes', 'yes', 'no'))])
def test_it_says_which_kinds_of_policy_a_bag_is_enough_for(look, lost, answers):
    found = look(lost if isinstance(lost, dict) else dict.fromkeys(lost))
    robot = find_contract('')
    kinds = kinds_of_policies(robot)
    assert [name.partition(' (')[0] for name in kinds] == [
        'one camera, no state', 'all 2 cameras, no state', 'all 2 cameras and the state']
    assert tuple('no' if found.lacks(robot, spec) else 'yes'
                 for spec in kinds.values()) == answers


def test_it_says_whether_a_bag_is_enough_for_a_checkpoint(tmp_path):
    checkpoints = {name: checkpoint_variants.make(tmp_path / name, head) for name, head in (
        ('one', 'autoregressive'), ('two', 'l1'))}
    kinds = {'/third_person/image_raw': IMAGE}
    path = write_topics(tmp_path / 'a.mcap', {
        name: [(t, MAKE[kind](t)) for t in TIMES] for name, kind in kinds.items()}, kinds)
    for name, code, said in (('one', 0, 'yes'), ('two', 1, 'wrist, ee_pose, gripper_state')):
        done = CliRunner().invoke(
            app, ['bag', 'info', str(path), '--checkpoint', str(checkpoints[name])],
            env={'COLUMNS': '300'})
        assert done.exit_code == code
        assert re.search(rf'/{name} +│.*{said}', done.output)
    done = CliRunner().invoke(
        app, ['bag', 'info', str(path), '--checkpoint', str(tmp_path / 'none')])
    assert done.exit_code == 2


def test_a_bag_of_a_robot_with_joints_is_not_called_ready(tmp_path):
    path = write_topics(tmp_path / 'a.mcap', {'/ee_pose': [(T, pose(T))]}, {'/ee_pose': POSE})
    done = CliRunner().invoke(app, ['bag', 'info', str(path), '--contract', 'joint_arm'])
    assert done.exit_code == 1
    assert 'only one end effector can be replayed' in done.output
