"""Topics of a bag are found however their names are written, and never a depth topic."""

import pytest
from sensor_bytes import (
    COMPRESSED,
    IMAGE,
    JOINTS,
    POSE,
    compressed,
    image,
    joints,
    pose,
    write_topics,
)

from vla_policy_node.policy.interface import PolicySpec
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


@pytest.mark.parametrize('chosen', [
    {'third_person': '/wrist/image_raw'}, {'wrist': 'third_person/image_raw'},
    {'third_person': '/a', 'wrist': 'a/compressed'}])
def test_one_topic_for_two_inputs_is_a_sentence(bag, chosen):
    topics = {**CAMERAS, **STATE, '/a': (IMAGE, image(T))}
    with pytest.raises(BagError, match=r'is to be third_person and wrist at once; name another'):
        find_topics(bag(topics), chosen)


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
