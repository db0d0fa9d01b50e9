"""Several robots on one machine: what each system's nodes are called, and what starts again."""

import copy

import pytest
import yaml

from vla_policy_node.common.ros_names import absolute, checked_namespace
from vla_policy_node.contract import find_contract, to_plain
from vla_policy_node.system.description import describe, topic_arguments
from vla_policy_node.system.files import SystemDescriptionError, share_directory
from vla_policy_node.system.processes import command_line
from vla_policy_node.system.view import is_on_sim_time, view_of

CHECKPOINT = {'checkpoint': '/some/checkpoint'}


def described(**arguments):
    return {node.name: node for node in describe({**CHECKPOINT, **arguments})}


@pytest.mark.parametrize(('text', 'namespace'), [
    ('', ''), ('/', ''), ('r1', '/r1'), ('/r1', '/r1'), ('r1/', '/r1'),
    ('fleet/r_2', '/fleet/r_2')])
def test_a_namespace_is_spelled_in_one_way(text, namespace):
    assert checked_namespace(text) == namespace


@pytest.mark.parametrize('text', ['1r', 'r-1', 'a//b', 'r 1', 'r1/2', '~/r1', '{x}', 'r1\n'])
def test_what_is_no_namespace_is_refused_with_a_sentence(text):
    with pytest.raises(ValueError, match='is no namespace: write letters'):
        checked_namespace(text)
    with pytest.raises(SystemDescriptionError, match='namespace: '):
        described(namespace=text)


def test_a_relative_name_belongs_to_its_namespace():
    assert absolute('command', '/r1') == '/r1/command'
    assert absolute('command', '') == '/command'
    assert absolute('/clock', '/r1') == '/clock'


def test_every_node_of_a_system_is_in_its_namespace_and_its_log_level_holds_there():
    nodes = described(namespace='fleet/r1', record='bag', log_level='warn', respawn=True)
    assert list(nodes) == ['recorder', 'guard', 'policy', 'visualizer']
    for name, node in nodes.items():
        arguments = command_line(node)
        assert arguments[arguments.index('--log-level') + 1] == f'fleet.r1.{name}:=warn'
        assert '__ns:=/fleet/r1' in arguments and f'__node:={name}' in arguments
    alone = command_line(described(log_level='warn')['policy'])
    assert alone[-1] == 'policy:=warn'
    assert not any(argument.startswith('__ns') for argument in alone)


def test_no_node_is_told_an_absolute_name_that_nobody_gave():
    for arguments in ({'record': 'bag'}, {'world': True}, {'world': True, 'guard': 'true'}):
        for node in described(namespace='r1', **arguments).values():
            assert not any(name.startswith('/') or topic.startswith('/')
                           for name, topic in node.remappings.items())


@pytest.mark.parametrize('argument', [
    {'command_topic': '/r1/command'}, {'command_topic': 'command'},
    {'twist_topic': 'twist_command'}, {'twist_topic': '/r1/twist_command'}])
def test_what_only_the_guard_may_hear_is_no_topic_of_the_robot(argument):
    with pytest.raises(SystemDescriptionError, match='_topic be another'):
        described(namespace='r1', **argument)


def test_a_topic_of_the_root_is_another_one_than_that_of_the_namespace():
    nodes = described(namespace='r1', command_topic='/command')
    assert nodes['guard'].remappings == {'guarded_command': '/command'}


def test_twists_go_where_they_are_asked_for_from_the_guard_or_without_it_from_the_policy():
    nodes = described(twist_topic='/servo/delta', record='bag')
    assert nodes['guard'].remappings == {'guarded_twist_command': '/servo/delta'}
    assert nodes['policy'].remappings == nodes['recorder'].remappings == {}
    assert nodes['guard'].parameters['publish_twist'] is True
    assert nodes['policy'].parameters['publish_twist'] is True
    bare = described(twist_topic='/servo/delta', guard='false', record='bag')
    assert bare['policy'].remappings == bare['recorder'].remappings == {
        'twist_command': '/servo/delta'}


def test_without_the_argument_the_file_says_whether_there_are_twists(tmp_path):
    file = tmp_path / 'mine.yaml'
    file.write_text('policy: {ros__parameters: {publish_twist: true}}')
    for config in (str(file), ''):
        for name in ('policy', 'guard'):
            twist = described(config=config)[name].parameters['publish_twist']
            assert twist is bool(config)
    assert described(publish_twist='true')['guard'].parameters['publish_twist'] is True


def test_joints_have_no_twists():
    with pytest.raises(SystemDescriptionError, match='are for an end effector'):
        described(contract='joint_arm', publish_twist=True)


def test_only_what_moves_nothing_by_itself_starts_again():
    nodes = described(respawn=True, record='bag')
    assert [name for name, node in nodes.items() if node.respawns] == ['policy', 'visualizer']
    assert not any(node.respawns for node in described(record='bag').values())


@pytest.mark.parametrize('other', [{'play': 'bag'}, {'world': True, 'lock_step': True}])
def test_what_is_played_from_its_beginning_does_not_start_again(other):
    with pytest.raises(SystemDescriptionError, match='Leave respawn out'):
        described(respawn=True, **other)


def test_a_played_bag_s_own_robot_has_arguments_for_its_topics(tmp_path):
    plain = copy.deepcopy(to_plain(find_contract('')))
    plain['cameras'][1]['name'] = 'side'
    (tmp_path / 'robot.yaml').write_text(yaml.safe_dump(plain))
    assert 'side_topic' in topic_arguments({'play': str(tmp_path)})
    nodes = described(play=str(tmp_path), trust_bag=True, side_topic='/s/compressed')
    assert nodes['player'].remappings == nodes['policy'].remappings == {
        'wrist/image_raw': '/s', 'wrist/image_raw/compressed': '/s/compressed'}


def shown(view):
    return {display['Name']: display['Topic']['Value']
            for display in view['Visualization Manager']['Displays'] if 'Topic' in display}


def frame(view):
    return view['Visualization Manager']['Global Options']['Fixed Frame']


def test_rviz_shows_the_cameras_of_the_system_in_its_frame():
    template = yaml.safe_load((share_directory() / 'config' / 'vla.rviz').read_text())
    view = view_of(describe(CHECKPOINT))
    assert view == template
    view = view_of(describe({**CHECKPOINT, 'world': True, 'namespace': 'r1'}))
    assert frame(view) == 'world'
    assert shown(view) == {'Third person': '/r1/third_person/overlay',
                           'Wrist': '/r1/wrist/overlay'}


def test_rviz_follows_the_contract(tmp_path):
    plain = copy.deepcopy(to_plain(find_contract('')))
    plain['cameras'] = [{'name': name, 'topic': f'{name}/rgb'} for name in ('high', 'left_hand')]
    plain['actions'][0]['frame'] = 'left_base'
    contract = tmp_path / 'mine.yaml'
    contract.write_text(yaml.safe_dump(plain))
    view = view_of(describe({**CHECKPOINT, 'contract': str(contract)}))
    assert frame(view) == 'left_base'
    assert shown(view) == {'High': '/high/overlay', 'Left hand': '/left_hand/overlay'}
    joints = view_of(describe({**CHECKPOINT, 'contract': 'two_arms', 'namespace': '/r2'}))
    assert frame(joints) == 'base_link'
    assert next(iter(shown(joints).values())) == '/r2/high/overlay'


def test_rviz_lives_on_the_time_of_the_system():
    assert not is_on_sim_time(describe({**CHECKPOINT, 'world': True}))
    assert is_on_sim_time(describe({**CHECKPOINT, 'use_sim_time': True}))
    assert is_on_sim_time(describe({'world': True, 'policy': False, 'visualizer': False,
                                    'use_sim_time': True}))
