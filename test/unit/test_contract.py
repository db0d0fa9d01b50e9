"""A robot contract is read whole or refused with one sentence that names file, place and cure."""

import copy
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from vla_policy_node import cli
from vla_policy_node.contract import (
    ContractError,
    RobotContract,
    find_contract,
    load_contract,
    parse_contract,
    shipped_contracts,
    to_plain,
)
from vla_policy_node.contract.fit import check_fits, spec_of, state_places
from vla_policy_node.contract.parts import (
    CAMERA_TRANSFORMS,
    Camera,
    EndEffectorGroup,
    GripperGroup,
    Joint,
    JointGroup,
)
from vla_policy_node.contract.state import (
    JOINT_FIELDS,
    JOINT_STATE_TYPE,
    POSE_FIELDS,
    POSE_TYPE,
    StateSource,
    StateValue,
)
from vla_policy_node.control.action_spec import ROTATION_FORMS, ActionSpec
from vla_policy_node.control.limits import Limits
from vla_policy_node.policy.interface import PolicySpec, Quantity

DUMPER = getattr(yaml, 'CSafeDumper', yaml.SafeDumper)
SHIPPED = ('end_effector', 'franka_libero', 'joint_arm', 'two_arms')
CONTRACTS = {name: to_plain(find_contract(name)) for name in SHIPPED}


def text_of(plain):
    return yaml.dump(plain, Dumper=DUMPER, sort_keys=False, allow_unicode=True)


def refused(plain, name='robot.yaml'):
    with pytest.raises(ContractError) as caught:
        parse_contract(text_of(plain), name)
    sentence = str(caught.value)
    assert sentence.startswith(f'{name}: ') and sentence[-1] in '.?' and '\n' not in sentence
    return sentence.removeprefix(f'{name}: ')


def places(value, path=()):
    """Yield the path of every value of a plain contract, sections and lists included."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else (
        enumerate(value) if isinstance(value, list) else ())
    for key, inner in items:
        yield from places(inner, (*path, key))


def at(plain, path):
    for key in path:
        plain = plain[key]
    return plain


def words(path):
    return re.sub(r'\.\[', '[', '.'.join(f'[{k}]' if isinstance(k, int) else k for k in path))


# The Franka has the parts of the default robot, and two frames.
EVERYWHERE = [(name, path) for name in SHIPPED for path in places(CONTRACTS[name])
              if name != 'franka_libero' or path[-1] in ('parent', 'child')]


# --- what is shipped ---

def test_these_contracts_come_with_the_package():
    assert shipped_contracts() == SHIPPED
    assert find_contract('') is find_contract('end_effector')


def test_the_default_is_the_robot_of_libero():
    robot = find_contract('')
    assert robot.camera_names == ('third_person', 'wrist')
    assert [camera.topic for camera in robot.cameras] == [
        'third_person/image_raw', 'wrist/image_raw']
    assert [source.topic for source in robot.state] == ['ee_pose', 'gripper_state']
    assert (len(robot.state_names), robot.action_dimension) == (8, 7)
    arm, gripper = robot.actions
    libero = ActionSpec.libero()
    assert (arm.rotation_form, arm.translation_scale_m, arm.rotation_scale_rad, arm.frame) == (
        libero.rotation_form, libero.translation_scale_m, libero.rotation_scale_rad, 'base_link')
    assert (gripper.open, gripper.closed) == (libero.gripper_open, libero.gripper_closed)


@pytest.mark.parametrize(('name', 'cameras', 'state', 'actions'), [
    ('joint_arm', 2, 8, {'arm': slice(0, 7), 'gripper': slice(7, 8)}),
    ('two_arms', 3, 14, {'left_arm': slice(0, 6), 'left_gripper': slice(6, 7),
                         'right_arm': slice(7, 13), 'right_gripper': slice(13, 14)})])
def test_the_shapes_of_the_others(name, cameras, state, actions):
    robot = find_contract(name)
    assert (len(robot.cameras), len(robot.state_names)) == (cameras, state)
    assert robot.action_slices() == actions


def test_aloha_is_told_an_open_gripper_as_one_and_a_closed_one_as_zero():
    gripper = find_contract('two_arms').state[0].values[-1]
    open_m, closed_m = 0.057, 0.021
    assert gripper.scale * open_m + gripper.offset == pytest.approx(1.0, abs=1e-4)
    assert gripper.scale * closed_m + gripper.offset == pytest.approx(0.0, abs=1e-4)


def test_a_franka_tells_a_policy_of_libero_the_numbers_that_it_knows():
    libero, franka = find_contract(''), find_contract('franka_libero')
    assert spec_of(franka) == spec_of(libero)
    check_fits(PolicySpec(), franka)
    arm, gripper = franka.actions
    assert gripper == libero.actions[1]
    assert arm == replace(libero.actions[0], frame=arm.frame)
    fingers = franka.state[1].values
    assert [(value.joint, value.scale) for value in fingers] == [
        ('panda_finger_joint1', 1.0), ('panda_finger_joint2', -1.0)]


def test_a_gripper_with_one_joint_may_be_told_as_two_fingers():
    plain = copy.deepcopy(CONTRACTS['franka_libero'])
    for value, sign in zip(plain['state'][1]['values'], (1, -1), strict=True):
        value |= {'joint': 'knuckle', 'scale': -0.05 * sign, 'offset': 0.04 * sign}
    source = parse_contract(text_of(plain)).state[1]
    assert source.joints == ('knuckle',)
    assert [value.offset for value in source.values] == [0.04, -0.04]


# --- what is refused ---

@pytest.mark.parametrize(('name', 'path'), EVERYWHERE,
                         ids=lambda value: value if isinstance(value, str) else words(value))
def test_a_value_of_another_kind_is_refused_with_its_place(name, path):
    plain = copy.deepcopy(CONTRACTS[name])
    parent, value = at(plain, path[:-1]), at(plain, path)
    parent[path[-1]] = ['no'] if isinstance(value, (str, bool, int, float)) else 3
    assert refused(plain).startswith(words(path))


@pytest.mark.parametrize('name', SHIPPED)
@pytest.mark.parametrize('broken', [math.nan, math.inf, -math.inf, 1e300, 10**400],
                         ids=['nan', 'inf', '-inf', 'large', 'no float'])
def test_no_number_may_be_endless(name, broken):
    for path in places(CONTRACTS[name]):
        value = at(CONTRACTS[name], path)
        if isinstance(value, float):
            plain = copy.deepcopy(CONTRACTS[name])
            at(plain, path[:-1])[path[-1]] = broken
            if broken == 1e300 and path[-1] in ('scale', 'offset', 'open', 'closed'):
                continue
            field = next(key for key in reversed(path) if isinstance(key, str))
            assert field in refused(plain), path


@pytest.mark.parametrize('name', SHIPPED)
def test_a_name_that_is_not_known_is_refused_in_every_section(name):
    for path in ((), *places(CONTRACTS[name])):
        if isinstance(at(CONTRACTS[name], path), dict):
            plain = copy.deepcopy(CONTRACTS[name])
            at(plain, path)['colour'] = 'red'
            assert refused(plain).startswith(words((*path, 'colour'))), path


@pytest.mark.parametrize('name', SHIPPED)
def test_what_has_no_default_must_be_said(name):
    optional = {'required', 'transform', 'scale', 'offset', 'joint', 'values', 'part_of', 'topic',
                'threshold', 'dead_band', 'open_position', 'closed_position',
                'workspace_min_m', 'workspace_max_m', 'default_workspace_half_m'}
    for path in places(CONTRACTS[name]):
        if isinstance(path[-1], str) and path[-1] not in optional:
            plain = copy.deepcopy(CONTRACTS[name])
            del at(plain, path[:-1])[path[-1]]
            assert refused(plain).startswith(f'{words(path)} is missing; it must be'), path


def test_a_slip_of_the_pen_is_told_what_was_meant():
    plain = copy.deepcopy(CONTRACTS['end_effector'])
    plain['actions'][0]['limits']['max_step_translation'] = 0.01
    assert refused(plain) == ('actions[0].limits.max_step_translation is not known here; '
                              'did you mean max_step_translation_m?')


EDITS = [
    ('end_effector', {'format': 2}, 'format is 2; this version reads format 1'),
    ('end_effector', {'name': 'My Robot'}, "name is 'My Robot'; a name has small letters"),
    ('end_effector', {'cameras': []}, 'cameras has 0 entries; a robot has 1 to 4'),
    ('end_effector', {'cameras.0.name': 'wrist'}, "cameras and state sources together has 'w"),
    ('end_effector', {'cameras.1.name': 'clock'},
     "cameras[1].name is 'clock', which stands for the time in messages and options; take"),
    ('end_effector', {'cameras.0.name': 'state'}, "cameras[0].name is 'state', which stands for"),
    ('end_effector', {'cameras.1.name': 'command'}, "cameras[1].name is 'command', which stands"),
    ('end_effector', {'cameras.1.name': 'twist'}, "cameras[1].name is 'twist', which stands for"),
    ('end_effector', {'state.1.name': 'actions'}, "state[1].name is 'actions', which stands for"),
    ('franka_libero', {'state.0.parent': ''}, 'state[0].parent is missing'),
    ('franka_libero', {'state.0.child': '/tool'}, 'without leading slash'),
    ('franka_libero', {'state.0.child': 'panda_link0'}, 'as parent is; name two frames'),
    ('franka_libero', {'state.0.type': 'geometry_msgs/msg/PoseStamped'}, 'state[0].parent is'),
    ('franka_libero', {'actions.0.frame': 'world'}, 'must be the frame of the commands'),
    ('franka_libero', {'state.0.values.1.field': 'x'}, 'the same field of the pose twice'),
    ('franka_libero', {'state.1': {
        'name': 'b', 'topic': 'tf', 'type': 'tf2_msgs/msg/TFMessage', 'parent': 'a',
        'child': 'b'}}, 'state has several sources of tf2_msgs/msg/TFMessage'),
    ('end_effector', {'cameras.0.required': False}, 'cameras[0].required is false'),
    ('end_effector', {'cameras.1.topic': 'a topic'}, "cameras[1].topic is 'a topic'"),
    ('end_effector', {'cameras.1.topic': '/third_person/image_raw'}, 'listened to'),
    ('end_effector', {'cameras.1.transform': 'flip'}, "cameras[1].transform is 'flip'; use"),
    ('end_effector', {'state.0.type': 'sensor_msgs/msg/Imu'}, 'state[0].type'),
    ('end_effector', {'state.0.values.3.field': 'yaw'}, 'state[0].values[3].field'),
    ('end_effector', {'state.0.values.3.field': 'x'},
     'state[0].values have the same field of the pose twice'),
    ('end_effector', {'state.0.values.3.name': 'x'}, "state has 'x' twice"),
    ('end_effector', {'state.0.values.3.unit': ''}, 'state[0].values[3].unit'),
    ('end_effector', {'state.0.values.3.scale': 0.0}, 'state[0].values[3].scale is 0.0'),
    ('end_effector', {'state.0.values.0.joint': 'a'}, 'a pose has no joints'),
    ('end_effector', {'state.1.values.0.joint': 'a'}, 'name the joint of every value'),
    ('end_effector', {'state.1.name': 'wrist'}, "has 'wrist' twice"),
    ('end_effector', {'actions': []}, 'actions is empty'),
    ('end_effector', {'actions.0.kind': 'base'}, "actions[0].kind is 'base'; use one of"),
    ('end_effector', {'actions.0.pose': 'gripper_state'}, 'without the measured pose nothing'),
    ('end_effector', {'state': []}, "is 'ee_pose'; name a source of the state with the type"),
    ('end_effector', {'state': []}, "for recordings without poses write ''"),
    ('end_effector', {'actions.0.frame': ''}, 'actions[0].frame'),
    ('end_effector', {'actions.0.rotation_form': 'quaternion'}, 'actions[0].rotation_form'),
    ('end_effector', {'actions.0.rotation_scale_rad': -1.0}, 'actions[0].rotation_scale_rad is'),
    ('end_effector', {'actions.0.limits.max_linear_velocity_m_s': 0.0},
     'actions[0].limits.max_linear_velocity_m_s is 0.0; it must lie between'),
    ('end_effector', {'actions.0.limits.workspace_min_m': [1.0, 2.0]},
     'actions[0].limits.workspace_min_m'),
    ('end_effector', {'actions.1.name': 'arm'}, "actions has 'arm' twice"),
    ('end_effector', {'actions.1.closed': 1.0}, 'actions[1].open is 1.0 and closed 1.0'),
    ('end_effector', {'actions.1.dead_band': 1.5}, 'actions[1].threshold is 0.5 with dead_band'),
    ('end_effector', {'actions.1.part_of': 'hand'}, "actions.gripper.part_of is 'hand'"),
    ('end_effector', {'actions.1.part_of': ''}, 'actions[1].part_of or topic'),
    ('end_effector', {'actions.1.topic': 'hand'}, 'actions[1].part_of or topic'),
    ('end_effector', {'actions.1.open_position': 0.1}, 'need a joint'),
    ('joint_arm', {'actions.0.kind': 'joint_velocity'}, 'actions[0].command_timeout_s is 0'),
    ('joint_arm', {'actions.0.kind': 'joint_velocity', 'actions.0.command_timeout_s': 1.5},
     'actions[0].command_timeout_s is 1.5'),
    ('joint_arm', {'actions.0.kind': 'joint_velocity', 'actions.0.command_timeout_s': -0.1},
     'actions[0].command_timeout_s is -0.1'),
    ('joint_arm', {'actions.0.command_timeout_s': 0.1}, 'is for joint_velocity only'),
    ('joint_arm', {'actions.0.joints': []}, 'actions[0].joints is empty'),
    ('joint_arm', {'actions.0.joints.1.name': 'panda_joint1'}, "joints has 'panda_joint1' twice"),
    ('joint_arm', {'actions.0.joints.1.name': 'elbow'}, "the position of the joint 'elbow'"),
    ('joint_arm', {'actions.0.joints.1.unit': 'deg'}, 'actions[0].joints[1].unit'),
    ('joint_arm', {'actions.0.joints.1.min_position': 3.0}, 'actions[0].joints[1].min_position'),
    ('joint_arm', {'actions.0.joints.1.max_step': -0.1}, 'actions[0].joints[1].max_step is -0.1'),
    ('joint_arm', {'state.0.values.2.field': 'velocity'}, "position of the joint 'panda_joint3'"),
    ('joint_arm', {'actions.1.open_position': 0.05}, 'actions[1].open_position is 0.05'),
    ('joint_arm', {'actions.1.joint.name': 'panda_joint1'}, 'joints of all action groups'),
    ('two_arms', {'actions.2.topic': 'follower_left/arm_controller/joint_trajectory'},
     'topics of commands'),
    ('two_arms', {'state.1.topic': '/follower_left/joint_states'},
     'put all values of one topic into one source'),
]


@pytest.mark.parametrize(('name', 'edits', 'sentence'), EDITS)
def test_parts_that_cannot_be_or_do_not_belong_together(name, edits, sentence):
    plain = copy.deepcopy(CONTRACTS[name])
    for path, value in edits.items():
        *parents, last = (int(key) if key.isdigit() else key for key in path.split('.'))
        at(plain, parents)[last] = value
    assert sentence in refused(plain)


@pytest.mark.parametrize(('text', 'sentence'), [
    ('', 'the file must be a section'),
    ('- 1', 'the file must be a section'),
    ('a: [', 'is not YAML'),
    ('a: &x 1\nb: *x', 'has anchors'),
    ('[' * 100 + ']' * 100, 'nested'),
    ('name: !!python/name:os.system', 'tags'),
])
def test_files_that_are_no_contract(tmp_path, text, sentence):
    file = tmp_path / 'robot.yaml'
    file.write_text(text)
    with pytest.raises(ContractError, match=re.escape(str(file))) as caught:
        load_contract(file)
    assert sentence in str(caught.value)


@pytest.mark.parametrize('name', ['robot.yaml', 'arm', '../two_arms'])
def test_a_contract_that_is_not_there_is_said(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ContractError, match=re.escape(name)):
        load_contract(name) if name.endswith('.yaml') else find_contract(name)


def test_a_file_of_any_size_is_not_read(tmp_path):
    file = tmp_path / 'robot.yaml'
    file.write_text('#' * 100_000)
    with pytest.raises(ContractError, match='more than 65536 bytes'):
        load_contract(file)


# --- laws ---

names = st.from_regex(r'[a-z][a-z0-9_]{0,8}', fullmatch=True)
numbers = st.floats(-10.0, 10.0)
bounds = st.floats(1e-3, 10.0)


@st.composite
def joints(draw, name):
    low = draw(st.floats(-3.0, 0.0))
    return Joint(name, draw(st.sampled_from(['rad', 'm'])), low, low + draw(bounds), draw(bounds),
                 draw(bounds), draw(bounds), draw(bounds))


@st.composite
def robots(draw):
    cameras = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    arms = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    state, actions = [], []
    for arm in arms:
        moved = [f'{arm}.{i}' for i in range(draw(st.integers(1, 4)))]
        if draw(st.booleans()):
            state.append(StateSource(f'pose_{arm}', f'{arm}/pose', POSE_TYPE, tuple(
                StateValue(f'{arm}_{field}', 'm', field, scale=draw(bounds), offset=draw(numbers))
                for field in draw(st.lists(st.sampled_from(POSE_FIELDS), unique=True)))))
            actions.append(EndEffectorGroup(
                arm, draw(st.sampled_from(['end_effector_delta', 'end_effector_absolute'])),
                f'{arm}/command', f'pose_{arm}', draw(st.text('abc_/', min_size=1)),
                draw(st.sampled_from(ROTATION_FORMS)), draw(bounds), draw(bounds),
                Limits(*(draw(bounds) for _ in range(6)))))
            if draw(st.booleans()):
                actions.append(GripperGroup(f'grip_{arm}', 1.0, draw(st.floats(-1.0, 0.9)),
                                            part_of=arm))
        else:
            fields = ['position', *draw(st.lists(
                st.sampled_from(JOINT_FIELDS[1:]), unique=True))]
            state.append(StateSource(f'of_{arm}', f'{arm}/joints', JOINT_STATE_TYPE, tuple(
                StateValue(f'{arm}_{field}_{i}', 'rad', field, joint)
                for field in fields for i, joint in enumerate(moved))))
            kind, timeout_s = draw(st.sampled_from([
                ('joint_position', 0.0), ('joint_velocity', 0.1), ('joint_velocity', 1.0)]))
            actions.append(JointGroup(
                arm, kind, f'{arm}/command', tuple(draw(joints(name)) for name in moved),
                timeout_s))
    return RobotContract(draw(names), tuple(
        Camera(f'cam_{name}', f'/{name}/image', draw(st.sampled_from(CAMERA_TRANSFORMS)),
               not i or draw(st.booleans())) for i, name in enumerate(cameras)),
        tuple(state), tuple(actions))


@given(robots())
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_again(robot):
    assert parse_contract(text_of(to_plain(robot))) == robot


@given(robots())
@settings(max_examples=40, deadline=None)
def test_the_groups_share_out_every_number_of_an_action_once_and_in_order(robot):
    taken = [i for part in robot.action_slices().values() for i in range(part.start, part.stop)]
    assert taken == list(range(robot.action_dimension))


@given(robots(), st.randoms())
@settings(max_examples=40, deadline=None)
def test_a_policy_made_for_a_robot_runs_on_it_whatever_the_order_of_its_inputs(robot, random):
    spec = spec_of(robot)
    check_fits(spec, robot)
    state = random.sample(spec.state, len(spec.state))
    shuffled = replace(spec, cameras=tuple(random.sample(spec.cameras, len(spec.cameras))),
                       state=tuple(state))
    check_fits(shuffled, robot)
    told = [robot.state_names[place] for place in state_places(shuffled, robot)]
    assert told == [quantity.name for quantity in state]


@given(st.sampled_from(EVERYWHERE), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner)))
@settings(max_examples=300, deadline=None)
def test_whatever_stands_in_a_file_it_is_a_contract_or_one_sentence(where, value):
    name, path = where
    plain = copy.deepcopy(CONTRACTS[name])
    at(plain, path[:-1])[path[-1]] = value
    try:
        parse_contract(text_of(plain), 'robot.yaml')
    except ContractError as error:
        assert str(error).startswith('robot.yaml') and str(error)[-1] in '.?'


# --- what a policy wants ---

def test_the_shipped_policies_are_made_for_the_default_robot():
    offered, wanted = spec_of(find_contract('')), PolicySpec()
    assert offered == wanted


@pytest.mark.parametrize(('change', 'sentence'), [
    ({'cameras': ('third_person', 'side')}, "looks at the camera 'side', which"),
    ({'state': (Quantity('x'), Quantity('torque'))}, "is told 'torque', which"),
    ({'actions': (Quantity('joint_1'), Quantity('gripper'))},
     'answers with joint_1, gripper; the contract of end_effector takes dx, dy, dz, drx, '),
])
def test_a_policy_for_another_robot_is_refused_with_what_differs(change, sentence):
    robot = find_contract('')
    with pytest.raises(ContractError, match=sentence):
        check_fits(replace(spec_of(robot), **change), robot)


def test_a_policy_may_want_less_than_a_robot_has():
    check_fits(PolicySpec(('third_person',), ()), find_contract(''))


# --- the command ---

def test_check_shows_what_would_be_taken_from_a_contract():
    result = CliRunner().invoke(cli.app, ['contract', 'check', 'two_arms'])
    assert result.exit_code == 0
    for word in ('left_wrist', 'joint_position', 'right_gripper', '27.7778', 'moves this robot'):
        assert word in result.output
    result = CliRunner().invoke(cli.app, ['contract', 'check', 'end_effector'])
    assert result.exit_code == 0 and 'moves this robot' in result.output


def test_a_contract_for_recordings_without_poses_is_whole_and_moves_nothing(tmp_path):
    plain = copy.deepcopy(CONTRACTS['end_effector'])
    plain['state'], plain['actions'][0]['pose'] = [], ''
    file = tmp_path / 'recorded.yaml'
    file.write_text(text_of(plain))
    assert load_contract(file).state_names == ()
    result = CliRunner().invoke(cli.app, ['contract', 'check', str(file)])
    assert result.exit_code == 0
    assert 'will not move this robot: actions.arm.pose is empty' in result.output


def test_check_refuses_with_the_sentence(tmp_path):
    file = tmp_path / 'robot.yaml'
    file.write_text(text_of({**CONTRACTS['joint_arm'], 'name': 'Bad name'}))
    result = CliRunner().invoke(cli.app, ['contract', 'check', str(file)])
    assert result.exit_code == 2
    assert "name is 'Bad name'" in result.output.replace('\n', ' ')


def test_new_writes_a_commented_contract_that_is_checked_but_over_nothing(tmp_path):
    file = tmp_path / 'robot.yaml'
    assert CliRunner().invoke(cli.app, ['contract', 'new', str(file)]).exit_code == 0
    assert '# ' in file.read_text()
    assert load_contract(file) == find_contract('end_effector')
    again = CliRunner().invoke(cli.app, ['contract', 'new', str(file), '--like', 'two_arms'])
    assert again.exit_code == 2 and 'exists' in again.output
    assert load_contract(file) == find_contract('end_effector')


def test_the_contract_needs_neither_ros_nor_torch():
    script = ('import sys, vla_policy_node.contract; '
              'print(*sorted({name.partition(".")[0] for name in sys.modules}))')
    found = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True,
                           check=True, cwd=Path(__file__).parents[2]).stdout.split()
    assert not {*found} & {'rclpy', 'torch', 'vla_msgs', 'sensor_msgs', 'mujoco', 'cv2'}


def test_a_file_of_a_user_whom_nobody_knows_is_refused_with_a_sentence():
    with pytest.raises(ContractError, match='cannot be found'):
        load_contract('~nobody-of-this-name/robot.yaml')


def test_the_command_shows_what_the_driver_of_velocities_owes(tmp_path):
    plain = copy.deepcopy(CONTRACTS['joint_arm'])
    plain['actions'][0] |= {'kind': 'joint_velocity', 'command_timeout_s': 0.25}
    file = tmp_path / 'turning.yaml'
    file.write_text(text_of(plain))
    result = CliRunner().invoke(cli.app, ['contract', 'check', str(file)], env={'COLUMNS': '300'})
    assert result.exit_code == 0 and 'stop 0.25 s after the last command' in result.output
