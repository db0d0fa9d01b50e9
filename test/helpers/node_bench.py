"""The policy node, run as its process runs it, with a robot and a clock that belong to the test.

The tests drive `/clock`. The node's timers then fire when a test says so, and every assertion
about time is exact however busy the machine is:

    bench.observe()            # both cameras and the state, stamped now; waits until filed
    command = bench.advance()  # one control period later; waits for its command

A test module imports the fixtures by name, with those that they need.
"""

import copy
import threading
from functools import partial

import numpy as np
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from robot_double import TIMEOUT_S, RobotDouble, stamp
from rosgraph_msgs.msg import Clock

from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import HoldReason
from vla_policy_node.contract import find_contract
from vla_policy_node.contract.joints import is_moved_by_joints
from vla_policy_node.nodes.lifecycle import shut_down, state_label
from vla_policy_node.nodes.messages import to_time
from vla_policy_node.nodes.policy_node import PolicyNode
from vla_policy_node.nodes.subscriptions import Subscriptions
from vla_policy_node.policy.interface import ActionChunk
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime.small import CONFIG, create_small_checkpoint

INSTRUCTION = 'pick up the black bowl'
PERIOD_NS = 50_000_000
START_NS = 1_000_000_000_000


def create_tiny_checkpoint(directory, **said):
    """The small checkpoint, smaller: 4 x 4 patches per camera, one layer of everything.

    said: entries of its config, on top.
    """
    config = copy.deepcopy(CONFIG) | said
    for encoder in config['vision_tiny'].values():
        encoder.update(embed_dim=16, feature_block=0, num_heads=1, mlp_hidden=16, img_size=56)
    config['text_config'].update(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    return create_small_checkpoint(directory, config=config)


class Script:
    """Stands in for `LocalPolicy.infer`; while the gate is closed no inference ends."""

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.calls = []  # (thread name, observation)
        self.executions = []  # what each request told of it
        self.actions = np.full((8, 7), 0.1)
        self.error = None  # what the next inference raises
        self.reused_by = ''
        self._started = threading.Semaphore(0)

    def infer(self, request):
        self.calls.append((threading.current_thread().name, request.observation))
        self.executions.append(request.execution)
        self._started.release()
        assert self.gate.wait(3 * TIMEOUT_S)
        error, self.error = self.error, None
        if error:
            raise error
        return ActionChunk(
            np.array(self.actions), (), {'head': 1.0}, 'scripted', 32, 32,
            reused_by=self.reused_by)

    def forget(self):
        self.calls.clear()
        self.executions.clear()
        while self._started.acquire(blocking=False):
            pass

    def wait_started(self):
        assert self._started.acquire(timeout=TIMEOUT_S), 'no inference started'


class CountingSubscriptions(Subscriptions):
    """Tells when a sample was filed."""

    def __init__(self, count, *arguments):
        self._count = count
        super().__init__(*arguments)

    def file(self, stream, raw):
        super().file(stream, raw)
        self._count()


class CountingPolicyNode(PolicyNode):
    """Tells when a sample was filed: its callback has no other visible effect."""

    def __init__(self, filed, **kwargs):
        self._filed = filed
        super().__init__(**kwargs)

    def _subscribe(self, filed):
        return super()._subscribe(filed, partial(CountingSubscriptions, self._filed))


# Tests of chunks and their times look at actions as they are: a fast arm, which never moves.
FAST_ARM = {
    'max_step_translation_m': 0.05,
    'max_step_rotation_rad': 0.25,
    'max_linear_velocity_m_s': 1.0,
    'max_angular_velocity_rad_s': 5.0,
    'max_linear_acceleration_m_s2': 20.0,
    'max_angular_acceleration_rad_s2': 100.0,
    'max_tracking_error_m': 0.0,
}


class Bench:
    """The policy node, as its process runs it, and a robot; the clock belongs to the test."""

    def __init__(self, namespace='', executor=SingleThreadedExecutor, **parameters):
        self.robot = RobotDouble(
            parameters.get('compressed', False), parameters.get('contract', ''), namespace)
        contract = parameters.get('contract', '')
        arm = {'max_tracking_error_m': 0.0} if contract else FAST_ARM
        if is_moved_by_joints(find_contract(contract)):
            arm = {}
        given = {**arm, 'use_sim_time': True, 'warmup_inferences': 1, 'freeze_timeout_s': 0.0,
                 'clock_timeout_s': 60.0}  # the clock is the test's
        overrides = [Parameter(k, value=v) for k, v in {**given, **parameters}.items()]
        self.node = CountingPolicyNode(
            self.robot.count_filed, parameter_overrides=overrides, namespace=namespace)
        self.now_ns = START_NS
        self.errors = []
        self._executors = [executor(), SingleThreadedExecutor()]
        self._threads = []
        for executor, node in zip(self._executors, (self.node, self.robot), strict=True):
            executor.add_node(node)
            self._threads.append(threading.Thread(target=self._spin, args=(executor,)))
            self._threads[-1].start()

    def _spin(self, executor):
        while rclpy.ok() and not executor._is_shutdown:
            try:
                executor.spin_once(timeout_sec=0.2)
            except rclpy.executors.ShutdownException:
                return
            except Exception as error:
                self.errors.append(error)

    def close(self):
        # First of all: what another thread destroys while it is served makes rclpy raise.
        for executor in self._executors:
            executor.shutdown()
        for thread in self._threads:
            thread.join()
        shut_down(self.node)
        self.node.destroy_node()
        self.robot.destroy_node()
        assert not self.errors, self.errors

    @property
    def state(self):
        return state_label(self.node)

    def configure(self):
        self.set_clock(self.now_ns)
        assert self.node.trigger_configure() == rclpy.lifecycle.TransitionCallbackReturn.SUCCESS
        outputs = (
            self.node._outputs.commands,
            self.node._reports.status,
            self.node._reports.chunks,
            self.node._reports.diagnostics,
        )
        self.robot.wait(
            lambda: (
                all(self.robot.inputs[stream].get_subscription_count()
                    for stream in self.node._streams.topics)
                and all(publisher.get_subscription_count() for publisher in outputs)
            ),
            'discovery',
        )
        return self

    def activate(self):
        if self.state == 'unconfigured':
            self.configure()
        assert self.node.trigger_activate() == rclpy.lifecycle.TransitionCallbackReturn.SUCCESS
        return self

    def set_clock(self, now_ns):
        """Move the clock, also backwards, and wait until the node knows."""
        self.now_ns = now_ns
        self.robot.wait(
            lambda: (
                self.robot.clock_publisher.publish(Clock(clock=to_time(now_ns)))
                or self.node.get_clock().now().nanoseconds == now_ns
            ),
            'the clock',
        )

    def start(self, instruction=INSTRUCTION, **request):
        response = self.robot.call('start', instruction=instruction, **request)
        assert response.success, response.message
        return response.epoch

    def observe(self, offset_ns=0, streams=None):
        """Send an observation stamped now (plus the offset) and wait until it was filed.

        streams: those that the node listens to by default.
        """
        streams = [*self.node._streams.topics] if streams is None else streams
        target = self.robot.filed + self.robot.observe(self.now_ns + offset_ns, streams)
        self.robot.wait(lambda: self.robot.filed >= target, 'the inputs')

    def infer(self):
        """Send an observation and wait for its chunk."""
        self.observe()
        stamp_ns = self.now_ns
        self.robot.wait(lambda: any(stamp(c) == stamp_ns for c in self.robot.chunks), 'a chunk')

    def advance(self, by_ns=PERIOD_NS):
        """Move the clock by one period and return the command of that tick."""
        self.set_clock(self.now_ns + by_ns)
        return self.wait_command(lambda command: stamp(command) == self.now_ns)

    def wait_command(self, predicate):
        return self.robot.wait(
            lambda: next((c for c in reversed(self.robot.commands) if predicate(c)), None),
            'a command',
        )

    def wait_status(self, predicate):
        return self.robot.wait(
            lambda: next((s for s in reversed(self.robot.statuses) if predicate(s)), None),
            'a status',
        )

    def counters(self):
        """The counters of a status published from now on."""
        self.robot.statuses.clear()
        self.set_clock(self.now_ns + 10 * PERIOD_NS)
        status = self.wait_status(lambda status: True)
        return dict(zip(status.counter_names, status.counter_values, strict=True))

    def send_goal(self, instruction=INSTRUCTION, duration_s=0, feedback=None):
        """Return the handle of an action goal, accepted or not."""
        assert self.robot.action.wait_for_server(TIMEOUT_S)
        goal = ExecuteInstruction.Goal(instruction=instruction)
        goal.max_duration.sec = duration_s
        return self.robot.finish(self.robot.action.send_goal_async(goal, feedback))

    def run_a_little(self):
        """Start, infer, move; return the epoch."""
        epoch = self.start()
        self.infer()
        assert self.advance().hold_reason.code == HoldReason.NONE
        return epoch


def is_still(command):
    delta = (command.translation, command.rotation)
    return command.hold and not any(v for d in delta for v in (d.x, d.y, d.z))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return create_tiny_checkpoint(tmp_path_factory.mktemp('tiny'))


@pytest.fixture
def script(monkeypatch):
    made = Script()
    monkeypatch.setattr(LocalPolicy, 'infer', lambda policy, request: made.infer(request))
    yield made
    made.gate.set()


@pytest.fixture
def make_bench(ros, checkpoint):
    """Make benches that are not yet configured; ask for `script` first, if at all."""
    benches = []

    def make(**parameters):
        benches.append(Bench(**{'checkpoint': str(checkpoint), **parameters}))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture
def make_active(make_bench, script):
    """Make benches whose node is active and whose policy is the script."""

    def make(**parameters):
        bench = make_bench(**parameters).activate()
        script.forget()  # the warm-up
        return bench

    return make


@pytest.fixture
def bench(make_active):
    return make_active()
