"""Feeds a real node with cameras, state and /clock, through any fault, in real time."""

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterable

from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock as ClockMsg
from sensor_msgs.msg import Image, JointState

from vla_policy_node.bench.faults import messages
from vla_policy_node.bench.faults.messages import Message
from vla_policy_node.bench.faults.records import CAMERA_STREAMS, STREAMS, Sample
from vla_policy_node.bench.faults.trial import Fault
from vla_policy_node.bench.faults.world import SECOND, Clock, Robot, Setup
from vla_policy_node.contract import find_contract
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.messages import to_time

_TYPES = dict(zip(STREAMS, (Image, Image, PoseStamped, JointState), strict=True))
_CLOCK_PERIOD_S = 0.005


class Feeder:
    """Publishes samples as bytes, from a thread of its own.

    node: to publish from. zero_s: `time.monotonic` at the beginning of all times here.
    node_clock, source_clock: of the node under test and of the stamps.
    shows_time: whether to publish the first of them on /clock.
    on_sample: called with every sample that left (the thread of the feeder).
    """

    def __init__(self, node: Node, setup: Setup, zero_s: float, node_clock: Clock,
                 source_clock: Clock, shows_time: bool, on_sample: Callable[[Sample], None]):
        self._setup, self._zero_s, self._on_sample = setup, zero_s, on_sample
        self._shows_time = shows_time
        self.node_clock, self.source_clock = node_clock, source_clock
        self.faults: Iterable[Fault] = ()
        self.robot_lock = threading.Lock()
        self._publishers = {
            stream: node.create_publisher(_TYPES[stream], topic, qos_profile_sensor_data)
            for stream, topic in find_contract('').topics.items()}
        self._clock_publisher = node.create_publisher(ClockMsg, '/clock', qos.clock_output())
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._frames = dict.fromkeys(STREAMS, 0)
        self.robot = self.new_robot(20.0)
        self.error: Exception | None = None  # that ended the thread
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name='feeder', daemon=True)

    def new_robot(self, rate_hz: float) -> Robot:
        """Put the robot back to where it starts."""
        with self.robot_lock:
            self.robot = Robot(self._setup.start_m, 1.0 / rate_hz, self._setup.lag_s)
        return self.robot

    def obey(self, sent) -> None:
        """Let the robot move (any thread)."""
        if not sent.hold:
            with self.robot_lock:
                self.robot.obey(self.now_s, sent.translation_m, sent.rotation_rad)

    def pose(self) -> tuple:
        """Return where the robot is now: position [3] and quaternion [4] (any thread)."""
        with self.robot_lock:
            return self.robot.pose(self.now_s)

    @property
    def now_s(self) -> float:
        """Time since the beginning."""
        return time.monotonic() - self._zero_s

    def node_ns(self) -> int:
        """What the clock of the node shows."""
        return self.node_clock.ns(self.now_s)

    def start(self) -> None:
        """Begin to publish."""
        for stream in STREAMS:
            camera = stream in CAMERA_STREAMS
            period_s = 1.0 / (self._setup.camera_hz if camera else self._setup.state_hz)
            self._at(self.now_s, lambda s=stream, p=period_s: self._capture(s, p))
        if self._shows_time:
            self._at(self.now_s, self._show_time)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def flood(self, stream: str, make: Callable[[], bytes], rate_hz: float,
              duration_s: float) -> None:
        """Publish what is made, newly stamped, as fast as that (any other thread)."""
        end_s = self.now_s + duration_s
        next_s = self.now_s
        while (now_s := self.now_s) < end_s:
            stamp_ns = self.source_clock.ns(now_s)
            self._publishers[stream].publish(messages.with_stamp(make(), stamp_ns))
            next_s += 1.0 / rate_hz
            time.sleep(max(0.0, next_s - self.now_s))

    def _at(self, at_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), what))

    def _run(self) -> None:
        try:
            self._feed()
        except Exception as error:
            self.error = error
            raise

    def _feed(self) -> None:
        while not self._stop.is_set():
            wait_s = self._events[0][0] - self.now_s
            if wait_s > 0:
                self._stop.wait(min(wait_s, 0.05))
            else:
                heapq.heappop(self._events)[2]()

    def _show_time(self) -> None:
        now_ns = self.node_ns()
        if -(2**31) * SECOND <= now_ns < 2**31 * SECOND:
            self._clock_publisher.publish(ClockMsg(clock=to_time(now_ns)))
        self._at(self.now_s + _CLOCK_PERIOD_S, self._show_time)

    def _capture(self, stream: str, period_s: float) -> None:
        now_s = self.now_s
        self._at(now_s + period_s, lambda: self._capture(stream, period_s))
        self._frames[stream] += 1
        stamp_ns = self.source_clock.ns(now_s)
        position_m, quaternion = self.pose()
        leaving: list[Message] = [messages.healthy(
            stream, self._frames[stream], now_s, now_s, stamp_ns, position_m, quaternion)]
        for fault in self.faults:
            if fault.alter is not None and fault.span.holds(now_s):
                leaving = [altered for one in leaving for altered in fault.alter(one)]
        for one in leaving:
            if one.arrives_s <= now_s:
                self._send(one)
            else:
                self._at(one.arrives_s, lambda one=one: self._send(one))

    def _send(self, message: Message) -> None:
        # Before it leaves: the node may answer before this thread is back.
        self._on_sample(Sample(
            message.stream, self.now_s, message.stamp_ns / SECOND, self.node_ns() / SECOND,
            message.fault, message.verdict))
        self._publishers[message.stream].publish(message.raw)
