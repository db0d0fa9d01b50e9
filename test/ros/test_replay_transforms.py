"""A pose from /tf and /tf_static is replayed as one from a topic of its own."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import yaml
from node_bench import create_tiny_checkpoint
from sensor_bytes import (
    IMAGE,
    JOINTS,
    POSE,
    TRANSFORMS,
    image,
    joints,
    pose,
    transforms,
    write_topics,
)

from vla_policy_node.contract import find_contract, to_plain
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.evaluate import replay_bag
from vla_policy_node.replay.inspection import inspect
from vla_policy_node.replay.settings import ReplaySettings

START_NS, STEP_NS = 10**12, 50_000_000
STILL = (0.0, 0.0, 0.0, 1.0)
KINDS = {'/third_person/image_raw': IMAGE, '/wrist/image_raw': IMAGE, '/ee_pose': POSE,
         '/gripper_state': JOINTS, '/tf': TRANSFORMS, '/tf_static': TRANSFORMS}


def moving(t):
    return transforms([('base_link', 'elbow', t, (0.0, 0.0, 0.25), STILL),
                       ('elbow', 'flange', t, (0.0, 0.0, 0.125), STILL)])


def fixed(t):
    return transforms([('flange', 'tool', 0, (0.0, 0.0, 0.125), STILL)])


def fixed_once(t):
    return transforms([('flange', 'tool', t - 5 * 10**9, (0.0,) * 3, STILL)])


def half(t):
    return transforms([('base_link', 'elbow', t, (0.0,) * 3, STILL)])


def write(path, tf=moving, static=fixed, of_its_own=True):
    """Half a second of pictures and joints, and the same pose twice: as such and as transforms."""
    times = [START_NS + i * STEP_NS for i in range(12)]
    topics = {
        '/third_person/image_raw': [(t, image(t)) for t in times],
        '/wrist/image_raw': [(t, image(t + 1)) for t in times],
        '/ee_pose': [(t, pose(t)) for t in times if of_its_own],
        '/gripper_state': [(t, joints(t)) for t in times],
        '/tf': [(t, tf(t)) for t in times],
        '/tf_static': [(START_NS, static(START_NS))] if static else []}
    return write_topics(path, {k: v for k, v in topics.items() if v}, KINDS)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Return settings for a pose of its own and for one from transforms."""
    folder = tmp_path_factory.mktemp('transforms')
    plain = copy.deepcopy(to_plain(find_contract('')))
    plain['state'][0] |= {'topic': '/tf', 'type': TRANSFORMS, 'parent': 'base_link',
                          'child': 'tool'}
    contract = folder / 'tf.yaml'
    contract.write_text(yaml.safe_dump(plain))
    usual = ReplaySettings('dense', checkpoint=str(create_tiny_checkpoint(folder / 'tiny')),
                           instruction='pick up the black bowl', video=False)
    return usual, replace(usual, contract=str(contract))


def replayed(path, settings):
    return replay_bag(path, settings, lambda what, share: None)


def test_both_tell_the_policy_the_same(made, tmp_path):
    path = write(tmp_path / 'a.mcap')
    as_pose, as_transforms = (replayed(path, settings).traces[0] for settings in made)
    assert len(as_pose.inferences) == len(as_transforms.inferences) > 5
    for one, other in zip(as_pose.inferences, as_transforms.inferences, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
    with Bag(path) as bag:
        found = inspect(bag, find_contract(made[1].contract))
    assert found.ready and found.inputs[2].topic == '/tf'


@pytest.mark.parametrize(('tf', 'static', 'why'), [
    # Missing for long enough, not only late.
    (lambda t: moving(t + (t > START_NS) * 10**9), None,
     "No transforms lead from the frame 'base_link' to 'tool'"),
    (lambda t: transforms([('base_link', 'tool', t, (0.0,) * 3, STILL),
                           ('map', 'tool', t, (0.0,) * 3, STILL)]), None, 'has two parents'),
    (lambda t: transforms([('a', 'tool', t, (0.0,) * 3, STILL),
                           ('tool', 'a', t, (0.0,) * 3, STILL)]), None, 'lead in a loop'),
    (lambda t: transforms([('base_link', 'tool', START_NS - 10**10, (0.0,) * 3, STILL)]), None,
     'stamps of /tf are more than 10 s from those of third_person'),
    # One was sent once, long before: what it leads to is old, and only at first was it missing.
    (lambda t: (fixed_once if t == START_NS else half if t == START_NS + STEP_NS else moving)(t),
     None, r'The newest usable sample of ee_pose is too old \(its last stamp is 5'),
    (lambda t: transforms([('base_link', 'flange', 0, (0.0,) * 3, STILL)]), fixed,
     'has no stamps on /tf: all are zero')])
def test_transforms_that_lead_to_no_pose_end_in_a_sentence(made, tmp_path, tf, static, why):
    path = write(tmp_path / 'a.mcap', tf, static)
    with pytest.raises(BagError, match=why):
        replayed(path, made[1])


def test_without_stamps_the_times_of_recording_do(made, tmp_path):
    path = write(tmp_path / 'a.mcap', lambda t: moving(0))
    trace = replayed(path, replace(made[1], stamps='log')).traces[0]
    assert len(trace.inferences) > 5


def test_a_bag_without_the_pose_says_between_which_frames_it_could_be(made, tmp_path):
    path = write(tmp_path / 'a.mcap', of_its_own=False)
    with pytest.raises(BagError, match='; from /tf it could be tf2_msgs/msg/TFMessage with '
                       r'parent: base_link, child: tool or flange\.'):
        replayed(path, made[0])
    assert len(replayed(path, made[1]).traces[0].inferences) > 5
