"""The actions that a bag holds, whatever says them: displacements per control period."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from sensor_bytes import IMAGE, JOINTS, POSE, image, joints, pose, write_topics

from vla_policy_node.contract import find_contract
from vla_policy_node.replay.actions import (
    ACTION_TYPES,
    TARGETS,
    TWIST,
    TWIST_STAMPED,
    ActionReader,
)
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.inspection import inspect
from vla_policy_node.replay.topics import find_topics

T, PERIOD_NS = 10**12, 50_000_000


def vector(values):
    return SimpleNamespace(**dict(zip('xyzw', map(float, values), strict=False)))


def header(stamp_ns, frame='base_link'):
    return SimpleNamespace(frame_id=frame, stamp=SimpleNamespace(
        sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9))


def twist(linear=(0.2, 0.0, 0.0), angular=(0.0, 0.0, 0.4)):
    return SimpleNamespace(linear=vector(linear), angular=vector(angular))


def stamped_twist(stamp_ns, frame='base_link'):
    return SimpleNamespace(header=header(stamp_ns, frame), twist=twist())


def target(stamp_ns, position, turn, frame='base_link'):
    return SimpleNamespace(header=header(stamp_ns, frame), pose=SimpleNamespace(
        position=vector(position), orientation=vector(turn)))


def command(stamp_ns, frame='base_link'):
    return SimpleNamespace(
        header=header(stamp_ns, frame), target_time=header(stamp_ns + PERIOD_NS).stamp, hold=False,
        gripper=1.0, translation=vector((0.1, 0, 0)), rotation=vector((0, 0, 0)))


def reader(kind, **said):
    return ActionReader(kind, PERIOD_NS, 'base_link', **said)


def moves(count, step_ns, speed, turning, start, flip=False):
    """Targets of an even motion: m/s and rad/s."""
    for i in range(count):
        seconds = i * step_ns / 1e9
        turn = (Rotation.from_rotvec(np.array(turning) * seconds) * start).as_quat()
        yield T + i * step_ns, np.array(speed) * seconds, -turn if flip and i % 2 else turn


speeds = st.tuples(*[st.floats(-0.5, 0.5)] * 3)


@given(st.integers(5_000_000, 200_000_000), speeds, speeds, st.booleans(), st.randoms())
def test_targets_of_an_even_motion_are_the_same_step_at_any_rate_and_in_any_order(
        step_ns, speed, turning, flip, random):
    start = Rotation.from_euler('xyz', [2.0, -0.5, 1.0])
    made = list(moves(12, step_ns, speed, turning, start, flip))
    random.shuffle(made)
    found = reader(TARGETS)
    for stamp_ns, position, turn in made:
        found.hear(target(stamp_ns, position, turn), 0)
    actions = found.actions()
    assert len(actions.target_ns) and np.all(np.diff(actions.target_ns) == step_ns)
    assert actions.target_ns[-1] == T + 11 * step_ns + PERIOD_NS
    step = np.array([*speed, *turning]) * (PERIOD_NS / 1e9)
    np.testing.assert_allclose(actions.delta, np.tile(step, (len(actions.delta), 1)), atol=1e-7)
    assert np.isnan(actions.gripper).all()


def test_messages_without_stamps_are_left_out_aloud_or_count_from_their_recording():
    by_stamp, by_log = reader(TWIST_STAMPED), reader(TWIST_STAMPED, by_log=True)
    for found in (by_stamp, by_log):
        found.hear(stamped_twist(0), T)
    assert not len(by_stamp.actions().target_ns)
    assert by_stamp.notes('/go') == [
        '1 messages on /go have a stamp of zero and were left out; `--stamps log` takes the times '
        'of recording.']
    assert by_log.actions().target_ns.tolist() == [T + PERIOD_NS] and not by_log.notes('/go')


def test_commands_count_from_their_recording_where_the_pictures_do():
    for by_log, start_ns in ((False, 5), (True, T)):
        found = reader(ACTION_TYPES[0], by_log=by_log)
        found.hear(command(5), T)
        assert found.actions().target_ns.tolist() == [start_ns + PERIOD_NS]


def test_targets_that_rest_for_long_or_are_none_are_no_motion():
    found = reader(TARGETS)
    for seconds, position in ((0.0, 0.0), (0.05, 0.01), (5.0, 1.0), (5.05, math.nan), (5.1, 1.01)):
        found.hear(target(T + round(seconds * 1e9), (position, 0, 0), (0, 0, 0, 1)), 0)
    found.hear(target(T, (0, 0, 0), (0, 0, 0, 0)), 0)
    np.testing.assert_allclose(found.actions().delta[:, 0], [0.01, 0.005])
    assert found.notes('/go') == [
        '2 messages on /go hold no usable numbers and were left out.']


def test_a_twist_is_what_it_moves_in_a_period_with_or_without_a_stamp():
    with_stamp, without = reader(TWIST_STAMPED), reader(TWIST)
    with_stamp.hear(stamped_twist(T), T + 10**12)
    without.hear(twist(), T + 10**12)
    for actions in (with_stamp.actions(10**12), without.actions(10**12)):
        assert actions.target_ns == [T + PERIOD_NS]
        np.testing.assert_allclose(actions.delta, [[0.01, 0, 0, 0, 0, 0.02]])


@pytest.mark.parametrize(('kind', 'message'), [
    (TWIST_STAMPED, stamped_twist(T, 'tool0')), (ACTION_TYPES[0], command(T, 'tool0')),
    (TARGETS, target(T, (0, 0, 0), (0, 0, 0, 1), 'map'))])
def test_what_is_in_another_frame_is_not_compared(kind, message):
    found = reader(kind)
    found.hear(message, T)
    assert not len(found.actions().target_ns)
    (note,) = found.notes('/go')
    assert note.startswith(f"1 messages on /go are in the frame '{message.header.frame_id}' and n")
    anywhere = ActionReader(kind, PERIOD_NS)
    anywhere.hear(message, T)
    assert not anywhere.notes('/go')


@pytest.mark.parametrize(('kind', 'why'), [
    ('trajectory_msgs/msg/JointTrajectory', 'it says where joints go'),
    (JOINTS, 'it measures joints'), (IMAGE, 'actions are of the type')])
def test_a_topic_that_holds_no_actions_is_a_sentence_with_those_that_may(tmp_path, kind, why):
    kinds = {'/third_person/image_raw': IMAGE, '/wrist/image_raw': IMAGE, '/ee_pose': POSE,
             '/gripper_state': JOINTS, '/other': kind, '/target': POSE}
    make = {IMAGE: image, POSE: pose, JOINTS: joints}
    path = write_topics(tmp_path / 'a.mcap', {
        name: [(T, make.get(of, pose)(T))] for name, of in kinds.items()}, kinds)
    with Bag(path) as bag:
        with pytest.raises(BagError, match=why) as caught:
            find_topics(bag, {}, '/other')
        assert str(caught.value).endswith(f'{ACTION_TYPES[-1]}: /target.')
        assert find_topics(bag, {}, 'target').actions == '/target'
        assert any('--actions-topic /target.' in remark
                   for remark in inspect(bag, find_contract('')).remarks)
