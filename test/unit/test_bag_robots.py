"""Bags of robots in namespaces: whose topics are meant, and when nobody can tell."""

import pytest
from sensor_bytes import COMPRESSED, IMAGE, JOINTS, POSE, compressed, image, joints, pose
from test_bag_topics import ALL, CAMERAS, STATE, bag  # noqa: F401 - a fixture

from vla_policy_node.contract import find_contract
from vla_policy_node.replay.bag import BagError
from vla_policy_node.replay.robots import find_namespace, told_namespaces, topics_of_robot
from vla_policy_node.replay.topics import RECORDS

T = 10**12
ROBOT = find_contract('')
INPUTS = {**CAMERAS, **STATE}
COMMAND_TYPE = 'vla_msgs/msg/EndEffectorCommand'
# What is in these messages is not read here.
TOLD = {record: (kind, pose(T)) for record, kind in RECORDS.items()}


def of(namespace, topics):
    return {f'{namespace}{topic}': message for topic, message in topics.items()}


@pytest.mark.parametrize('told', [{}, TOLD])
@pytest.mark.parametrize('namespace', ['', '/r1', '/fleet/r1'])
def test_the_namespace_is_found_by_what_the_policy_told_or_else_by_the_inputs(
        bag, namespace, told):  # noqa: F811
    opened = bag(of(namespace, {**INPUTS, **told, '/command': (COMMAND_TYPE, pose(T))}))
    topics = topics_of_robot(opened, ROBOT, {})
    assert set(topics.inputs) == set(of(namespace, INPUTS))
    assert topics.records == {f'{namespace}{record}': record for record in RECORDS}
    assert topics.actions == f'{namespace}/command'


@pytest.mark.parametrize('told', [{}, TOLD])
def test_of_two_robots_one_has_to_be_chosen(bag, told):  # noqa: F811
    opened = bag(of('/r1', {**INPUTS, **told}) | of('/r2', {**INPUTS, **told}))
    with pytest.raises(BagError, match='several robots, in the namespaces /r1 and /r2; choose '
                                       'one with --bag-namespace'):
        topics_of_robot(opened, ROBOT, {})
    for chosen in ('/r2', 'r2', 'r2/'):
        topics = topics_of_robot(opened, ROBOT, {}, wanted=chosen)
        assert set(topics.inputs) == set(of('/r2', INPUTS))
    with pytest.raises(BagError, match="no topics in the namespace '/r3'"):
        topics_of_robot(opened, ROBOT, {}, wanted='r3')
    with pytest.raises(BagError, match='robots are in /r1 and /r2.' if told else
                                       'its topics begin with /r1, /r2.'):
        find_namespace(opened, 'r3')
    with pytest.raises(BagError, match='is no namespace'):
        topics_of_robot(opened, ROBOT, {}, wanted='r-3')


def test_the_robot_in_no_namespace_is_chosen_with_a_slash(bag):  # noqa: F811
    opened = bag({**INPUTS, **TOLD, **of('/r1', {**INPUTS, **TOLD})})
    assert told_namespaces(opened) == ('', '/r1')
    with pytest.raises(BagError, match='in the namespaces / and /r1'):
        find_namespace(opened)
    assert set(topics_of_robot(opened, ROBOT, {}, wanted='/').inputs) == set(INPUTS)


def test_a_contract_s_own_names_come_before_those_that_only_end_so(bag):  # noqa: F811
    opened = bag({**INPUTS, **of('/sim', INPUTS)})
    assert set(topics_of_robot(opened, ROBOT, {}).inputs) == set(INPUTS)


def test_inputs_outside_of_the_namespace_are_named_and_the_others_found(bag):  # noqa: F811
    topics = {**of('/r1', {**TOLD, **STATE}), '/cam/a': (IMAGE, image(T)),
              '/r1/hand/compressed': (COMPRESSED, compressed(T)), '/ee_pose': (POSE, pose(T))}
    found = topics_of_robot(bag(topics), ROBOT, {'third_person': 'cam/a', 'wrist': '/r1/hand'})
    assert found.inputs == {
        '/cam/a': 'third_person', '/r1/hand/compressed': 'wrist', '/r1/ee_pose': 'ee_pose',
        '/r1/gripper_state': 'gripper_state'}


def test_absolute_names_of_a_contract_are_looked_for_in_the_namespace_last(bag):  # noqa: F811
    robot = ROBOT.with_topics({'ee_pose': '/ee_pose'})
    topics = {**of('/r1', {**TOLD, **INPUTS})}
    assert '/r1/ee_pose' in topics_of_robot(bag(topics), robot, {}).inputs
    both = topics_of_robot(bag({**topics, '/ee_pose': (POSE, pose(T))}), robot, {})
    assert '/ee_pose' in both.inputs and '/r1/ee_pose' not in both.inputs


def test_compressed_pictures_of_a_namespace_are_found(bag):  # noqa: F811
    topics = {f'/r1/{camera}/image_raw/compressed': (COMPRESSED, compressed(T))
              for camera in ROBOT.camera_names} | of('/r1', STATE)
    found = topics_of_robot(bag(topics), ROBOT, {})
    assert set(found.inputs) == set(topics)


def test_what_is_missing_is_missed_in_the_namespace(bag):  # noqa: F811
    topics = of('/r1', {**CAMERAS, '/gripper_state': (JOINTS, joints(T))})
    with pytest.raises(BagError, match="no messages on '/r1/ee_pose'"):
        topics_of_robot(bag(topics), ROBOT, {}).needed_by(ALL)


def test_commands_and_records_that_were_sent_elsewhere_are_found_by_their_type(bag):  # noqa: F811
    topics = {**INPUTS, '/arm/moves': (COMMAND_TYPE, pose(T)),
              '/guarded_command': (COMMAND_TYPE, pose(T)),
              '/vla/state': (RECORDS['/policy_status'], pose(T))}
    found = topics_of_robot(bag(topics), ROBOT, {})
    assert found.actions == '/arm/moves'
    assert found.records['/vla/state'] == '/policy_status'
    both = topics_of_robot(bag({**topics, '/arm/others': (COMMAND_TYPE, pose(T))}), ROBOT, {})
    assert both.actions == ''
