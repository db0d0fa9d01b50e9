"""A recording of a robot with a contract of its own is replayed by that contract."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import yaml
from node_bench import create_tiny_checkpoint
from replay_bag import CAMERAS, PERIOD_NS, make_bag
from sensor_msgs.msg import JointState

from vla_msgs.msg import PolicyInfo
from vla_policy_node.contract import find_contract, to_plain
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.replay.bag import BagError
from vla_policy_node.replay.evaluate import replay_bag
from vla_policy_node.replay.settings import ReplaySettings
from vla_policy_node.system.recorded import RECORDED_ROBOT


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp('contract')
    bag = make_bag(folder / 'bag', seconds=0.6)
    return bag, str(create_tiny_checkpoint(folder / 'tiny'))


def robot(folder, name, change):
    """Return a parameter file of a robot like the default one, but for what `change` does."""
    plain = copy.deepcopy(to_plain(find_contract('')))
    change(plain)
    contract, config = folder / f'{name}.yaml', folder / f'{name}_parameters.yaml'
    contract.write_text(yaml.safe_dump(plain))
    config.write_text(yaml.safe_dump({'policy': {'ros__parameters': {
        'contract': str(contract), 'methods': ['dense'], 'max_tracking_error_m': 0.0}}}))
    return str(config)


def name_the_fingers(plain, names=('left', 'right')):
    for value, joint in zip(plain['state'][1]['values'], names, strict=True):
        value['joint'] = joint


def replayed(recorded, config):
    bag, checkpoint = recorded
    settings = ReplaySettings(config, checkpoint=checkpoint, video=False)
    return replay_bag(bag, settings, lambda what, share: None).traces[0]


def test_fingers_by_name_say_what_fingers_by_place_say_and_swapped_ones_do_not(
        recorded, tmp_path):
    by_place = replayed(recorded, robot(tmp_path, 'place', lambda plain: None))
    by_name = replayed(recorded, robot(tmp_path, 'name', name_the_fingers))
    swapped = replayed(recorded, robot(
        tmp_path, 'swapped', lambda plain: name_the_fingers(plain, ('right', 'left'))))
    actions = [np.stack([i.actions for i in trace.inferences])
               for trace in (by_place, by_name, swapped)]
    np.testing.assert_array_equal(actions[0], actions[1])
    assert (actions[0] != actions[2]).any()


def test_a_franka_with_nine_joints_and_both_fingers_positive_is_replayed_as_libero_is(
        recorded, tmp_path):
    def nine(index, message):
        names = [f'panda_joint{i}' for i in range(1, 8)] + [f'panda_finger_joint{i}' for i in (
            1, 2)]
        return JointState(header=message.header, name=names, position=[0.5] * 7 + [0.02, 0.02])

    def as_recorded(plain):
        plain |= to_plain(find_contract('franka_libero').with_topics(find_contract('').topics))
        plain['state'][0] = to_plain(find_contract(''))['state'][0]
        plain['actions'][0]['frame'] = 'base_link'

    bag = make_bag(tmp_path / 'bag', seconds=0.6, alter={'/gripper_state': nine})
    franka = replayed((bag, recorded[1]), robot(tmp_path, 'franka', as_recorded))
    libero = replayed(recorded, robot(tmp_path, 'libero', lambda plain: None))
    for one, other in zip(franka.inferences, libero.inferences, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)


def test_a_finger_with_the_wrong_sign_is_a_remark_and_a_count_and_changes_no_number(
        recorded, tmp_path):
    def positive(index, message):
        message.position = [0.02, 0.02]
        return message

    bag, checkpoint = make_bag(
        tmp_path / 'bag', seconds=0.6, alter={'/gripper_state': positive}), recorded[1]
    wrong, right = (
        replay_bag(path, ReplaySettings('dense', checkpoint=checkpoint, video=False),
                   lambda what, share: None).report for path in (bag, recorded[0]))
    said = [note for note in wrong['notes'] if 'right_finger' in note]
    assert len(said) == 1
    assert 'right_finger is 0.02 m' in said[0] and '`scale: -1.0`' in said[0]
    assert wrong['a']['counts']['worker.state_outside.right_finger'] == wrong['a']['inferences']
    assert not [note for note in right['notes'] if 'finger' in note]
    assert not [name for name in right['a']['counts'] if 'finger' in name]


def test_a_camera_that_was_not_recorded_is_asked_for_by_its_name(recorded, tmp_path):
    config = robot(tmp_path, 'side', lambda plain: plain['cameras'].append(
        {'name': 'side', 'topic': 'side/rgb'}))
    with pytest.raises(BagError, match="has no messages on '/side/rgb'"):
        replayed(recorded, config)


def test_policies_of_two_robots_are_not_compared(recorded, tmp_path):
    bag, checkpoint = recorded
    settings = replace(
        ReplaySettings(robot(tmp_path, 'a', lambda plain: None), checkpoint=checkpoint),
        against=robot(tmp_path, 'b', name_the_fingers), video=False)
    with pytest.raises(ValueError, match='different contracts'):
        replay_bag(bag, settings, lambda what, share: None)


def test_the_policy_is_told_the_state_in_its_own_order_whatever_that_of_the_contract(
        recorded, tmp_path):
    traces = [replayed(recorded, robot(tmp_path, name, change)) for name, change in (
        ('as_it_is', lambda plain: None), ('reversed', lambda plain: plain['state'].reverse()))]
    for one, other in zip(*(trace.inferences for trace in traces), strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)


def test_a_camera_that_nobody_looks_at_may_be_missing_and_changes_nothing(recorded, tmp_path):
    config = robot(tmp_path, 'side', lambda plain: plain['cameras'].append(
        {'name': 'side', 'topic': 'side/rgb', 'required': False}))
    plain = robot(tmp_path, 'plain', lambda plain: None)
    for one, other in zip(*(replayed(recorded, c).inferences for c in (config, plain)),
                          strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
        assert list(one.camera_stamps_ns) == ['third_person', 'wrist']


def test_a_camera_that_the_policy_looks_at_may_not_be_missing(recorded, tmp_path):
    def swap(plain):
        plain['cameras'][1] |= {'topic': 'hand/rgb', 'required': False}

    with pytest.raises(BagError, match=r"hand/rgb', and .* looks at the camera 'wrist'; name"):
        replayed(recorded, robot(tmp_path, 'swap', swap))


# --- the contract in the recording ---

@pytest.mark.parametrize(('topic', 'taken'), [
    ('front/rgb', '/front/rgb'), ('nowhere/rgb', '/spare/rgb'), ('', '/spare/rgb')])
def test_a_named_contract_says_which_topic_is_meant_and_else_the_bag_does(
        recorded, tmp_path, topic, taken):
    bag = make_bag(tmp_path / 'bag', seconds=0.6, more_cameras=('/front/rgb', '/spare/rgb'))
    beside(bag, lambda plain: plain['cameras'][1].update(topic='spare/rgb'))
    plain = copy.deepcopy(to_plain(find_contract('')))
    plain['cameras'][1]['topic'] = topic or 'wrist'
    file = tmp_path / 'robot.yaml'
    file.write_text(yaml.safe_dump(plain))
    settings = ReplaySettings('dense', checkpoint=recorded[1], video=False,
                              contract=str(file) if topic else '')
    found = replay_bag(bag, settings, lambda what, share: None).topics.inputs
    assert found[taken] == 'wrist'


def beside(bag, change):
    """Put the contract of a robot beside a bag, as a recorder does."""
    plain = copy.deepcopy(to_plain(find_contract('')))
    change(plain)
    (bag / RECORDED_ROBOT).write_text(yaml.safe_dump(plain))
    return plain


def swap_fingers(plain):
    name_the_fingers(plain, ('right', 'left'))


def evaluated(bag, checkpoint, **settings):
    settings = ReplaySettings('dense', checkpoint=checkpoint, video=False, **settings)
    return replay_bag(bag, settings, lambda what, share: None)


def actions_of(evaluation):
    return np.stack([i.actions for i in evaluation.traces[0].inferences])


@pytest.mark.parametrize('where', ['beside', 'said'])
def test_a_bag_of_another_robot_is_replayed_by_the_contract_that_it_holds(
        recorded, tmp_path, where):
    _, checkpoint = recorded
    plain = evaluated(make_bag(tmp_path / 'plain', seconds=0.6), checkpoint)
    info = None
    if where == 'said':
        contract = copy.deepcopy(to_plain(find_contract('')))
        swap_fingers(contract)
        parameters = PolicyParameters()
        info = PolicyInfo(control_period_s=PERIOD_NS / 1e9, contract=yaml.safe_dump(contract),
                          cameras=CAMERAS, camera_transforms=['none'] * 2,
                          execution_mode='async', dtype='float32')
        for name in ('frame_id', 'rotation_form', 'translation_scale_m', 'rotation_scale_rad',
                     'gripper_open', 'gripper_closed'):
            setattr(info.action, name, getattr(parameters, name))
    bag = make_bag(tmp_path / 'swapped', seconds=0.6, info=info)
    if where == 'beside':
        beside(bag, swap_fingers)
    swapped = evaluated(bag, checkpoint)
    assert not any('contract' in note for note in swapped.report['notes'])
    named = replayed((bag, checkpoint), robot(tmp_path, 'named', swap_fingers))
    np.testing.assert_array_equal(
        actions_of(swapped), np.stack([i.actions for i in named.inferences]))
    assert (actions_of(swapped) != actions_of(plain)).any()


def test_a_contract_that_contradicts_the_recorded_one_is_used_and_reported(recorded, tmp_path):
    _, checkpoint = recorded
    bag = make_bag(tmp_path / 'bag', seconds=0.6)
    beside(bag, swap_fingers)
    evaluation = evaluated(bag, checkpoint, contract='end_effector')
    assert ("The bag was recorded with another contract than 'end_effector', which differs in "
            'state.') in evaluation.report['notes']
    (bag / RECORDED_ROBOT).unlink()
    np.testing.assert_array_equal(actions_of(evaluation), actions_of(evaluated(bag, checkpoint)))


def test_streams_are_looked_for_where_the_recorded_contract_says(recorded, tmp_path):
    _, checkpoint = recorded
    bag = make_bag(tmp_path / 'bag', seconds=0.6, more_cameras=('/hand/rgb',),
                   omit=('/wrist/image_raw',))
    with pytest.raises(BagError, match="no messages on '/wrist/image_raw'"):
        evaluated(bag, checkpoint)
    beside(bag, lambda plain: plain['cameras'][1].update(topic='/hand/rgb'))
    assert '/hand/rgb' in evaluated(bag, checkpoint).report['bag']['messages']


def test_a_topic_of_a_stream_that_the_robot_does_not_have_is_refused(recorded):
    bag, checkpoint = recorded
    with pytest.raises(BagError, match='end_effector has no stream high; it has third_person, w'):
        evaluated(bag, checkpoint, topics={'high': '/h', 'wrist': ''})


@pytest.mark.parametrize(('text', 'sentence'), [
    ('format: 1', 'name is missing'), ('a: &a [*a]', 'robot.yaml'), ('x' * 100_000, 'bytes')])
def test_a_contract_of_a_bag_that_is_none_is_one_sentence(recorded, tmp_path, text, sentence):
    _, checkpoint = recorded
    bag = make_bag(tmp_path / 'bag', seconds=0.2)
    (bag / RECORDED_ROBOT).write_text(text)
    with pytest.raises(ValueError, match=sentence) as caught:
        evaluated(bag, checkpoint)
    assert '\n' not in str(caught.value)


def test_a_robot_that_is_moved_by_joints_is_refused_with_a_sentence(recorded, tmp_path):
    config = tmp_path / 'joints.yaml'
    config.write_text(yaml.safe_dump({'policy': {'ros__parameters': {
        'contract': 'joint_arm', 'methods': ['dense']}}}))
    with pytest.raises(BagError, match='only recordings of one end effector'):
        replayed(recorded, str(config))
