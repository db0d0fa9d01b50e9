"""A recording of a robot with a contract of its own is replayed by that contract."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import yaml
from node_bench import create_tiny_checkpoint
from replay_bag import make_bag

from vla_policy_node.contract import find_contract, to_plain
from vla_policy_node.replay.bag import BagError
from vla_policy_node.replay.evaluate import replay_bag
from vla_policy_node.replay.settings import ReplaySettings


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

    with pytest.raises(BagError, match="looks at the camera 'wrist', of which the bag has noth"):
        replayed(recorded, robot(tmp_path, 'swap', swap))
