"""The SROS2 policy allows each node what it uses and nothing else, by the nodes' own graph.

The command `ros2 security` is part of ROS 2 and may not be here, so its format (sros2's policy.xsd
0.2.0, and how permissions.xsl expands names) is checked by these few lines.
"""

# ruff: noqa: F401, F811 - fixtures are imported by name

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
from node_bench import checkpoint
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from replay_bag import make_bag
from ros_testing import ros, spin_until
from std_msgs.msg import Empty
from std_srvs.srv import Trigger

from vla_msgs.action import ExecuteInstruction
from vla_policy_node.nodes.guard_node import GuardNode
from vla_policy_node.nodes.lifecycle import shut_down
from vla_policy_node.nodes.player_node import PlayerNode
from vla_policy_node.nodes.policy_node import PolicyNode
from vla_policy_node.nodes.recorder_node import RecorderNode
from vla_policy_node.nodes.visualizer_node import VisualizerNode
from vla_policy_node.nodes.world_node import WorldNode
from vla_policy_node.replay import played
from vla_policy_node.replay.robots import topics_of_robot
from vla_policy_node.system.description import describe
from vla_policy_node.system.files import NODES

FILE = Path(__file__).parents[2] / 'config' / 'security' / 'policy.xml'
# What a rule of each kind may say, and which of the four rights below each word gives.
FORMAT = {'topics': ('topic', {'publish', 'subscribe'}),
          'services': ('service', {'reply', 'request'}),
          'actions': ('action', {'call', 'execute'})}
PEOPLE = {'operator', 'supervisor'}
OTHERS = {'robot'}
GUARDED = ['--ros-args', '-r', 'command:=guarded_command']  # as system/description.py has it
# Services and topics of an action: _action/NAME
ACTION_SERVICES = ('cancel_goal', 'get_result', 'send_goal')
ACTION_TOPICS = ('feedback', 'status')
RIGHTS = ('publish', 'subscribe', 'reply', 'request')


def enclaves():
    """Enclave without its prefix -> right -> full names of topics or services."""
    (root,) = ElementTree.parse(FILE).getroot()
    rights = {}
    for enclave in root:
        allowed = rights[enclave.get('path').removeprefix('/vla/')] = {
            right: set() for right in RIGHTS}
        for profile in enclave.iterfind('profiles/profile'):
            for rules in profile:
                for right in rules.attrib:
                    for rule in rules:
                        name = full_name(profile, rule.text)
                        for expanded_right, expanded in expand(right, name):
                            allowed[expanded_right].add(expanded)
    return rights


def full_name(profile, name):
    namespace = profile.get('ns').rstrip('/') + '/'
    if name.startswith('/'):
        return name
    if name.startswith('~'):
        return namespace + profile.get('node') + name[1:]
    return namespace + name


def expand(right, name):
    """Yield what the right to call or execute an action means for its services and topics."""
    if right not in ('call', 'execute'):
        yield right, name
        return
    serves = right == 'execute'
    for part in ACTION_SERVICES:
        yield 'reply' if serves else 'request', f'{name}/_action/{part}'
    for part in ACTION_TOPICS:
        yield 'publish' if serves else 'subscribe', f'{name}/_action/{part}'


def test_the_file_has_sros2_s_format():
    root = ElementTree.parse(FILE).getroot()
    assert (root.tag, root.attrib) == ('policy', {'version': '0.2.0'})
    (all_enclaves,) = root
    paths = [enclave.get('path') for enclave in all_enclaves]
    assert len(set(paths)) == len(paths)
    for enclave in all_enclaves:
        assert enclave.tag == 'enclave'
        (profiles,) = enclave
        assert profiles.tag == 'profiles'
        assert len(profiles)
        for profile in profiles:
            assert profile.tag == 'profile'
            assert set(profile.attrib) == {'ns', 'node'}
            for rules in profile:
                item, words = FORMAT[rules.tag]
                assert set(rules.attrib) <= words
                assert set(rules.attrib.values()) == {'ALLOW'}
                assert len(rules)
                assert all(rule.tag == item and rule.text.strip() == rule.text for rule in rules)
                # No wildcards but for what the command line `ros2` calls itself; nothing twice.
                assert all('*' not in rule.text.removeprefix('/_ros2cli*') for rule in rules)
                assert len({rule.text for rule in rules}) == len(rules)


def test_every_node_has_an_enclave_and_is_told_its_name():
    assert set(enclaves()) == {*NODES, *PEOPLE, *OTHERS}
    nodes = describe({'checkpoint': '/c', 'enclave': '/vla', 'record': 'bag'})
    for node in nodes:
        arguments = node.ros_arguments()
        assert arguments[arguments.index('--enclave') + 1] == f'/vla/{node.name}'
    for node in describe({'checkpoint': '/c'}):
        assert '--enclave' not in node.ros_arguments()


@contextmanager
def policy(checkpoint, **changes):
    values = {'checkpoint': str(checkpoint), 'warmup_inferences': 1, 'threads': 1, **changes}
    node = PolicyNode(parameter_overrides=overrides(values))
    assert str(node.trigger_configure()).endswith('SUCCESS')
    node.trigger_activate()
    yield node
    shut_down(node)
    node.destroy_node()


@contextmanager
def plain(make, **values):
    node = make(parameter_overrides=overrides(values))
    yield node
    node.destroy_node()


def overrides(values):
    return [Parameter(name, value=value) for name, value in values.items()]


def graph(prefix):
    """Right -> names, of all nodes of this process whose name begins so."""
    used, found = {right: set() for right in RIGHTS}, []
    observer = Node('observer')
    wait_for_discovery(observer)
    for name, namespace in observer.get_node_names_and_namespaces():
        if not name.startswith(prefix):
            continue
        found.append(name)
        for right, names in used_by(observer, name, namespace).items():
            used[right] |= names
    observer.destroy_node()
    assert len(set(found)) == len(found)  # of two with one name the graph would tell of either
    return used


def used_by(observer, name, namespace):
    return {right: {found for found, _ in ask(name, namespace)} for right, ask in zip(RIGHTS, (
        observer.get_publisher_names_and_types_by_node,
        observer.get_subscriber_names_and_types_by_node,
        observer.get_service_names_and_types_by_node,
        observer.get_client_names_and_types_by_node), strict=True)}


def wait_for_discovery(observer):
    """Return when the graph has all that this process made before.

    Also what is of the same process gets there by a thread of the middleware, in the order in
    which it was made: the last of each kind are those made here.
    """
    observer.create_publisher(Empty, 'last_made', 1)
    observer.create_subscription(Empty, 'last_made', lambda _: None, 1)
    observer.create_service(Trigger, 'last_made', lambda _, answer: answer)
    observer.create_client(Trigger, 'last_made')
    executor = SingleThreadedExecutor()
    executor.add_node(observer)
    own = (observer.get_name(), observer.get_namespace())
    assert spin_until(
        executor,
        lambda: all('/last_made' in names for names in used_by(observer, *own).values()),
        timeout_s=60.0)
    executor.remove_node(observer)
    executor.shutdown()


@pytest.fixture
def variants(checkpoint, tmp_path):
    """Node -> all ways to start it that make a difference to what it talks about."""
    bag = str(make_bag(tmp_path / 'bag', seconds=0.3))
    world = partial(WorldNode, lambda: None)
    small = {'image_width': 32, 'image_height': 32}

    def recorder(name, **values):
        return plain(RecorderNode, output=str(tmp_path / name), **values)

    @contextmanager
    def player_of_compressed_pictures():
        def find(*arguments, **named):
            topics = topics_of_robot(*arguments, **named)
            return replace(topics, streams=replace(topics.streams, compressed=True))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(played, 'topics_of_robot', find)
            with plain(PlayerNode, bag=bag, compressed=True) as node:
                yield node

    return {
        'policy': [
            policy(checkpoint),
            policy(checkpoint, compressed=True, use_sim_time=True, pacing='observation',
                   publish_twist=True),
        ],
        'guard': [plain(GuardNode), plain(GuardNode, publish_twist=True, use_sim_time=True)],
        'visualizer': [
            plain(VisualizerNode),
            plain(VisualizerNode, compressed=True, use_sim_time=True)],
        'recorder': [
            recorder('one'), recorder('two', compressed=True, use_sim_time=True)],
        'player': [plain(PlayerNode, bag=bag, lock_step=True), player_of_compressed_pictures()],
        'world': [
            plain(world, **small),
            plain(partial(world, cli_args=GUARDED), publish_clock=True, **small)],
    }


@pytest.mark.parametrize('name', NODES)
@pytest.mark.usefixtures('ros')
def test_a_node_is_allowed_what_it_uses_and_nothing_else(name, variants):
    used = defaultdict(set)
    for variant in variants[name]:
        with variant:
            for right, names in graph(name).items():
                used[right] |= names
    assert any(used.values())
    allowed = enclaves()[name]
    assert used == allowed


@pytest.mark.usefixtures('ros')
def test_instruct_needs_no_more_than_an_operator_may():
    node = Node('vla_instruct')
    client = ActionClient(node, ExecuteInstruction, 'execute_instruction')
    used, allowed = graph('vla_instruct'), enclaves()['operator']
    assert used['request']
    assert all(used[right] <= allowed[right] for right in RIGHTS)
    client.destroy()
    node.destroy_node()


def who_may(right, name):
    return {who for who, rights in enclaves().items() if name in rights[right]}


@pytest.mark.parametrize(('right', 'name', 'who'), [
    ('publish', '/command', {'policy'}),
    ('publish', '/twist_command', {'policy'}),
    ('publish', '/guarded_command', {'guard'}),
    ('publish', '/ee_pose', {'robot', 'world', 'player'}),
    ('publish', '/clock', {'world', 'player'}),
    ('request', '/execute_instruction/_action/send_goal', {'operator'}),
    ('request', '/policy/start', {'operator', 'player'}),
    ('request', '/policy/estop', {'operator', 'supervisor'}),
    ('request', '/policy/reset_estop', {'supervisor'}),
    ('request', '/policy/set_parameters', {'supervisor'}),
    ('request', '/policy/set_parameters_atomically', {'supervisor'}),
    ('request', '/policy/change_state', {'supervisor'}),
    ('request', '/guard/set_parameters', set()),
])
def test_who_may_move_the_robot_and_who_may_change_how(right, name, who):
    assert who_may(right, name) == who


def test_every_right_of_a_person_or_the_robot_is_to_something_that_is_there():
    rights = enclaves()
    offered = {right: set().union(*(rights[who][right] for who in rights)) for right in RIGHTS}
    for who in (*PEOPLE, *OTHERS):
        assert rights[who]['request'] <= offered['reply']
        assert rights[who]['subscribe'] <= offered['publish']
    assert rights['robot']['publish'] - {'/rosout', '/parameter_events'} <= offered['subscribe']
