"""The world over real DDS: what it says belongs together, and it obeys each command once."""

import hashlib
import itertools
import math
import subprocess
import sys
import threading

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped, Vector3
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_testing import context_alone, ros, spin_until  # noqa: F401
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Header

from vla_msgs.msg import EndEffectorCommand, WorldStatus
from vla_msgs.srv import ResetWorld
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.messages import to_ns, to_time
from vla_policy_node.nodes.parameters import ParameterError
from vla_policy_node.nodes.world_node import PERIOD_NS, WorldNode
from vla_policy_node.wire.images import decode_compressed, decode_image
from vla_policy_node.world.libero_world import LiberoWorld

CAMERAS = ('third_person', 'wrist')


class Bench:
    """A world and somebody who watches and commands it."""

    def __init__(self, **parameters):
        settings = {'image_width': 96, 'image_height': 96, **parameters}
        self.world = WorldNode(
            parameter_overrides=[Parameter(name, value=v) for name, v in settings.items()])
        self.other = Node('other')
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.world)
        self.executor.add_node(self.other)
        self.statuses, self.poses, self.grippers, self.clocks = [], [], [], []
        for kind, topic, store, profile in (
            (WorldStatus, 'world_status', self.statuses, qos.event_output()),
            (PoseStamped, 'ee_pose', self.poses, qos.observation_output()),
            (JointState, 'gripper_state', self.grippers, qos.observation_output()),
            (Clock, '/clock', self.clocks, qos.event_output()),
        ):
            self.other.create_subscription(kind, topic, store.append, profile)
        self.commands = self.other.create_publisher(
            EndEffectorCommand, 'command', qos.command_output(None))
        self.reset_client = self.other.create_client(ResetWorld, 'reset_world')
        assert self.spin_until(self.commands.get_subscription_count)
        assert self.spin_until(lambda: self.statuses, 60.0)  # the assets may have to be made

    def spin_until(self, predicate, timeout_s=20.0):
        return spin_until(self.executor, predicate, timeout_s)

    def watch(self, camera, kind=Image, suffix=''):
        images = []
        self.other.create_subscription(
            kind, f'{camera}/image_raw{suffix}', images.append, qos.observation_output())
        assert self.spin_until(
            lambda: self.other.count_publishers(f'{camera}/image_raw{suffix}'))
        outputs = self.world._compressed if suffix else self.world._images
        assert self.spin_until(outputs[camera].get_subscription_count)
        return images

    def make_command(self, translation=(0.0, 0.0, 0.0), age_ns=0, target_ns=0, **values):
        now_ns = self.world._time.now_ns()
        fields = {'gripper': 1.0, 'frame_id': 'world', **values}
        return EndEffectorCommand(
            header=Header(stamp=to_time(now_ns - age_ns), frame_id=fields.pop('frame_id')),
            translation=Vector3(**dict(zip('xyz', translation, strict=True))),
            observation_stamp=to_time(now_ns - age_ns),
            target_time=to_time(target_ns),
            **fields,
        )

    def send(self, **values):
        self.commands.publish(self.make_command(**values))

    def applied(self):
        return [status for status in self.statuses if status.action_applied]

    def wait_steps(self, count):
        """Wait for that many more statuses and return them."""
        seen = len(self.statuses)
        assert self.spin_until(lambda: len(self.statuses) >= seen + count)
        return self.statuses[seen:seen + count]

    def reset(self, suite='', task_id=-1, layout='', initial_state=0):
        assert self.spin_until(self.reset_client.service_is_ready)
        answer = self.reset_client.call_async(ResetWorld.Request(
            suite=suite, task_id=task_id, layout=layout, initial_state=initial_state))
        assert self.spin_until(answer.done, 60.0)
        return answer.result()

    def close(self):
        self.executor.shutdown()
        self.world.destroy_node()
        self.other.destroy_node()


def serve(**parameters):
    with context_alone():
        bench = Bench(**parameters)
        yield bench
        bench.close()


@pytest.fixture(scope='class')
def real_time_world():
    yield from serve(publish_clock=True, command_timeout_s=2.0)


@pytest.fixture
def bench(real_time_world):
    assert real_time_world.reset().success
    real_time_world.statuses.clear()
    return real_time_world


class TestRealTime:
    def test_everything_of_one_step_bears_the_same_stamp(self, bench):
        streams = [bench.statuses, bench.poses, bench.grippers,
                   *(bench.watch(camera) for camera in CAMERAS),
                   bench.watch('wrist', CompressedImage, '/compressed')]

        def common():
            stamps = [{to_ns(msg.header.stamp) for msg in stream} for stream in streams]
            return set.intersection(*stamps)

        assert bench.spin_until(common)
        (stamp_ns, *_) = common()
        state, pose, gripper, third_person, wrist, compressed = (
            next(msg for msg in stream if to_ns(msg.header.stamp) == stamp_ns)
            for stream in streams)
        assert [msg.header.frame_id for msg in (state, pose, third_person, wrist)] == [
            'world', 'world', 'third_person_optical', 'wrist_optical']
        assert len(gripper.position) == len(gripper.name) == 2
        assert decode_image(third_person).shape == (96, 96, 3)
        difference = decode_image(wrist).astype(int) - decode_compressed(compressed)
        assert np.abs(difference).mean() < 10  # JPEG of the same picture

    def test_a_command_moves_the_arm_that_way_and_only_once(self, bench):
        before = bench.poses[-1].pose.position
        bench.send(translation=(0.0, 0.03, 0.0))
        assert bench.spin_until(bench.applied)
        bench.wait_steps(4)
        assert len(bench.applied()) == 1
        after = bench.poses[-1].pose.position
        assert 0.001 < after.y - before.y < 0.03
        assert abs(after.x - before.x) < 0.01

    def test_ages_are_those_at_actuation(self, bench):
        bench.send(age_ns=100_000_000)
        assert bench.spin_until(bench.applied)
        status = bench.applied()[0]
        assert 100.0 <= status.command_age_ms < 2000.0
        assert status.observation_age_ms == pytest.approx(status.command_age_ms, abs=0.01)
        (still,) = bench.wait_steps(1)
        assert math.isnan(still.command_age_ms)
        assert math.isnan(still.observation_age_ms)

    @pytest.mark.parametrize('spoilt', [
        {'age_ns': 3_000_000_000},
        {'age_ns': -3_000_000_000},
        {'hold': True},
        {'frame_id': 'base_link'},
        {'translation': (math.nan, 0.0, 0.0)},
    ], ids=['stale', 'from the future', 'hold', 'wrong frame', 'not finite'])
    def test_the_arm_stands_still_on_an_unusable_command(self, bench, spoilt):
        before = bench.poses[-1].pose.position
        bench.send(**{'translation': (0.0, 0.05, 0.0), **spoilt})
        bench.wait_steps(4)
        assert not bench.applied()
        assert abs(bench.poses[-1].pose.position.y - before.y) < 0.002
        bench.send()  # the same way, a good one arrives
        assert bench.spin_until(bench.applied)

    def test_the_gripper_goes_on_closing_without_further_commands(self, bench):
        def opening():
            return bench.grippers[-1].position[0] - bench.grippers[-1].position[1]

        start = opening()
        bench.send(gripper=0.0)
        assert bench.spin_until(lambda: opening() < start - 0.02)
        assert len(bench.applied()) == 1

    def test_reset_answers_when_the_new_episode_has_begun(self, bench):
        first = bench.reset(initial_state=3)
        assert first.success
        assert first.instruction == 'pick up the alphabet soup and place it in the basket'
        assert f'Episode {first.episode}' in first.message
        second = bench.reset(initial_state=-1)
        assert 'standard layout 4' in second.message
        assert second.episode == first.episode + 1
        assert bench.spin_until(lambda: bench.statuses[-1].episode == second.episode)

    def test_a_shuffled_layout_moves_the_objects_and_stays_shuffled(self, bench):
        bench.reset(task_id=0)
        standard = bench.world._episodes.world.object_position('milk_1')
        assert bench.reset(layout='shuffled', initial_state=1_000_003).success
        shuffled = bench.world._episodes.world.object_position('milk_1')
        assert np.abs(shuffled - standard).max() > 0.02
        assert 'shuffled layout 1000004' in bench.reset(initial_state=-1).message
        assert bench.reset(layout='standard', task_id=0, initial_state=0).success

    def test_reset_goes_to_the_next_task_and_to_another_suite(self, bench):
        answer = bench.reset(task_id=-2)
        assert 'libero_object task 1' in answer.message
        answer = bench.reset(suite='libero_object', task_id=0)
        assert 'libero_object task 0' in answer.message

    @pytest.mark.parametrize(('request_', 'reason'), [
        ({'suite': 'libero_90'}, 'libero_object, libero_spatial, libero_goal'),
        ({'task_id': 10}, 'There is no task 10 in libero_object'),
        ({'initial_state': 50}, 'Initial state 50 does not exist'),
        ({'layout': 'upside_down'}, 'There is no layout'),
    ])
    def test_a_reset_to_nowhere_is_refused_and_the_episode_goes_on(self, bench, request_, reason):
        (before,) = bench.wait_steps(1)
        answer = bench.reset(**request_)
        assert not answer.success
        assert reason in answer.message
        (after,) = bench.wait_steps(1)
        assert after.episode == before.episode

    def test_success_stays_until_the_next_episode(self, bench, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(LiberoWorld, 'success', property(lambda world: True))
            assert bench.spin_until(lambda: any(status.success for status in bench.statuses))
        assert all(status.success for status in bench.wait_steps(4)[2:])
        answer = bench.reset()
        assert bench.spin_until(lambda: bench.statuses[-1].episode == answer.episode)
        assert not bench.wait_steps(1)[0].success

    def test_the_clock_ticks_many_times_a_step_and_never_goes_back(self, bench):
        bench.clocks.clear()
        bench.wait_steps(3)
        assert bench.reset().success
        bench.wait_steps(3)
        times = [to_ns(clock.clock) for clock in bench.clocks]
        assert times == sorted(times)
        assert len(times) > 12
        leap_ns = max(b - a for a, b in itertools.pairwise(times))
        assert leap_ns >= 1_000_000_000


@pytest.fixture(scope='class')
def lock_step():
    yield from serve(lock_step=True, lock_step_timeout_s=60.0)


class TestLockStep:
    @pytest.fixture(autouse=True)
    def _fresh(self, lock_step):
        self.bench = lock_step

    def step(self, **values):
        """Answer the last observation, and return the status that follows."""
        target_ns = self.bench.world._time.now_ns() + PERIOD_NS
        self.bench.send(target_ns=target_ns, **values)
        return self.bench.wait_steps(1)[0]

    def begin(self, initial_state=0):
        answer = self.bench.reset(initial_state=initial_state)
        assert self.bench.spin_until(lambda: self.bench.statuses[-1].episode == answer.episode)

    def test_nothing_is_rendered_for_nobody(self):
        self.begin()
        self.step(translation=(0.01, 0.0, 0.0))
        assert self.bench.world._episodes.world._renderer is None

    def test_holds_and_other_periods_do_not_advance_the_world(self):
        self.begin()
        target_ns = self.bench.world._time.now_ns() + PERIOD_NS
        self.bench.send(target_ns=target_ns, hold=True)
        self.bench.send(target_ns=target_ns - PERIOD_NS)
        self.bench.send(target_ns=target_ns + PERIOD_NS)
        status = self.step(translation=(0.01, 0.0, 0.0))
        assert status.step == 1
        assert status.action_applied
        assert to_ns(status.header.stamp) == target_ns

    def test_the_clock_advances_by_periods_and_jumps_at_a_reset(self):
        self.begin()
        before_ns = to_ns(self.bench.statuses[-1].header.stamp)
        assert to_ns(self.step().header.stamp) == before_ns + PERIOD_NS
        self.begin()
        after_ns = to_ns(self.bench.statuses[-1].header.stamp)
        assert after_ns == before_ns + PERIOD_NS + 1_000_000_000
        assert self.bench.spin_until(lambda: to_ns(self.bench.clocks[-1].clock) == after_ns)

    def test_the_same_commands_make_the_same_pictures(self):
        streams = [self.bench.watch(camera) for camera in CAMERAS]
        first, second = (self.episode_digest(streams) for _ in range(2))
        assert first == second

    def episode_digest(self, streams):
        self.begin(initial_state=2)
        for step in range(5):
            status = self.step(translation=(0.02, 0.01 * step, -0.03), gripper=float(step % 2))
        stamp = status.header.stamp
        assert self.bench.spin_until(
            lambda: all(s and s[-1].header.stamp == stamp for s in streams))
        return hashlib.sha256(b''.join(bytes(s[-1].data) for s in streams)).hexdigest()

    def test_without_an_action_it_steps_without_motion_after_the_timeout(self):
        self.begin()
        set_timeout = Parameter('lock_step_timeout_s', value=0.05)
        assert self.bench.world.set_parameters([set_timeout])[0].successful
        self.step()  # leaves the wait that began with the long timeout
        assert not any(status.action_applied for status in self.bench.wait_steps(2))


@pytest.mark.usefixtures('ros')
@pytest.mark.parametrize(('parameters', 'reason'), [
    ({'suite': 'libero_90'}, 'suite is .libero_90.; it must be one of'),
    ({'task_id': 10}, 'task_id is 10; it must lie between 0 and 9'),
    ({'lockstep': True}, 'did you mean lock_step'),
    ({'use_sim_time': True}, 'set publish_clock instead'),
])
def test_parameters_that_make_no_world_are_refused(parameters, reason):
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    with pytest.raises(ParameterError, match=reason):
        WorldNode(parameter_overrides=overrides)


@pytest.mark.usefixtures('ros')
def test_a_world_that_fails_says_so_and_answers_nobody_for_ever(monkeypatch):
    def fail(*_):
        raise RuntimeError('no picture')

    monkeypatch.setattr('vla_policy_node.nodes.world_episodes.Episodes.begin', fail)
    failed = threading.Event()
    node = WorldNode(failed.set)
    assert failed.wait(10.0)
    answer = node._reset_world(ResetWorld.Request(), ResetWorld.Response())
    assert not answer.success
    node.destroy_node()


def test_a_bad_parameter_ends_the_process_with_a_sentence():
    module = 'vla_policy_node.nodes.world_node'
    done = subprocess.run(
        [sys.executable, '-m', module, '--ros-args', '-p', 'task_id:=x'],
        check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "task_id is 'x'; it must be a whole number."


def test_neither_the_world_nor_the_visualizer_loads_torch():
    modules = 'vla_policy_node.nodes.world_node, vla_policy_node.nodes.visualizer_node'
    code = f'import sys, {modules}; sys.exit("torch" in sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True)
