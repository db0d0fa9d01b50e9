"""A robot's frames: poses through any chain of transforms, and what is refused instead."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from sensor_bytes import transforms

from vla_policy_node.contract.state import TRANSFORM_TYPE, StateSource
from vla_policy_node.control import transform_tree
from vla_policy_node.control.transform_tree import FrameLink, TransformError, TransformTree
from vla_policy_node.wire.cdr import (
    MessageError,
    read_pose_stamped,
    read_transforms,
    with_transform_stamps,
    write_pose_stamped,
)
from vla_policy_node.wire.transforms import TransformPoses, newest_stamp

SECOND_NS = 10**9
NOW_NS = 1000 * SECOND_NS
STILL = (0.0, 0.0, 0.0, 1.0)
TURNED = (0.0, 0.0, 1.0, 0.0)


def message(*links):
    return transforms([(one.parent, one.child, one.stamp_ns or 0, one.translation, one.rotation)
                       for one in links])


def link(parent, child, stamp_ns=NOW_NS, at=(0.0, 0.0, 0.1), turn=STILL):
    return FrameLink(parent, child, at, turn, stamp_ns)


def tree(*links):
    made = TransformTree()
    for one in links:
        made.put(one)
    return made


def matrix(position, quaternion):
    made = np.eye(4)
    made[:3, :3], made[:3, 3] = Rotation.from_quat(quaternion).as_matrix(), position
    return made


# --- the tree ---

@st.composite
def trees(draw):
    """Links of a random tree, moving or not, and the pose of each frame in the root."""
    numbers = st.floats(-2.0, 2.0)
    links, poses = [], {'0': np.eye(4)}
    for i in range(1, draw(st.integers(2, 9))):
        parent = str(draw(st.integers(0, i - 1)))
        turn = np.array([draw(numbers) for _ in range(4)])
        turn = turn / np.linalg.norm(turn) if np.linalg.norm(turn) > 0.1 else np.array(STILL)
        stamp_ns = draw(st.none() | st.integers(NOW_NS, NOW_NS + SECOND_NS))
        made = link(parent, str(i), stamp_ns, tuple(draw(numbers) for _ in range(3)), tuple(turn))
        poses[made.child] = poses[parent] @ matrix(made.translation, made.rotation)
        links.append(made)
    return links, poses


@settings(max_examples=30)
@given(trees(), st.randoms(use_true_random=False))
def test_any_two_frames_of_a_tree_are_as_the_matrices_say_and_as_old_as_the_oldest_link(
        made, random):
    links, poses = made
    above = {one.child: one for one in links}

    def path(frame):
        found = []
        while frame in above:
            found.append(above[frame])
            frame = above[frame].parent
        return found

    random.shuffle(links)
    filled = tree(*links)
    for parent, child in ((a, b) for a in poses for b in poses):
        used = {*path(parent)} ^ {*path(child)}
        stamps = [one.stamp_ns for one in used if one.stamp_ns is not None]
        if not stamps:
            with pytest.raises(TransformError, match='all transforms are static'):
                filled.look(parent, child)
            continue
        stamp_ns, position, rotation = filled.look(parent, child)
        assert stamp_ns == min(stamps)
        np.testing.assert_allclose(
            matrix(position, rotation), np.linalg.inv(poses[parent]) @ poses[child], atol=1e-9)


def test_frames_that_nothing_connects_have_no_pose():
    assert tree(link('base', 'hand'), link('map', 'odom')).look('base', 'odom') is None
    assert tree(link('base', 'hand')).look('base', 'tool') is None


@pytest.mark.parametrize(('links', 'sentence'), [
    ([link('base', 'arm'), link('arm', 'hand'), link('hand', 'arm')], "'arm' has two parents"),
    ([link('arm', 'hand'), link('hand', 'arm')], 'lead in a loop through the frame'),
    ([link('hand', 'hand')], 'lead in a loop through the frame'),
    ([link('base', 'hand'), link('map', 'hand')], "transforms, 'base' and 'map'; stop one"),
    ([link('base', 'hand', None), link('map', 'hand')], 'two parents'),
    ([link('base', 'hand', at=(math.nan, 0.0, 0.0))], "from 'base' to 'hand' is not finite"),
    ([link('base', 'hand', turn=(0.0,) * 4)], 'quaternion has not length 1'),
    ([link('base', 'hand', turn=(math.nan, 0.0, 0.0, 1.0))], 'not finite'),
    ([link('base', 'hand', None)], 'all transforms are static'),
    ([link('base', 'arm'), link('arm', 'hand', None), link('arm', 'hand', None, at=(0.0,) * 3)],
     "from 'arm' to 'hand' came with two values"),
    ([link('base', 'arm'), link('arm', 'hand', None), link('arm', 'hand', None, turn=TURNED)],
     'came with two values')])
def test_what_is_no_pose_is_a_sentence(links, sentence):
    with pytest.raises(TransformError, match=sentence) as caught:
        tree(*links).look('base', 'hand')
    assert str(caught.value).endswith('.')


@pytest.mark.parametrize('name', ['a\nb', '\x1b[2J', 'x' * 1000])
def test_a_name_of_anybody_is_one_line_of_a_sentence(name):
    for links in ([link(name, 'hand'), link('base', 'hand')],
                  [link('hand', name), link(name, 'hand')]):
        with pytest.raises(TransformError) as caught:
            tree(*links).look('base', 'hand')
        assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@pytest.mark.parametrize('elsewhere', [
    link('map', 'base'), link('camera', 'camera'), link('odom', 'base'),
    link('base', 'lamp', at=(math.inf,) * 3), link('hand', 'finger', turn=(0.0,) * 4)])
def test_trouble_elsewhere_in_the_tree_is_no_trouble(elsewhere):
    filled = tree(link('base', 'hand'), link('odom', 'base'), link('x', 'lamp'), elsewhere)
    assert filled.look('base', 'hand')[1] == (0.0, 0.0, 0.1)


def test_an_overtaken_transform_is_dropped_and_a_clock_that_went_back_forgets_what_moved():
    filled = tree(link('base', 'arm', None), link('arm', 'hand', at=(1.0, 0.0, 0.0)),
                  link('arm', 'hand', NOW_NS - 1000, at=(2.0, 0.0, 0.0)))
    assert filled.look('arm', 'hand')[:2] == (NOW_NS, (1.0, 0.0, 0.0))
    filled.put(link('hand', 'finger'))
    filled.put(link('arm', 'hand', NOW_NS - SECOND_NS))
    assert filled.look('base', 'hand')[0] == NOW_NS - SECOND_NS
    assert filled.look('base', 'finger') is None


def test_a_static_transform_that_comes_again_or_rounded_is_the_same():
    filled = tree(link('base', 'arm'), *(link('arm', 'hand', None, at=(0.0, 0.0, z), turn=turn)
                                         for z in (0.1, 0.1, 0.1004)
                                         for turn in (STILL, (-0.0, 0.0, 1e-4, -1.0))))
    assert filled.look('base', 'hand')[1] == pytest.approx((0.0, 0.0, 0.2004))


def test_a_static_transform_that_is_found_to_move_is_not_doubted():
    filled = tree(link('base', 'hand', None), link('base', 'hand', None, at=(9.0,) * 3),
                  link('base', 'hand'))
    assert filled.look('base', 'hand') == (NOW_NS, (0.0, 0.0, 0.1), STILL)


def test_what_moves_is_not_static_whatever_somebody_says():
    filled = tree(link('base', 'hand'), link('base', 'hand', None, at=(9.0,) * 3))
    assert filled.look('base', 'hand') == (NOW_NS, (0.0, 0.0, 0.1), STILL)


def test_a_parent_of_before_is_forgotten_after_a_while():
    filled = tree(link('map', 'hand'), link('base', 'hand', NOW_NS + 9 * SECOND_NS))
    with pytest.raises(TransformError, match='two parents'):
        filled.look('base', 'hand')
    filled.put(link('base', 'hand', NOW_NS + 11 * SECOND_NS))
    assert filled.look('base', 'hand')[0] == NOW_NS + 11 * SECOND_NS


def test_the_tree_is_bounded(monkeypatch):
    monkeypatch.setattr(transform_tree, 'MOST_LINKS', 3)
    filled = tree(*(link('base', str(i)) for i in range(3)), link('base', '0', NOW_NS + 1))
    for child in ('3', '4'):
        with pytest.raises(TransformError, match='more than 3 transforms'):
            filled.put(link('base', child))
    assert filled.frames == ['0', '1', '2', 'base']


# --- poses from messages ---

def poses(parent='base', child='hand'):
    return TransformPoses(StateSource('pose', '/tf', TRANSFORM_TYPE, (), parent, child))


def test_a_pose_comes_with_each_newer_stamp_of_the_slowest_moving_link():
    source = poses()
    assert source.take(message(link('base', 'arm')), False) is None
    assert source.take(message(link('wrist', 'hand')), True) is None
    first = source.take(message(link('/arm', '/wrist', NOW_NS - 7)), False)
    assert read_pose_stamped(first) == (NOW_NS - 7, 'base', (0.0, 0.0, pytest.approx(0.3)), STILL)
    assert source.take(message(link('base', 'arm', NOW_NS + 5)), False) is None
    again = source.take(message(link('x', 'y'), link('arm', 'wrist', NOW_NS + 9)), False)
    assert read_pose_stamped(again)[0] == NOW_NS + 5
    assert source.take(message(), False) is None


def test_static_transforms_may_come_last():
    source = poses()
    assert source.take(message(link('arm', 'hand')), False) is None
    found = source.take(message(link('base', 'arm')), True)
    assert read_pose_stamped(found)[0] == NOW_NS


def test_a_rotation_that_goes_on_turning_does_not_jump():
    source, vectors = poses(), []
    for i in range(60):
        angle = math.pi / 2 + 0.02 * i  # about x, past pi
        turn = Rotation.from_rotvec([angle, 0.0, 0.0]).as_quat()
        turn = -turn if i % 2 else turn
        raw = source.take(message(link('base', 'hand', NOW_NS + i, turn=tuple(turn))), False)
        vectors.append(read_pose_stamped(raw)[3])
    assert vectors[0][0] > 0.0
    assert all(np.dot(a, b) > 0.99 for a, b in pairwise(vectors))


def test_frames_that_stay_apart_are_a_sentence_with_those_that_there_are():
    source = poses(child='tool')
    assert source.take(message(link('base', 'hand')), False) is None
    with pytest.raises(TransformError, match="from the frame 'base' to 'tool'; there are base, h"):
        source.take(message(link('base', 'hand', NOW_NS + 2 * SECOND_NS)), False)


@given(st.binary(max_size=200), st.integers(0, 1))
def test_any_bytes_are_transforms_or_a_message_error(body, order):
    try:
        found = poses().take(bytes([0, order, 0, 0]) + body, False)
    except (MessageError, TransformError) as error:
        assert str(error).endswith('.')
    else:
        assert found is None  # the frames are not among those


WHOLE = message(link('base', 'arm', at=(1.0, 2.0, 3.0)), link('arm', 'hand'))


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6),
       st.booleans())
def test_a_message_with_changed_bytes_is_a_pose_none_or_an_error(changes, static):
    raw = bytearray(WHOLE)
    for place, value in changes:
        raw[place] = value
    try:
        found = poses().take(bytes(raw), static)
    except (MessageError, TransformError) as error:
        assert str(error).endswith('.') and '\n' not in str(error)
    else:
        assert found is None or read_pose_stamped(found)[1] == 'base'


def test_a_message_is_read_as_it_was_written_and_can_be_stamped_anew():
    links = [link('base', 'arm', 12, (1.0, 2.0, 3.0), (0.0, 0.6, 0.0, 0.8)), link('arm', 'h', 99)]
    raw = message(*links)
    assert read_transforms(raw) == links
    assert read_transforms(raw, static=True)[0].stamp_ns is None
    assert newest_stamp(raw) == 99
    assert [one.stamp_ns for one in read_transforms(with_transform_stamps(raw, NOW_NS))] == [
        NOW_NS] * 2
    for stamp_ns in (-1, 2**62):
        with pytest.raises(MessageError, match='does not fit into a message'):
            with_transform_stamps(raw, stamp_ns)
    with pytest.raises(MessageError, match='claims 4294967295 transforms'):
        read_transforms(raw[:4] + b'\xff' * 4 + raw[8:])
    for length in range(len(raw)):
        with pytest.raises(MessageError):
            read_transforms(raw[:length])


@given(st.text(max_size=20).filter(lambda name: '\0' not in name),
       st.integers(0, 2**31 * 10**9 - 1))
def test_a_written_pose_is_read_as_it_was(frame, stamp_ns):
    pose = (stamp_ns, frame, (1.0, -2.0, 3e-9), (0.5, -0.5, 0.5, 0.5))
    assert read_pose_stamped(write_pose_stamped(*pose)) == pose
