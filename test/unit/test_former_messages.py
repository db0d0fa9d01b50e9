"""Bytes that earlier versions of the messages wrote are read as messages of today."""

from pathlib import Path

import numpy as np
import pytest

from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.settings import read_info
from vla_policy_node.replay.topics import INFO, POLICY_INFO, RECORDS, STATUS, decode
from vla_policy_node.wire.definitions import MessageDefinitions
from vla_policy_node.wire.former import FORMER

pytestmark = pytest.mark.unit
RECORDING = Path(__file__).parents[1] / 'data' / 'recording_two_cameras'


@pytest.fixture(scope='module')
def messages():
    """Raw messages of the old recording by topic."""
    found = {}
    with Bag(RECORDING) as bag:
        for topic, _, raw in bag.messages({STATUS, INFO}):
            found.setdefault(topic, []).append(raw)
    return found


def test_the_two_ages_of_before_bear_the_names_of_their_cameras(messages):
    first, *_, last = (decode(raw, RECORDS[STATUS], STATUS) for raw in messages[STATUS])
    assert (first.goal_active, last.goal_active) == (True, False)
    assert first.camera_names == ['third_person', 'wrist']
    np.testing.assert_array_equal(first.camera_ages_ms, [33.25, 12.5])
    assert (first.camera_spread_ms, first.state_age_ms, first.hold.text) == (1.5, 4.0, 'Ready.')
    assert first.counter_names == ['input.pairs', 'limit.step']
    np.testing.assert_array_equal(first.counter_values, [7, 2])


def test_a_description_of_before_names_no_cameras_and_keeps_the_rest(messages):
    with Bag(RECORDING) as bag:
        info = read_info(bag)
    assert (info.cameras, info.contract) == ([], '')
    assert info.camera_transforms == ['none', 'mirror_horizontal']
    assert (info.optimisation, info.preprocessing) == ('fused', 'exact')
    assert (info.action.names[-1], info.action.gripper_closed) == ('gripper', -1.0)
    oldest = decode(messages[INFO][0][:-len('\6\0\0\0fused\0\0\0\6\0\0\0exact\0')], POLICY_INFO,
                    INFO)
    assert (oldest.optimisation, oldest.preprocessing, oldest.cameras) == ('', '', [])
    assert oldest.action == info.action


@pytest.mark.parametrize('kind', FORMER)
def test_what_is_written_today_is_read_as_it_is(messages, kind):
    definitions = MessageDefinitions()
    topic = next(topic for topic, name in RECORDS.items() if name == kind)
    written = definitions.write(definitions.read(messages[topic][0], kind))
    assert written != messages[topic][0]
    assert definitions.write(definitions.read(written, kind)) == written
    # A later version may have appended fields, and a middleware pads.
    for more in (b'\0', b'\0\0\0', b'\7' * 40):
        assert definitions.write(definitions.read(written + more, kind)) == written


@pytest.mark.parametrize(('topic', 'kind'), RECORDS.items())
def test_a_message_that_ends_too_early_is_refused(messages, topic, kind):
    for raw in messages.get(topic, ())[:1]:
        for size in range(4, len(raw) - 24):
            with pytest.raises(BagError, match='is not the'):
                decode(raw[:size], kind, topic)
