"""The live node on a played bag, and `vla replay` on the same bag: the same actions."""

# ruff: noqa: F401 - fixtures are imported by name

import copy
import threading

import cv2
import numpy as np
import pytest
import yaml
from node_bench import create_tiny_checkpoint
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from replay_bag import make_bag
from robot_double import TIMEOUT_S
from ros_testing import ros
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
from sensor_msgs.msg import CompressedImage

from vla_msgs.msg import EndEffectorCommand, HoldReason
from vla_policy_node.contract import find_contract, to_plain
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.lifecycle import shut_down
from vla_policy_node.nodes.messages import to_ns
from vla_policy_node.nodes.parameters import ParameterError
from vla_policy_node.nodes.player_node import PlayerNode
from vla_policy_node.nodes.policy_node import PolicyNode
from vla_policy_node.replay.evaluate import replay_bag
from vla_policy_node.replay.settings import ReplaySettings
from vla_policy_node.replay.topics import RECORDS

pytestmark = pytest.mark.usefixtures('ros')

T = 10**12
STATE = {'/ee_pose': (POSE, pose(T)), '/gripper_state': (JOINTS, joints(T))}
CAMERAS = {f'/{camera}/image_raw': (IMAGE, image(T)) for camera in ('third_person', 'wrist')}


class Live:
    """A policy node, a player and a listener, each spun by a thread of its own.

    options: of all nodes: namespace and cli_args.
    """

    def __init__(self, parameters, bag, options=None, **playing):
        options = options or {}
        overrides = [Parameter(k, value=v) for k, v in parameters.items()]
        self.commands = []
        self.ended = threading.Event()
        self.cancelled = threading.Event()
        self.policy = PolicyNode(
            parameter_overrides=[*overrides, Parameter('use_sim_time', value=True)], **options)
        self.listener = Node('listener', **options)
        self.listener.create_subscription(
            EndEffectorCommand, 'command', self._hear, qos.event_output())
        self._executors, self._threads = [], []
        for node in (self.policy, self.listener):
            self._spin(node)
        self.policy.trigger_configure()
        self.policy.trigger_activate()
        self.player = PlayerNode(self.ended.set, parameter_overrides=[
            Parameter('bag', value=str(bag)), Parameter('timeout_s', value=3 * TIMEOUT_S),
            *(Parameter(k, value=v) for k, v in playing.items())], **options)
        self._spin(self.player)

    def _spin(self, node):
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        thread = threading.Thread(target=executor.spin)
        thread.start()
        self._executors.append(executor)
        self._threads.append(thread)

    def commands_of_observations(self):
        """What a replay sends, too.

        Not the hold with which the node acknowledges the player's cancel, which is for the same
        period as that of the last observation, nor those of a pause.
        """
        assert self.cancelled.wait(TIMEOUT_S)
        kept = []
        for command in self.commands:
            if command.hold_reason.code == HoldReason.CLOCK_STOPPED:
                continue
            if not (kept and command.hold and command.target_time == kept[-1].target_time):
                kept.append(command)
        return kept

    def _hear(self, command):
        self.commands.append(command)
        if command.hold_reason.code == HoldReason.GOAL_FINISHED:
            self.cancelled.set()

    def close(self):
        # First of all: what another thread destroys while it is served makes rclpy raise.
        for executor in self._executors:
            executor.shutdown()
        for thread in self._threads:
            thread.join()
        shut_down(self.policy)
        self.player.destroy_node()
        self.policy.destroy_node()
        self.listener.destroy_node()


@pytest.fixture(scope='module')
def parameters(tmp_path_factory):
    checkpoint = create_tiny_checkpoint(tmp_path_factory.mktemp('tiny'))
    return {'checkpoint': str(checkpoint), 'methods': ['lightvla'], 'pacing': 'observation',
            'warmup_inferences': 1, 'freeze_timeout_s': 0.0, 'threads': 1,
            # As for a bag that is played: commands do not move what was recorded.
            'max_tracking_error_m': 0.0, 'input_timeout_s': 0.0}


@pytest.fixture
def play(parameters):
    lives = []

    def make(bag, changes, **playing):
        lives.append(Live({**parameters, **changes}, bag, **playing))
        return lives[-1]

    yield make
    for live in lives:
        live.close()


def replayed(bag, parameters, tmp_path, **settings):
    file = tmp_path / 'policy.yaml'
    file.write_text(yaml.safe_dump({'policy': {'ros__parameters': parameters}}))
    settings = ReplaySettings(str(file), latency_periods=0, **settings)
    return replay_bag(bag, settings, lambda what, share: None).traces[0].commands


@pytest.mark.parametrize('mode', ['sync', 'async', 'temporal_ensemble'])
def test_live_node_and_replay_send_the_same_actions(play, parameters, tmp_path, mode):
    """Cameras of two rates, so that pairing matters; every command, hold or action, in order."""
    bag = make_bag(tmp_path / 'bag', seconds=1.5, wrist_hz=15.0)
    changes = {'execution_mode': mode}
    live = play(bag, changes, lock_step=True)
    assert live.ended.wait(6 * TIMEOUT_S)
    assert not live.player.failed
    expected = [command for _, command in replayed(bag, {**parameters, **changes}, tmp_path)]
    commands = live.commands_of_observations()
    assert len(commands) == len(expected) > 10
    for sent, command in zip(commands, expected, strict=True):
        assert to_ns(sent.target_time) == command.target_time_ns
        assert sent.hold_reason.code == command.hold.code
        assert to_ns(sent.observation_stamp) == command.observation_stamp_ns
        moved = (sent.translation, sent.rotation)
        np.testing.assert_array_equal(
            [getattr(vector, axis) for vector in moved for axis in 'xyz'],
            [*command.motion.translation_m, *command.motion.rotation_rad])
        np.testing.assert_array_equal(sent.gripper, np.float32(command.motion.gripper))
    assert sum(not sent.hold for sent in commands) > 8


def test_a_pose_from_transforms_is_played_and_replayed_alike(play, parameters, tmp_path):
    pytest.importorskip('tf2_msgs')
    plain = copy.deepcopy(to_plain(find_contract('')))
    plain['state'][0] |= {'topic': '/tf', 'type': TRANSFORMS, 'parent': 'base_link',
                          'child': 'tool'}
    contract = tmp_path / 'robot.yaml'
    contract.write_text(yaml.safe_dump(plain))
    times = [T + 50_000_000 * i for i in range(16)]
    still = (0.0, 0.0, 0.0, 1.0)
    topics = {
        **{name: [(t, image(t + place)) for t in times] for place, name in enumerate(CAMERAS)},
        '/gripper_state': [(t, joints(t)) for t in times],
        '/tf': [(t, transforms([('base_link', 'arm', t, (0.01 * i, 0.0, 0.25), still)]))
                for i, t in enumerate(times)],
        '/tf_static': [(T, transforms([('arm', 'tool', 0, (0.0, 0.0, 0.25), still)]))]}
    end = times[-1] + 100_000_000  # of the goal, after the last observation
    topics['/third_person/image_raw'].append((end, image(end)))
    bag = write_topics(tmp_path / 'a.mcap', topics, {
        name: {'/tf': TRANSFORMS, '/tf_static': TRANSFORMS, '/gripper_state': JOINTS}.get(
            name, IMAGE) for name in topics})
    changes = {'contract': str(contract)}
    live = play(bag, changes, lock_step=True, instruction='lift it', **changes)
    assert live.ended.wait(6 * TIMEOUT_S)
    assert not live.player.failed
    expected = [command for _, command in replayed(
        bag, {**parameters, **changes}, tmp_path, instruction='lift it')]
    commands = live.commands_of_observations()
    assert len(commands) == len(expected) > 10
    for sent, command in zip(commands, expected, strict=True):
        assert sent.hold_reason.code == command.hold.code
        assert sent.translation.x == command.motion.translation_m[0]
    assert sum(not sent.hold for sent in commands) > 8


def to_png(index, image):
    pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    return CompressedImage(header=image.header, format='png',
                           data=cv2.imencode('.png', pixels[..., ::-1])[1].tobytes())


def test_another_robot_s_bag_is_played_to_a_robot_in_a_namespace(play, parameters, tmp_path):
    """Its topics are in a namespace of its own, one was remapped, and one camera is compressed."""
    bag = make_bag(
        tmp_path / 'bag', seconds=0.6, namespace='/r1',
        renamed={'/third_person/image_raw': '/camera/color/image_raw',
                 '/wrist/image_raw': '/r1/wrist/image_raw/compressed'},
        alter={'/wrist/image_raw': to_png})
    remapping = 'third_person/image_raw:=/camera/color/image_raw'
    live = play(bag, {}, lock_step=True, options={
        'cli_args': ['--ros-args', '-r', remapping], 'namespace': '/fleet/r2'})
    assert live.ended.wait(6 * TIMEOUT_S)
    assert not live.player.failed
    expected = [command for _, command in replayed(
        bag, parameters, tmp_path, topics={'third_person': '/camera/color/image_raw'})]
    commands = live.commands_of_observations()
    assert [command.target_time_ns for command in expected] == [
        to_ns(sent.target_time) for sent in commands]
    assert [[sent.translation.x, sent.translation.y, sent.translation.z] for sent in commands] == [
        [*command.motion.translation_m] for command in expected]
    assert any(not sent.hold for sent in commands)


def test_of_two_robots_in_a_bag_that_of_the_player_s_namespace_is_played_or_one_is_chosen(
        tmp_path):
    inputs = {**CAMERAS, **STATE, '/policy_status': (RECORDS['/policy_status'], pose(T))}
    topics = {f'{robot}{topic}': message for robot in ('/r1', '/r2')
              for topic, message in inputs.items()}
    bag = write_topics(tmp_path / 'two.mcap', {name: [(T, raw)] for name, (_, raw) in
                                               topics.items()},
                       {name: kind for name, (kind, _) in topics.items()})

    def inputs_of(namespace='', **parameters):
        player = PlayerNode(namespace=namespace, parameter_overrides=[
            Parameter(name, value=value) for name, value in parameters.items()])
        found = set(player._topics.inputs)
        assert player.get_parameter('rate').value == 1.0 and player.get_clock().now()
        player.destroy_node()
        return found

    for namespace in ('', '/r3'):
        with pytest.raises(ParameterError, match='several robots, in the namespaces /r1 and /r2'):
            inputs_of(namespace, bag=str(bag))
    second = {f'/r2{topic}' for topic in (*CAMERAS, *STATE)}
    assert inputs_of('/r2', bag=str(bag)) == second
    assert inputs_of('/r1', bag=str(bag), bag_namespace='r2') == second


def test_raw_pictures_are_not_played_to_a_node_that_takes_compressed_ones(tmp_path):
    bag = make_bag(tmp_path / 'bag', seconds=0.1)
    with pytest.raises(ParameterError, match='set its parameter compressed to false'):
        PlayerNode(parameter_overrides=[
            Parameter('bag', value=str(bag)), Parameter('compressed', value=True)])


def test_a_bag_is_played_in_real_time_with_clock(play, tmp_path):
    bag = make_bag(tmp_path / 'bag', seconds=2.0)
    live = play(bag, {'pacing': 'timer', 'max_age_s': 1.0}, rate=1.0)
    assert live.ended.wait(6 * TIMEOUT_S)
    assert not live.player.failed
    assert any(not command.hold for command in live.commands)


def test_lock_step_needs_a_node_that_answers_every_observation(play, tmp_path):
    live = play(make_bag(tmp_path / 'bag', seconds=0.5), {'pacing': 'timer'}, lock_step=True)
    assert live.ended.wait(3 * TIMEOUT_S)
    assert live.player.failed


def test_a_bag_that_is_not_there_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(ParameterError, match='There is no bag'):
        PlayerNode(parameter_overrides=[Parameter('bag', value=str(tmp_path / 'none'))])


@pytest.mark.parametrize('is_recorded', [True, False])
def test_a_camera_that_the_policy_does_not_look_at_is_not_waited_for(
        play, parameters, tmp_path, is_recorded):
    """In lock-step, where everything else is: the node would never say that it has it."""
    plain = copy.deepcopy(to_plain(find_contract('')))
    plain['cameras'].append({'name': 'side', 'topic': 'side/rgb', 'required': False})
    contract = tmp_path / 'robot.yaml'
    contract.write_text(yaml.safe_dump(plain))
    bag = make_bag(tmp_path / 'bag', seconds=0.6, more_cameras=('/side/rgb',) * is_recorded)
    changes = {'contract': str(contract)}
    live = play(bag, changes, lock_step=True, contract=str(contract))
    assert live.ended.wait(3 * TIMEOUT_S)
    assert not live.player.failed
    expected = [command for _, command in replayed(bag, {**parameters, **changes}, tmp_path)]
    commands = live.commands_of_observations()
    assert [to_ns(sent.target_time) for sent in commands] == [
        command.target_time_ns for command in expected]
    assert [sent.hold_reason.code for sent in commands] == [
        command.hold.code for command in expected]
    assert len(expected) > 4
