"""Topics of a bag are found however their names are written, and never a depth topic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
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

from vla_policy_node.contract import find_contract
from vla_policy_node.policy.interface import CAMERAS as ROLES
from vla_policy_node.policy.interface import END_EFFECTOR_STATE, PolicySpec
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.topics import find_topics

T = 10**12
STATE = {'/ee_pose': (POSE, pose(T)), '/gripper_state': (JOINTS, joints(T))}
ALL = {'The policy': PolicySpec()}
CAMERAS = {'/third_person/image_raw': (IMAGE, image(T)), '/wrist/image_raw': (IMAGE, image(T))}


@pytest.fixture
def bag(tmp_path):
    """Write a bag of one message per topic: name -> type and message."""
    opened = []

    def write(topics):
        path = write_topics(
            tmp_path / f'{len(opened)}.mcap', {name: [(T, raw)] for name, (_, raw) in
                                               topics.items()},
            {name: kind for name, (kind, _) in topics.items()})
        opened.append(Bag(path).__enter__())
        return opened[-1]

    yield write
    for one in opened:
        one.__exit__(None, None, None)


@pytest.mark.parametrize('asked', [
    '/cam/color/image_raw', 'cam/color/image_raw', '/cam/color/image_raw/compressed',
    'cam/color/image_raw/compressed', ' /cam/color/image_raw'])
@pytest.mark.parametrize('recorded', ['/cam/color/image_raw', 'cam/color/image_raw'])
@pytest.mark.parametrize('is_compressed', [False, True])
def test_slash_and_compressed_may_be_left_out_or_added(bag, asked, recorded, is_compressed):
    topic = f'{recorded}/compressed' if is_compressed else recorded
    one = {topic: (COMPRESSED, compressed(T)) if is_compressed else (IMAGE, image(T))}
    found = find_topics(bag({**CAMERAS, **STATE, **one}), {'wrist': asked})
    assert found.inputs[topic] == 'wrist'
    assert found.streams.is_compressed('wrist') is is_compressed
    assert not found.streams.is_compressed('third_person')


def test_one_camera_may_be_raw_and_the_other_compressed(bag):
    topics = {**STATE, '/third_person/image_raw': (IMAGE, image(T)),
              '/wrist/image_raw/compressed': (COMPRESSED, compressed(T))}
    streams = find_topics(bag(topics), {}).streams
    assert [streams.is_compressed(camera) for camera in streams.cameras] == [False, True]
    assert streams.topics['wrist'] == (COMPRESSED, 'wrist/image_raw/compressed')


def test_raw_pictures_come_before_compressed_ones_unless_those_are_named(bag):
    both = bag({**CAMERAS, **STATE, '/wrist/image_raw/compressed': (COMPRESSED, compressed(T))})
    assert find_topics(both, {}).inputs['/wrist/image_raw'] == 'wrist'
    named = find_topics(both, {'wrist': '/wrist/image_raw/compressed'})
    assert named.inputs['/wrist/image_raw/compressed'] == 'wrist'


def test_a_depth_topic_is_never_suggested(bag):
    topics = {
        '/third_person/image_raw': CAMERAS['/third_person/image_raw'], **STATE,
        '/cam/depth/image_rect': (IMAGE, image(T, 'mono16', 2)),
        '/cam/aligned': (IMAGE, image(T, '16UC1', 2)),
        '/cam/packed': (COMPRESSED, compressed(T, '16UC1; compressedDepth', '.png')),
        '/cam/video': (COMPRESSED, compressed(T, 'h264', '.bmp')),
        '/cam/color': (COMPRESSED, compressed(T)), '/cam/raw': (IMAGE, image(T, 'bayer_rggb8', 1))}
    with pytest.raises(BagError) as caught:
        find_topics(bag(topics), {}).needed_by(ALL)
    assert ('name one with --wrist-topic TOPIC: /cam/color, /cam/raw, /third_person/image_raw.'
            in str(caught.value))


def test_without_a_usable_topic_none_is_suggested(bag):
    with pytest.raises(BagError, match='no topic has usable messages of the type'):
        find_topics(bag({**STATE, '/cam/depth': (IMAGE, image(T))}), {}).needed_by(ALL)


@pytest.mark.parametrize(('chosen', 'why'), [
    ({'third_person': '/wrist/image_raw'}, 'is third_person already, and .* --wrist-topic TOPIC'),
    ({'wrist': 'third_person/image_raw'}, 'is wrist already, and .* --third-person-topic TOPIC'),
    ({'third_person': '/a', 'wrist': 'a/compressed'},
     'is to be third_person and wrist at once; name another')])
def test_one_topic_for_two_inputs_that_are_needed_is_a_sentence(bag, chosen, why):
    topics = {**CAMERAS, **STATE, '/a': (IMAGE, image(T))}
    with pytest.raises(BagError, match=why):
        find_topics(bag(topics), chosen).needed_by(ALL)


def test_states_in_another_frame_are_suggested(bag):
    topics = {**CAMERAS, '/tool': (POSE, pose(T, 'world')), **STATE}
    del topics['/ee_pose']
    with pytest.raises(BagError, match='--ee-pose-topic TOPIC: /tool'):
        find_topics(bag(topics), {}).needed_by(ALL)


def test_a_topic_that_holds_no_actions_is_refused_with_those_that_do(bag):
    topics = {**CAMERAS, **STATE, '/twist': ('geometry_msgs/msg/TwistStamped', b'')}
    for actions, reason in (('/ee_pose', 'has the type geometry_msgs/msg/PoseStamped'),
                            ('/nothing', 'has no messages')):
        with pytest.raises(BagError, match=rf'{reason}; actions are .*: /twist\.'):
            find_topics(bag(topics), {}, actions)
    assert find_topics(bag(topics), {}, 'twist').actions == '/twist'
    assert find_topics(bag(topics), {}).actions == ''


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A bag with all inputs of the default robot."""
    topics = {**CAMERAS, **STATE}
    path = write_topics(
        tmp_path_factory.mktemp('whole') / 'bag.mcap',
        {name: [(T, raw)] for name, (_, raw) in topics.items()},
        {name: kind for name, (kind, _) in topics.items()})
    with Bag(path) as opened:
        yield find_topics(opened, {})


SPECS = st.builds(
    PolicySpec, st.sampled_from([ROLES, ROLES[:1], ROLES[1:]]),
    st.sets(st.sampled_from(END_EFFECTOR_STATE), max_size=3).map(tuple))


@given(SPECS, SPECS)
def test_two_policies_need_the_union_of_what_each_needs(whole, one, other):
    each = [{*whole.needed_by({'a': spec}).inputs.values()} for spec in (one, other)]
    both = {*whole.needed_by({'a': one, 'b': other}).inputs.values()}
    assert both == each[0] | each[1]
    assert {'third_person', 'ee_pose', *one.cameras} <= both  # the reference, and what moves
    fingers = {quantity.name for spec in (one, other) for quantity in spec.state}
    assert ('gripper_state' in both) is bool(fingers & {'left_finger', 'right_finger'})


@pytest.mark.parametrize(('lost', 'needs', 'reason'), [
    ('/wrist/image_raw', PolicySpec(), "'/wrist/image_raw', and mine looks at the camera 'wrist'"),
    ('/wrist/image_raw', PolicySpec(ROLES[:1]), ''),
    ('/third_person/image_raw', PolicySpec(ROLES[1:]), "end_effector requires the camera 'third"),
    ('/gripper_state', PolicySpec(state=END_EFFECTOR_STATE[:6]), ''),
    ('/gripper_state', PolicySpec(), 'mine is told what gripper_state measures'),
    ('/ee_pose', PolicySpec(), 'mine is told what ee_pose measures'),
    ('/ee_pose', PolicySpec(state=END_EFFECTOR_STATE[6:]), '')])
def test_what_lacks_is_named_with_who_needs_it_and_nothing_else_is_missed(
        bag, lost, needs, reason):
    topics = {**CAMERAS, **STATE}
    del topics[lost]
    found = find_topics(bag(topics), {})
    if not reason:
        left = found.needed_by({'mine': needs})
        assert lost not in left.inputs
        assert left.streams.pose == ('' if lost == '/ee_pose' else 'ee_pose')
        return
    with pytest.raises(BagError, match=reason):
        found.needed_by({'mine': needs})


def test_commands_that_move_need_the_pose_whatever_the_policy_is_told(bag):
    found = find_topics(bag({'/third_person/image_raw': (IMAGE, image(T))}), {})
    needs = {'mine': PolicySpec(ROLES[:1], ())}
    assert found.needed_by(needs).streams.pose == ''
    with pytest.raises(BagError, match='without ee_pose nothing may be moved'):
        found.needed_by(needs, moves=True)


def test_transforms_that_do_not_lead_to_the_pose_are_no_poses(bag):
    robot = find_contract('franka_libero')
    topics = {f'/{camera.topic}': (IMAGE, image(T)) for camera in robot.cameras}
    topics['/tf'] = (TRANSFORMS, transforms([('map', 'odom', T, (0, 0, 0), (0, 0, 0, 1))]))
    found = find_topics(bag(topics), {}, robot=robot)
    assert found.needed_by({'mine': PolicySpec(ROLES[:1], ())}).streams.pose == ''
    with pytest.raises(BagError, match=r"do not lead from 'panda_link0' to .*, and The policy is"):
        found.needed_by(ALL)


def test_a_suggestion_that_is_another_input_already_is_called_so(bag):
    topics = {'/third_person/image_raw': CAMERAS['/third_person/image_raw'], **STATE}
    with pytest.raises(BagError, match=r'TOPIC: /third_person/image_raw \(another input already'):
        find_topics(bag(topics), {}).needed_by(ALL)
