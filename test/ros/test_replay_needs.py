"""What the policies of a replay need decides what a bag must have, and nothing else does."""

import copy
from pathlib import Path

import checkpoint_variants
import numpy as np
import pytest
import yaml
from node_bench import create_tiny_checkpoint
from replay_bag import make_bag

import vla_policy_node
from vla_policy_node.contract import find_contract, to_plain
from vla_policy_node.replay.bag import BagError
from vla_policy_node.replay.evaluate import evaluate_bag, replay_bag
from vla_policy_node.replay.settings import ReplaySettings

PACKAGE = Path(vla_policy_node.__file__).parent
OTHERS = ('/wrist/image_raw', '/ee_pose', '/gripper_state')


@pytest.fixture(scope='module')
def policies(tmp_path_factory):
    """One that looks at one camera and is told nothing, and one that needs all four streams."""
    folder = tmp_path_factory.mktemp('policies')
    return {'openvla': checkpoint_variants.make(folder / 'openvla', 'autoregressive'),
            'oft': create_tiny_checkpoint(folder / 'oft')}


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    """Write a bag without the topics that are named, once."""
    made = {}

    def get(*omitted):
        if omitted not in made:
            made[omitted] = make_bag(
                tmp_path_factory.mktemp('bags') / 'bag', seconds=0.6, omit=omitted)
        return made[omitted]

    return get


@pytest.fixture
def config(tmp_path, policies):
    """Write a parameter file; edit: what to change in the default contract."""
    def write(name, policy, edit=None):
        contract = ''
        if edit:
            plain = copy.deepcopy(to_plain(find_contract('')))
            edit(plain)
            contract = str(tmp_path / f'{name}_robot.yaml')
            (tmp_path / f'{name}_robot.yaml').write_text(yaml.safe_dump(plain))
        file = tmp_path / f'{name}.yaml'
        file.write_text(yaml.safe_dump({'policy': {'ros__parameters': {
            'checkpoint': str(policies[policy]), 'methods': ['dense'], 'contract': contract,
            # One command for each answer, also of a policy that answers with one action.
            'pacing': 'observation'}}}))
        return str(file)

    return write


def replay(bag, config, against=''):
    return replay_bag(bag, ReplaySettings(config, against, video=False), lambda what, share: None)


def moving(trace):
    return [command.motion for _, command in trace.commands if command.observation_stamp_ns]


def actions(trace):
    return np.stack([one.actions for one in trace.inferences])


def test_one_camera_and_no_state_are_enough_for_a_policy_of_one_camera(bag, config):
    found = replay(bag(*OTHERS), config('a', 'openvla'))
    [trace] = found.traces
    assert len(trace.inferences) > 3 and moving(trace)
    assert list(found.report['bag']['messages']) == ['/third_person/image_raw', '/command']
    assert 'by no workspace' in ' '.join(found.report['notes'])
    assert not any('workspace' in name for name in trace.counts)


def one_camera(plain):
    del plain['cameras'][1:]
    plain['state'], plain['actions'][0]['pose'] = [], ''


def test_a_contract_of_one_camera_without_any_state_says_the_same(bag, config):
    plain = replay(bag(*OTHERS), config('a', 'openvla'))
    small = replay(bag(*OTHERS), config('b', 'openvla', one_camera))
    np.testing.assert_array_equal(actions(plain.traces[0]), actions(small.traces[0]))
    for one, other in zip(moving(plain.traces[0]), moving(small.traces[0]), strict=True):
        np.testing.assert_array_equal(one.translation_m, other.translation_m)


def far_away(plain):
    plain['actions'][0]['limits'] |= {
        'workspace_min_m': [-0.001] * 3, 'workspace_max_m': [0.001, 0.001, 0.501]}


def test_poses_that_were_recorded_bound_the_commands_and_fingers_are_not_read(bag, config):
    """The pose is that of a robot that moves; what the policy is not told does not matter."""
    free = replay(bag(*OTHERS), config('free', 'openvla', far_away))
    bound = replay(bag('/gripper_state'), config('bound', 'openvla', far_away))
    assert set(bound.report['bag']['messages']) == {
        '/third_person/image_raw', '/ee_pose', '/command'}
    assert 'by no workspace' not in ' '.join(bound.report['notes'])
    np.testing.assert_array_equal(actions(free.traces[0]), actions(bound.traces[0]))
    assert bound.traces[0].counts['limit.workspace'] > 0
    assert 'limit.workspace' not in free.traces[0].counts


def test_the_only_camera_may_be_called_as_another_one_is(bag, config):
    others = tuple(topic for topic in OTHERS if 'wrist' not in topic)
    found = replay_bag(bag('/third_person/image_raw', *others), ReplaySettings(
        config('a', 'openvla'), topics={'third_person': '/wrist/image_raw'}, video=False),
        lambda what, share: None)
    assert found.topics.inputs == {'/wrist/image_raw': 'third_person'}
    assert len(found.traces[0].inferences) > 3


def move_elsewhere(index, message):
    message.header.frame_id = 'world'
    return message


def forget_stamp(index, message):
    message.header.stamp.sec = message.header.stamp.nanosec = 0
    return message


def by_another_clock(index, message):
    message.header.stamp.sec += 10**6
    return message


@pytest.mark.parametrize(('alter', 'why'), [
    (by_another_clock, 'of another clock than those of third_person'),
    (move_elsewhere, "in frame 'world'"), (forget_stamp, 'all stamps are zero')])
def test_poses_that_cannot_be_used_are_in_nobodys_way_who_is_not_told_them(
        config, tmp_path, alter, why):
    bag = make_bag(tmp_path / 'bag', seconds=0.6, alter={'/ee_pose': alter})
    found = replay(bag, config('a', 'openvla'))
    assert len(found.traces[0].inferences) > 3
    [note] = [note for note in found.report['notes'] if 'by no workspace' in note]
    assert 'those on /ee_pose are not used: ' in note and why in note
    with pytest.raises(BagError, match=r'ee_pose'):
        replay(bag, config('b', 'oft'))


def test_two_policies_need_what_both_need_together(bag, config):
    small, large = config('small', 'openvla'), config('large', 'oft')
    found = replay(bag(), small, large)
    assert [list(trace.inferences[0].camera_stamps_ns) for trace in found.traces] == [
        ['third_person'], ['third_person', 'wrist']]
    assert found.pairs
    for pair in ((small, large), (large, small)):
        with pytest.raises(BagError) as caught:
            replay(bag('/wrist/image_raw'), *pair)
        sentence = str(caught.value)
        assert "no messages on '/wrist/image_raw'" in sentence
        assert "large (dense) of the checkpoint oft looks at the camera 'wrist'" in sentence
        assert '--wrist-topic TOPIC' in sentence and '\n' not in sentence


def taller(index, message):
    message.height, message.data = 2 * message.height, [*message.data, *message.data]
    return message


def test_a_report_shows_what_only_one_of_two_policies_looks_at(config, tmp_path):
    """The wrist's pictures are larger, and the second policy does not see them."""
    bag = make_bag(tmp_path / 'bag', seconds=0.6, alter={'/wrist/image_raw': taller})
    settings = ReplaySettings(config('large', 'oft'), config('small', 'openvla'), video=False)
    report = evaluate_bag(bag, settings, tmp_path / 'out').report
    assert list(report['a']['tokens_kept_by_camera']) == ['third_person', 'wrist']
    assert list(report['difference']['paired']['tokens_kept_by_camera']) == ['third_person']
    assert 'wrist' in (tmp_path / 'out' / 'report.html').read_text(encoding='utf-8')
    assert (tmp_path / 'out' / 'different_01.jpg').exists()


@pytest.mark.parametrize('state', ['ee_pose', 'gripper_state'])
def test_a_state_that_a_policy_is_told_is_missed_by_name(bag, config, state):
    option = f'--{state.replace("_", "-")}-topic'
    with pytest.raises(BagError, match=rf'oft is told what {state} measures; .* {option} TOPIC'):
        replay(bag(f'/{state}'), config('a', 'oft'))


def test_a_camera_that_the_contract_requires_is_missed_by_any_policy(bag, config):
    def require(plain):
        plain['cameras'][1]['required'] = True

    with pytest.raises(BagError, match="contract of end_effector requires the camera 'wrist'"):
        replay(bag(*OTHERS), config('a', 'openvla', require))


def test_only_a_replay_knows_the_mover_that_has_no_workspace():
    """Nothing that moves a robot may leave out where the robot is."""
    users = {path.parent.name for path in PACKAGE.rglob('*.py')
             if 'UnmeasuredMover' in path.read_text(encoding='utf-8')}
    assert users == {'replay'}
