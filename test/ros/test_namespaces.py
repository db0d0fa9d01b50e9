"""Two robots in two namespaces of one graph, each deaf to the other."""

# ruff: noqa: F401, F811 - fixtures are imported by name

import threading
from contextlib import ExitStack

import pytest
import yaml
from lifecycle_msgs.srv import ChangeState, GetState
from node_bench import (
    checkpoint,
    make_active,
    make_bench,
    script,
)
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_testing import ros

from vla_msgs.msg import HoldReason
from vla_policy_node.contract import find_contract, to_plain
from vla_policy_node.nodes.guard_node import GuardNode
from vla_policy_node.nodes.player_node import PlayerNode
from vla_policy_node.nodes.recorder_node import RecorderNode
from vla_policy_node.nodes.resolving import elsewhere
from vla_policy_node.nodes.visualizer_node import VisualizerNode
from vla_policy_node.replay.bag import Bag
from vla_policy_node.replay.evaluate import replay_bag
from vla_policy_node.replay.settings import ReplaySettings
from vla_policy_node.system.recorded import RECORDED_PARAMETERS

# One for all robots, by the conventions of ROS.
GLOBAL = {'/clock', '/diagnostics', '/parameter_events', '/rosout', '/tf', '/tf_static'}


def test_each_robot_has_its_own_goal_commands_and_stops(make_active, script):
    first, second = make_active(namespace='/r1'), make_active(namespace='/r2')
    first.run_a_little()
    assert second.robot.call('estop').success
    assert second.wait_command(lambda command: command.hold_reason.code == HoldReason.ESTOP)
    first.infer()
    assert first.advance().hold_reason.code == HoldReason.NONE
    assert all(command.hold for command in second.robot.commands)
    assert not any(status.goal_active for status in second.robot.statuses)
    assert not second.robot.chunks


def endpoints(node):
    return {endpoint.topic_name for endpoint in (*node.publishers, *node.subscriptions)} | {
        service.service_name for service in node.services} | {
        client.service_name for client in node.clients}


def test_no_node_has_an_absolute_name_of_its_own(ros, tmp_path, make_bench):
    bench = make_bench(namespace='/fleet/r1', publish_twist=True).configure()
    with ExitStack() as stack:
        nodes = [bench.node, bench.node._goals._node]
        for cls, values in (
                (GuardNode, {'publish_twist': True}), (GuardNode, {'contract': 'two_arms'}),
                (VisualizerNode, {}), (RecorderNode, {'output': str(tmp_path / 'bag')})):
            nodes.append(cls(namespace='/fleet/r1', parameter_overrides=[
                Parameter(name, value=value) for name, value in values.items()]))
            stack.callback(nodes[-1].destroy_node)
        for node in nodes:
            assert node.get_namespace() == '/fleet/r1'
            assert node.get_parameter('use_sim_time').value is not None  # rclpy's own are whole
            outside = {name for name in endpoints(node) if not name.startswith('/fleet/r1/')}
            assert outside <= GLOBAL


def test_whoever_asks_in_another_namespace_is_told_where_the_robots_are(make_bench):
    bench = make_bench(namespace='/r1')
    bench.robot.wait(lambda: '/r1/policy_status' in dict(
        bench.robot.get_topic_names_and_types()), 'the policy node')
    assert elsewhere(bench.robot) == ''
    other = Node('other', namespace='/r2')
    bench.robot.wait(lambda: elsewhere(other), 'the policy node')
    assert elsewhere(other) == ' Policy nodes are in /r1: choose one with --namespace.'
    other.destroy_node()


CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE, SHUTDOWN = range(1, 6)


def test_a_lifecycle_manager_brings_the_policy_up_and_down_by_its_services(make_bench, script):
    """As nav2's does with bond_timeout 0.0: by number, and it looks at the state in between."""
    bench = make_bench(namespace='/r1')
    bench.set_clock(bench.now_ns)
    change = bench.robot.create_client(ChangeState, 'policy/change_state')
    state = bench.robot.create_client(GetState, 'policy/get_state')
    assert change.wait_for_service(20.0) and state.wait_for_service(20.0)
    for transition, reached in (
            (CONFIGURE, 'inactive'), (ACTIVATE, 'active'), (DEACTIVATE, 'inactive'),
            (CLEANUP, 'unconfigured'), (CONFIGURE, 'inactive'), (CLEANUP, 'unconfigured'),
            (SHUTDOWN, 'finalized')):
        request = ChangeState.Request()
        request.transition.id = transition
        assert bench.robot.finish(change.call_async(request)).success
        now = bench.robot.finish(state.call_async(GetState.Request())).current_state
        assert now.label == reached


def test_a_recording_of_one_robot_holds_nothing_of_the_other_and_is_replayed_and_played(
        make_bench, tmp_path):
    """One camera was remapped; nobody tells the recorder, the replay or the player."""
    remapped = '/front/color'
    contract = tmp_path / 'mine.yaml'
    plain = to_plain(find_contract(''))
    plain['cameras'][0]['topic'] = remapped
    contract.write_text(yaml.safe_dump(plain))
    first = make_bench(namespace='/r1', contract=str(contract)).activate()
    make_bench(namespace='/r2').activate()
    recorder = RecorderNode(namespace='/r1', parameter_overrides=[
        Parameter('output', value=str(tmp_path / 'bag')), Parameter('use_sim_time', value=True),
        Parameter('extra_topics', value=['policy/transition_event'])])
    executor = SingleThreadedExecutor()
    executor.add_node(recorder)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    first.robot.wait(
        lambda: all(p.get_subscription_count() == 2 for p in first.robot.inputs.values())
        and first.node._outputs.commands.get_subscription_count() == 2, 'the recorder')
    first.start()
    for _ in range(5):
        first.infer()
        first.advance()
    first.robot.wait(lambda: (recorder._writer.path / RECORDED_PARAMETERS).is_file()
                     and recorder._writer.written['/r1/action_chunk'] >= 5, 'the bag')
    executor.shutdown()
    thread.join()
    assert '/r1/policy/transition_event' in recorder._awaited
    recorder.destroy_node()
    with Bag(tmp_path / 'bag') as bag:
        topics = set(bag.types)
    assert {remapped, '/r1/wrist/image_raw', '/r1/command', '/r1/policy_info'} <= topics
    assert not any(topic.startswith('/r2') for topic in topics)
    assert {topic for topic in topics if not topic.startswith('/r1/')} <= {remapped, *GLOBAL}
    evaluation = replay_bag(
        tmp_path / 'bag', ReplaySettings(trust_bag=True), lambda what, share: None)
    assert evaluation.report['bag']['actions']['topic'] == '/r1/command'
    assert evaluation.traces[0].commands
    player = PlayerNode(parameter_overrides=[Parameter('bag', value=str(tmp_path / 'bag'))])
    assert player._topics.inputs[remapped] == 'third_person'
    player.destroy_node()
