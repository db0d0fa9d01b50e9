"""A named contract says what a robot's numbers mean and its widest limits; parameters narrow."""

import copy
import pickle
from dataclasses import fields, replace

import pytest
import yaml

from vla_policy_node.contract import ContractError, find_contract, parse_contract, to_plain
from vla_policy_node.contract.fit import action_names, differences
from vla_policy_node.contract.joints import joint_spec, joint_streams
from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.loop.contract_fields import values_of
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.policy.interface import PolicySpec
from vla_policy_node.system.description import SystemDescriptionError, describe
from vla_policy_node.system.robot import contract_to_follow

PLAIN = to_plain(find_contract(''))
SAID = {'checkpoint': '/some/checkpoint'}


@pytest.fixture
def robot(tmp_path):
    """The file of a robot with three cameras, a slow arm and a workspace."""
    plain = copy.deepcopy(PLAIN)
    plain['cameras'][0] |= {'topic': '/front/rgb', 'transform': 'rotate_180'}
    plain['cameras'][1]['required'] = True
    plain['cameras'].append({'name': 'side', 'topic': 'side/rgb', 'required': False})
    plain['actions'][0]['limits'] |= {
        'max_step_translation_m': 0.005, 'workspace_min_m': [0.2, -0.4, 0.0],
        'workspace_max_m': [0.6, 0.4, 0.5]}
    plain['actions'][0]['frame'] = 'arm_base'
    file = tmp_path / 'robot.yaml'
    file.write_text(yaml.safe_dump(plain))
    return str(file)


def test_the_default_contract_says_what_the_parameters_say_themselves():
    parameters, values = PolicyParameters(), values_of(find_contract(''))
    assert {name: getattr(parameters, name) for name in values} == values


def test_naming_the_default_contract_changes_nothing_else():
    named = PolicyParameters.of('end_effector')()
    assert {f.name for f in fields(named) if getattr(named, f.name) != getattr(
        PolicyParameters(), f.name)} == {'contract'}


def test_a_robot_has_the_parameters_of_its_own_cameras_with_what_its_contract_says(robot):
    parameters = PolicyParameters.of(robot)()
    assert parameters.camera_transforms == {
        'third_person': 'rotate_180', 'wrist': 'auto', 'side': 'auto'}
    names = [field.name for field in fields(parameters)]
    assert names[names.index('contract'):][1:4] == [
        'third_person_transform', 'wrist_transform', 'side_transform']
    assert 'third_person_reference' in names and 'wrist_reference' not in names
    assert (parameters.frame_id, parameters.max_step_translation_m) == ('arm_base', 0.005)
    assert parameters.has_workspace


def test_what_measures_the_end_effector_is_called_in_holds_as_in_the_contract(tmp_path):
    plain = copy.deepcopy(PLAIN)
    plain['state'][0]['name'] = plain['actions'][0]['pose'] = 'tool'
    file = tmp_path / 'robot.yaml'
    file.write_text(yaml.safe_dump(plain))
    for contract, name in (('', 'ee_pose'), (str(file), 'tool')):
        with pytest.raises(HoldError) as caught:
            PolicyParameters.of(contract)().make_parts().mover.measured.newest()
        assert caught.value.hold == Hold(HoldReason.INPUT_MISSING, name)


@pytest.mark.parametrize(('name', 'value'), [
    ('max_step_translation_m', 0.004), ('max_linear_velocity_m_s', 0.1),
    ('workspace_min_m', (0.3, -0.4, 0.1)), ('workspace_max_m', (0.5, 0.4, 0.5)),
    ('default_workspace_half_m', 0.1), ('gripper_threshold', 0.4), ('max_age_s', 0.2)])
def test_parameters_may_be_tighter_than_a_contract(robot, name, value):
    assert getattr(replace(PolicyParameters.of(robot)(), **{name: value}), name) == value


@pytest.mark.parametrize(('name', 'value', 'why'), [
    ('max_step_translation_m', 0.0051, 'looser'), ('max_angular_velocity_rad_s', 0.6, 'looser'),
    ('max_linear_acceleration_m_s2', 1.1, 'looser'), ('default_workspace_half_m', 0.2, 'looser'),
    ('workspace_min_m', (0.1, -0.4, 0.0), 'looser'), ('workspace_max_m', (0.6, 0.4, 9.), 'looser'),
    ('frame_id', 'world', 'arm_base'), ('rotation_form', 'euler_xyz', 'axis_angle'),
    ('translation_scale_m', 0.04, '0.05'), ('rotation_scale_rad', 1.0, '0.5'),
    ('gripper_open', 0.9, '1.0'), ('gripper_closed', 0.1, '0.0'),
    ('third_person_transform', 'none', 'rotate_180'), ('contract', '', 'start it again')])
def test_parameters_that_contradict_a_contract_are_refused_by_name(robot, name, value, why):
    with pytest.raises(ValueError, match=name) as caught:
        replace(PolicyParameters.of(robot)(), **{name: value})
    assert why in str(caught.value) and str(caught.value).endswith('.')


def test_a_workspace_of_a_contract_cannot_be_taken_away(robot):
    with pytest.raises(ValueError, match='workspace_min_m'):
        replace(PolicyParameters.of(robot)(), workspace_min_m=(0.0,) * 3,
                workspace_max_m=(0.0,) * 3)


def test_a_contract_that_vanishes_does_not_stand_in_the_way_of_tighter_limits(robot, tmp_path):
    parameters = PolicyParameters.of(robot)()
    (tmp_path / 'robot.yaml').unlink()
    assert replace(parameters, max_step_translation_m=0.001).max_step_translation_m == 0.001


def test_parameters_of_any_robot_reach_another_process(robot):
    parameters = PolicyParameters.of(robot)(max_age_s=0.2)
    assert pickle.loads(pickle.dumps(parameters)) == parameters


@pytest.mark.parametrize('name', ['joint_arm', 'two_arms'])
def test_a_robot_that_is_moved_by_joints_has_no_parameters_of_an_end_effector(name):
    robot = find_contract(name)
    parameters = PolicyParameters.of(name)(contract=name)
    names = {field.name for field in fields(parameters)}
    assert not names & {'frame_id', 'translation_scale_m', 'max_step_translation_m',
                        'workspace_min_m', 'max_tracking_error_m', 'publish_twist'}
    assert {'tracking_window_s', f'{robot.camera_names[0]}_reference'} <= names
    assert parameters.action_spec().names == joint_spec(robot).names
    assert parameters.make_parts({}).mover.spec == joint_spec(robot)
    assert pickle.loads(pickle.dumps(parameters)) == parameters
    assert 'frame_id' in {field.name for field in fields(PolicyParameters)}, 'of the others'


@pytest.mark.parametrize('name', ['joint_arm', 'two_arms'])
def test_a_system_with_joints_starts_with_parameters_that_its_nodes_have(name):
    nodes = {node.name: node for node in describe({**SAID, 'contract': name})}
    policy = dict(nodes['policy'].parameters)
    assert nodes['guard'].parameters['contract'] == name
    policy = {key: value for key, value in policy.items()
              if key not in ('autostart', 'use_sim_time')}
    assert PolicyParameters.from_values(policy).contract == name


def test_controllers_of_joints_are_told_by_the_guard_in_a_simulation_too():
    def names(**arguments):
        return [node.name for node in describe({**SAID, 'use_sim_time': True, **arguments})]

    assert 'guard' in names(contract='two_arms')
    assert 'guard' not in names(contract='two_arms', guard='false')
    assert 'guard' not in names() + names(contract='end_effector')


@pytest.mark.parametrize('name', ['joint_arm', 'two_arms'])
def test_every_moved_joint_is_measured_by_one_source(name):
    robot = find_contract(name)
    streams = joint_streams(robot)
    assert sorted(place for places in streams.values() for place in places) == [
        *range(robot.action_dimension)]
    assert list(streams) == [source.name for source in robot.state]


@pytest.mark.parametrize(('edit', 'sentence'), [
    (lambda plain: plain['actions'].reverse(), 'followed by the gripper'),
    (lambda plain: plain['actions'].pop(), 'followed by the gripper'),
    (lambda plain: plain['actions'][0].update(kind='end_effector_absolute'), 'displacements'),
    (lambda plain: plain['actions'][0].update(topic='arm/command'), 'command_topic')])
def test_other_actions_are_refused_too(tmp_path, edit, sentence):
    plain = copy.deepcopy(PLAIN)
    edit(plain)
    file = tmp_path / 'robot.yaml'
    file.write_text(yaml.safe_dump(plain))
    with pytest.raises(ContractError, match=sentence):
        PolicyParameters.of(str(file))


def test_a_camera_that_is_not_required_is_not_missed_by_a_policy_that_does_not_look(robot):
    parameters = PolicyParameters.of(robot)()
    assert parameters.streams.cameras == ('third_person', 'wrist', 'side')
    policy = replace(parameters.streams, spec=PolicySpec(cameras=('third_person',)))
    assert policy.cameras == ('third_person', 'wrist')
    assert 'side' not in policy.topics
    assert policy.topics['third_person'] == ('sensor_msgs/msg/Image', '/front/rgb')


def test_actions_bear_the_names_of_their_groups_where_there_are_several():
    assert action_names(find_contract('joint_arm'))[-2:] == ('panda_joint7', 'gripper')
    assert action_names(find_contract('two_arms'))[6::7] == ('left_gripper', 'right_gripper')


# --- bringing a robot up ---

def described(**arguments):
    return {node.name: node for node in describe({**SAID, **arguments})}


def test_a_contract_that_is_named_replaces_the_values_of_the_shipped_file(robot):
    nodes = described(contract=robot, record='/bag')
    policy = nodes['policy'].parameters
    assert policy['contract'] == robot and policy['frame_id'] == 'arm_base'
    assert policy['side_transform'] == 'auto' and policy['max_step_translation_m'] == 0.005
    assert PolicyParameters.from_values(
        dict(policy)).camera_transforms['third_person'] == 'rotate_180'
    # The guard stands behind the policy: it must not allow more.
    assert nodes['guard'].parameters['max_step_translation_m'] == 0.005
    assert nodes['visualizer'].parameters['contract'] == robot
    assert nodes['recorder'].parameters['contract'] == robot


def test_without_a_contract_nothing_is_replaced():
    assert described()['policy'].parameters['contract'] == ''


def test_a_contract_that_cannot_be_used_starts_nothing(tmp_path):
    with pytest.raises(SystemDescriptionError, match='only go with one end effector'):
        describe({**SAID, 'contract': 'two_arms', 'world': True})
    with pytest.raises(SystemDescriptionError, match='publishes poses and no transforms'):
        describe({**SAID, 'contract': 'franka_libero', 'world': True})
    with pytest.raises(SystemDescriptionError, match='cannot be read'):
        describe({**SAID, 'contract': str(tmp_path / 'none.yaml')})


def test_parameters_cannot_widen_the_box_of_a_contract_without_a_workspace():
    parameters = PolicyParameters.of('end_effector')
    with pytest.raises(ValueError, match='workspace_min_m'):
        parameters(contract='end_effector', workspace_min_m=(-100.0,) * 3,
                   workspace_max_m=(100.0,) * 3)


# --- the robot of a recording ---

NAMED = '/robots/mine.yaml'


def test_a_recording_that_does_not_hold_its_contract_needs_a_name_for_it():
    with pytest.raises(ValueError, match=r"contract '/robots/mine.yaml', not with"):
        contract_to_follow('', None, '', NAMED)
    assert contract_to_follow(NAMED, None, '', NAMED) == (NAMED, '')
    chosen, remark = contract_to_follow('two_arms', None, '', NAMED)
    assert chosen == 'two_arms' and "recorded with the contract '/robots/mine.yaml'" in remark
    for named in (None, '', 'end_effector'):
        assert contract_to_follow('', None, '', named) == ('', '')


def test_a_recording_of_another_robot_is_followed_by_its_own_contract(robot):
    found = find_contract(robot)
    assert contract_to_follow('', found, 'bag/robot.yaml', NAMED) == ('bag/robot.yaml', '')
    assert contract_to_follow(robot, found, 'bag/robot.yaml', NAMED) == (robot, '')
    chosen, remark = contract_to_follow('end_effector', found, 'bag/robot.yaml', NAMED)
    assert chosen == 'end_effector'
    assert remark == ("The bag was recorded with another contract than 'end_effector', which "
                      'differs in cameras and actions.')


def test_other_topics_and_limits_make_no_other_robot():
    plain = copy.deepcopy(PLAIN)
    plain['cameras'][0]['topic'], plain['state'][1]['topic'] = '/front/rgb', 'joint_states'
    plain['state'][0]['name'] = plain['actions'][0]['pose'] = 'tool'
    plain['actions'][0]['limits']['max_step_translation_m'] = 0.001
    assert differences(find_contract(''), parse_contract(yaml.safe_dump(plain))) == ()
    plain['actions'][0]['frame'] = 'tool0'
    assert differences(find_contract(''), parse_contract(yaml.safe_dump(plain))) == ('actions',)


def test_what_a_played_bag_says_of_its_robot_needs_trust_or_a_name(robot, tmp_path):
    bag = tmp_path / 'bag'
    bag.mkdir()
    plain = to_plain(find_contract(robot))
    (bag / 'robot.yaml').write_text(yaml.safe_dump(plain))
    (bag / 'policy.yaml').write_text(yaml.safe_dump({'policy': {'ros__parameters': {
        'contract': NAMED, 'max_age_s': 0.2, 'frame_id': 'arm_base',
        'max_step_translation_m': 0.004}}}))
    with pytest.raises(SystemDescriptionError, match=r'with a contract of its own.*trust_bag'):
        described(play=str(bag))
    with pytest.raises(SystemDescriptionError, match=r"contract than 'end_effector'.*; name the"):
        described(play=str(bag), contract='end_effector')
    for nodes, contract in (
            (described(play=str(bag), contract=robot), robot),
            (described(play=str(bag), trust_bag=True), str(bag / 'robot.yaml'))):
        policy = nodes['policy'].parameters
        assert policy['contract'] == nodes['player'].parameters['contract'] == contract
        assert policy['max_age_s'] == 0.2 and policy['max_step_translation_m'] == 0.004
        assert PolicyParameters.from_values(dict(policy)).frame_id == 'arm_base'
