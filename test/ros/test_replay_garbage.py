"""Messages of a bag that are none: left out and counted as in the live node, never a traceback."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from node_bench import create_tiny_checkpoint
from replay_bag import PERIOD_NS, START_NS, make_bag

from vla_policy_node.nodes.messages import to_time
from vla_policy_node.policy.interface import MAX_INSTRUCTION_BYTES
from vla_policy_node.replay.bag import BagError
from vla_policy_node.replay.evaluate import evaluate_bag, replay_bag
from vla_policy_node.replay.settings import ReplaySettings

INPUTS = ('/third_person/image_raw', '/wrist/image_raw', '/ee_pose', '/gripper_state')
TOLD = ('/policy_status', '/command')


@pytest.fixture(scope='module')
def replay(tmp_path_factory):
    """Replay a bag; returns its report, and whatever was printed or logged is no traceback."""
    checkpoint = str(create_tiny_checkpoint(tmp_path_factory.mktemp('tiny')))

    def run(bag, **options):
        chosen = ReplaySettings('dense', checkpoint=checkpoint, video=False, **options)
        return replay_bag(bag, chosen, lambda what, share: None)

    return run


def no_traceback(caplog, capfd):
    seen = capfd.readouterr()
    assert 'Traceback' not in seen.err + seen.out + caplog.text


def nan_pose(message):
    message.pose.position.x = math.nan
    return message


def far_pose(message):
    message.pose.position.y = 1e306
    return message


def zero_quaternion(message):
    message.pose.orientation.w = 0.0
    return message


def infinite_finger(message):
    message.position = [0.02, math.inf]
    return message


def no_fingers(message):
    message.position = []
    return message


def no_pixels(message):
    message.data = b''
    return message


def huge_picture(message):
    message.height = message.width = 2**31
    return message


GARBAGE = [
    ('/ee_pose', nan_pose), ('/ee_pose', zero_quaternion),
    ('/gripper_state', infinite_finger), ('/gripper_state', no_fingers),
    ('/wrist/image_raw', no_pixels), ('/third_person/image_raw', huge_picture),
]


@pytest.mark.parametrize(('topic', 'spoil'), GARBAGE)
def test_garbage_in_one_message_costs_that_message(
        replay, tmp_path, caplog, capfd, topic, spoil):
    def alter(index, message):
        return spoil(message) if index == 4 else message

    bag = make_bag(tmp_path / 'bag', seconds=1.0, alter={topic: alter})
    report = replay(bag).report['a']
    assert report['inferences'] >= 5
    no_traceback(caplog, capfd)


@pytest.mark.parametrize(('topic', 'spoil'), [*GARBAGE, ('/ee_pose', far_pose)])
def test_garbage_in_every_message_moves_nothing(replay, tmp_path, caplog, capfd, topic, spoil):
    bag = make_bag(tmp_path / 'bag', seconds=0.6, alter={topic: lambda _, m: spoil(m)})
    try:
        report = replay(bag).report['a']
    except BagError as error:
        assert 'could be used' in str(error)
    else:
        assert report['actions_sent'] == 0
    no_traceback(caplog, capfd)


@pytest.mark.parametrize('topic', INPUTS)
@pytest.mark.parametrize('seconds', [-(2**31), -1, 0, 2**31 - 1])
def test_stamps_that_are_no_times_are_left_out(replay, tmp_path, caplog, capfd, topic, seconds):
    def alter(index, message):
        if index % 3 == 1:
            message.header.stamp.sec, message.header.stamp.nanosec = seconds, 2**32 - 1
        return message

    bag = make_bag(tmp_path / 'bag', seconds=1.0, alter={topic: alter})
    try:
        replay(bag)
    except BagError as error:
        assert str(error).endswith('.')
    no_traceback(caplog, capfd)


@pytest.mark.parametrize('topic', INPUTS)
@pytest.mark.parametrize('rewrite', [
    lambda raw: b'', lambda raw: raw[:3], lambda raw: raw[:11], lambda raw: raw[:-1],
    lambda raw: b'\xff' * len(raw), lambda raw: raw[:4] + bytes(8) + b'\xff' * (len(raw) - 12),
    lambda raw: raw * 3, lambda raw: b'\0\0' + raw[2:],
], ids=['none', '3 bytes', '11 bytes', 'cut', 'ones', 'length 4 GB', 'thrice', 'big endian'])
def test_bytes_that_are_no_message_are_left_out(
        replay, tmp_path, caplog, capfd, topic, rewrite):
    bag = make_bag(tmp_path / 'bag', seconds=0.4, rewrite={topic: rewrite})
    try:
        replay(bag)
    except BagError as error:
        assert str(error).endswith('.')
        assert '\n' not in str(error)
    no_traceback(caplog, capfd)


def test_actions_that_are_no_numbers_are_left_out_and_said(replay, tmp_path):
    def alter(index, message):
        message.translation.x = (math.nan, math.inf, 1e300, 0.001)[index % 4]
        message.gripper = math.nan if index % 8 == 3 else 1.0
        return message

    report = replay(make_bag(tmp_path / 'bag', seconds=1.0, alter={'/command': alter})).report
    assert report['bag']['actions']['count'] == 5
    assert '15 messages on /command hold no usable numbers and were left out.' in report['notes']


def test_a_report_of_such_a_bag_is_written_whole(tmp_path, tmp_path_factory):
    checkpoint = str(create_tiny_checkpoint(tmp_path_factory.mktemp('tiny')))

    def alter(index, message):
        message.translation.y = math.nan if index % 2 else 0.001
        message.target_time = to_time(START_NS + (index % 5) * PERIOD_NS)
        return message

    bag = make_bag(tmp_path / 'bag', seconds=0.6, alter={'/command': alter})
    evaluate_bag(bag, ReplaySettings('dense', checkpoint=checkpoint), tmp_path / 'out')
    assert (tmp_path / 'out' / 'report.html').is_file()


def test_an_instruction_that_no_policy_takes_is_refused(replay, tmp_path):
    bag = make_bag(tmp_path / 'bag', seconds=0.4, instruction='x' * 2_000_000)
    with pytest.raises(BagError, match='has 2000000 bytes; a policy takes'):
        replay(bag)
    assert replay(bag, instruction='x ' * (MAX_INSTRUCTION_BYTES // 1024)).report


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(topic=st.sampled_from([*INPUTS, *TOLD]), place=st.floats(0, 1, exclude_max=True),
       values=st.binary(min_size=1, max_size=12), every=st.integers(1, 4),
       cut=st.booleans())
def test_whatever_bytes_change_it_is_a_report_or_a_sentence(
        replay, tmp_path_factory, topic, place, values, every, cut):
    count = 0

    def rewrite(raw):
        nonlocal count
        count += 1
        if count % every:
            return raw
        at = 4 + int(place * min(len(raw) - 4, 120))
        return raw[:at] if cut else raw[:at] + values + raw[at + len(values):]

    bag = make_bag(tmp_path_factory.mktemp('fuzz') / 'bag', seconds=0.4, rewrite={topic: rewrite})
    try:
        replay(bag)
    except BagError as error:
        assert '\n' not in str(error)
        assert len(str(error)) < 1000


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=3, max_size=3))
def test_goals_of_any_time_are_a_report_or_a_sentence(replay, tmp_path_factory, seconds):
    def alter(index, message):
        if 0 <= index < 3:
            message.header.stamp.sec = seconds[index]
            message.epoch = index
        return message

    bag = make_bag(tmp_path_factory.mktemp('goals') / 'bag', seconds=0.4,
                   alter={'/policy_status': alter})
    try:
        replay(bag)
    except BagError as error:
        assert '\n' not in str(error)
