"""The player node: a recorded bag in place of cameras and robot, for the live policy node.

It publishes the inputs of the policy and /clock, and requests the goals of the bag. In lock-step
it continues only when the policy node has filed what was sent and has answered every observation,
so that nothing depends on speed and the node sends exactly what `vla replay` computes.
"""

import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace

from builtin_interfaces.msg import Duration
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from vla_msgs.msg import EndEffectorCommand, PolicyStatus
from vla_msgs.srv import StartInstruction
from vla_policy_node.contract import ContractError, find_contract
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.ending import leave
from vla_policy_node.nodes.image_messages import unpacked
from vla_policy_node.nodes.message_classes import input_class
from vla_policy_node.nodes.messages import to_ns, to_time
from vla_policy_node.nodes.parameter_reader import ParameterReader
from vla_policy_node.nodes.parameters import ParameterError, ParameterStore, parameter
from vla_policy_node.nodes.playback import LockStep, PlaybackError, RealTime
from vla_policy_node.nodes.resolving import topics_of
from vla_policy_node.nodes.running import run
from vla_policy_node.policy.interface import PolicySpec, Quantity
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.bag_summary import summarise_bag
from vla_policy_node.replay.played import find_played
from vla_policy_node.replay.timeline import events
from vla_policy_node.replay.topics import BagTopics

_STEP_NS = 10_000_000  # of the clock before the bag begins
_NEAR_NS = 1_000_000_000  # further from there is the time of another clock
_A_YEAR_S = 365 * 86400  # a goal ends when the bag says so


@dataclass(frozen=True)
class PlayerParameters:
    """Parameters of the node `player`."""

    bag: str = parameter('', 'Folder of the bag.')
    contract: str = parameter('', 'The robot that was recorded, as for the policy node.')
    rate: float = parameter(
        1.0, 'Times as fast as it was recorded; without meaning in lock-step.', '', 0.01, 100.0)
    lock_step: bool = parameter(
        False, 'Wait for the policy after every observation; it needs `pacing: observation`.')
    instruction: str = parameter(
        '', 'What to follow from the first to the last message; empty: what the bag says.')
    bag_namespace: str = parameter(
        '', "The robot to play, by its namespace in the bag, '/' for the one in none; empty: the "
        "one of this node's namespace, or else the only one.")
    compressed: bool = parameter(
        False, 'Publish compressed pictures as they are, for a policy node with `compressed`; '
        'otherwise they are unpacked.')
    timeout_s: float = parameter(
        60.0, 'Wall time to wait for the policy node, also for one command in lock-step.', 's',
        0.1, 3600.0)

    def __post_init__(self) -> None:
        """Raise ValueError for a contract that cannot be used."""
        find_contract(self.contract)


class PlayerNode(Node):
    """Node `player`. One thread plays; callbacks, on the spinning thread, only notify it.

    on_end: called once when the bag has ended (playing thread); `failed` says whether well.
    Raises ParameterError for a bag or a parameter that cannot be used.
    """

    def __init__(self, on_end: Callable[[], None] = lambda: None, **options):
        super().__init__('player', **options)
        # First: the node must be destroyable whatever fails below.
        self._changed = threading.Condition()
        self._stop = False
        self._stack = ExitStack()
        self._thread: threading.Thread | None = None
        self._settings: PlayerParameters = ParameterStore(
            self, PlayerParameters, lambda: True).checked()
        self._on_end = on_end
        if not self._settings.bag:
            raise ParameterError('bag is empty; name the folder of a recording.')
        try:
            self._bag = self._stack.enter_context(Bag(self._settings.bag))
            played = find_played(
                self._bag, self._settings.contract, self._settings.compressed,
                self._settings.bag_namespace, self.get_namespace().rstrip('/'),
                self.resolve_topic_name)
        except (BagError, ContractError) as error:
            raise ParameterError(str(error)) from None
        self._topics, self._packed = played.topics, played.packed
        self.failed = False
        self._filed: dict[str, int] = {}
        self._commands = 0
        self._active = False
        self._status_ns = 0  # time of the policy node
        self._cameras: tuple[str, ...] = ()  # that the policy needs
        try:
            self._create_endpoints()
        except ValueError as error:  # of messages that are not installed
            raise ParameterError(str(error)) from None
        self._thread = threading.Thread(target=self._run, name='player', daemon=True)
        self._thread.start()

    def destroy_node(self):
        """Stop playing, then destroy the node."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._stack.close()
        super().destroy_node()

    def _create_endpoints(self) -> None:
        self._played = replace(self._topics.streams, robot=find_contract(self._settings.contract))
        self._outputs = {
            stream: self.create_publisher(input_class(kind), topic, qos.played(stream))
            for stream, (kind, topic) in self._played.topics.items()
            if stream in self._topics.inputs.values()}
        self._clock_output = self.create_publisher(Clock, '/clock', qos.clock_output())
        self._start = self.create_client(StartInstruction, 'policy/start')
        self._cancel = self.create_client(Trigger, 'policy/cancel')
        self._policy_parameters = ParameterReader(self, 'policy')
        self.create_subscription(Header, 'filed', self._on_filed, qos.event_output())
        self.create_subscription(
            EndEffectorCommand, 'command', self._on_command, qos.command_input())
        self.create_subscription(
            PolicyStatus, 'policy_status', self._on_status, qos.event_output())

    # --- what the policy node says: spinning thread ---

    def _on_filed(self, msg: Header) -> None:
        with self._changed:
            self._filed[msg.frame_id] = to_ns(msg.stamp)
            self._changed.notify_all()

    def _on_command(self, msg: EndEffectorCommand) -> None:
        with self._changed:
            self._commands += 1
            self._changed.notify_all()

    def _on_status(self, msg: PolicyStatus) -> None:
        with self._changed:
            # The status carries the node's time; 0 before it has received any.
            self._status_ns = to_ns(msg.header.stamp)
            self._active = msg.lifecycle_state == 'active'
            self._cameras = tuple(msg.camera_names)
            self._changed.notify_all()

    # --- the rest: playing thread ---

    def _run(self) -> None:
        try:
            self._play()
        except (BagError, PlaybackError) as error:
            self.failed = True
            self.get_logger().error(str(error))
        except Exception:
            self.failed = True
            self.get_logger().fatal(traceback.format_exc())
        self._on_end()

    def _play(self) -> None:
        self.wait(lambda: self.count_publishers(self._clock_output.topic_name) == 1,
                  'the time to itself: another node publishes /clock, too (each simulation needs '
                  'a ROS_DOMAIN_ID of its own)')
        parameters = self._read_parameters()
        needed = self._needed()
        summary = summarise_bag(
            self._bag, needed, self._settings.instruction, parameters.period_ns)
        self.get_logger().info(f'Playing {self._bag.path}: {self._bag.duration_s:.1f} s')
        play: LockStep | RealTime | None = None
        for time_ns, event, raw in events(self._bag, self._topics, summary):
            if self._stop:
                return
            if play is None:
                self._wait_for_policy(time_ns, needed)
                play = (LockStep(self, parameters, needed.streams) if self._settings.lock_step
                        else RealTime(self))
            play.reach(time_ns)
            if isinstance(event, str):
                sample = unpacked(raw) if event in self._packed else raw
                if sample is not None:
                    play.send(event, sample)
            elif event is None:
                self.call(self._cancel, Trigger.Request())
                play.ended()
            else:
                request = StartInstruction.Request(
                    instruction=event.instruction, max_duration=Duration(sec=_A_YEAR_S))
                answer = self.call(self._start, request)
                if not answer.success:
                    raise PlaybackError(f'The policy node refused: {answer.message}')
                play.begun()
        for remark in self._bag.remarks():
            self.get_logger().warning(remark)
        self.get_logger().info('The bag has ended.')

    def _read_parameters(self) -> PolicyParameters:
        self.wait(self._policy_parameters.is_ready, 'the policy node')
        cls = PolicyParameters.of(self._settings.contract)
        names = [field.name for field in fields(cls)]
        answer = self.finish(self._policy_parameters.values(names), 'its parameters')
        values = {}
        for name, value in zip(names, answer.values, strict=True):
            value = parameter_value_to_python(value)
            is_list = not isinstance(value, (str, int, float, bool))
            values[name] = list(value) if is_list else value
        return PolicyParameters.from_values(values)

    def _needed(self) -> BagTopics:
        """Wait until the node says what it listens to; BagError if the bag lacks some of that."""
        states: set[str] | None = None

        def known() -> bool:
            nonlocal states
            topics = topics_of(self, 'policy')
            if topics is not None:
                states = {source for source in self._played.states
                          if self.resolve_topic_name(self._played.topics[source][1]) in topics}
            return bool(self._cameras) and states is not None

        self.wait(known, 'the policy node to say what it listens to', 0.05)
        told = tuple(
            Quantity(value.name) for name, source in self._played.states.items()
            if name in (states or ()) and name != self._played.pose for value in source.values)
        return self._topics.needed_by(
            {'the policy of the node': PolicySpec(self._cameras, told)}, moves=True)

    def _wait_for_policy(self, time_ns: int, needed: BagTopics) -> None:
        """Wait until the node is active, is subscribed and knows the time."""
        # In small steps, as everybody hears it: a jump would make old what comes before it.
        last_ns = time_ns - _STEP_NS
        before_ns = last_ns - 20 * _STEP_NS

        def ready() -> bool:
            nonlocal before_ns
            before_ns = min(before_ns + _STEP_NS, last_ns)
            self.set_clock(before_ns)
            heard = {stream for stream, output in self._outputs.items()
                     if output.get_subscription_count()}
            knows_time = 0 <= self._status_ns - last_ns < _NEAR_NS
            return (self._active and knows_time and self._start.service_is_ready()
                    and heard >= needed.streams.topics.keys() & self._outputs.keys())

        self.wait(ready, 'the policy node to be active', _STEP_NS / 1e9)

    def publish(self, stream: str, raw: bytes) -> None:
        """Send one recorded sample as it was."""
        self._outputs[stream].publish(raw)

    def set_clock(self, time_ns: int) -> None:
        """Publish the time."""
        self._clock_output.publish(Clock(clock=to_time(time_ns)))

    def filed(self, stream: str) -> int | None:
        """Return the stamp (ns) of the last sample of a stream that the node has filed."""
        return self._filed.get(stream)

    @property
    def commands(self) -> int:
        """Number of commands received."""
        return self._commands

    @property
    def rate(self) -> float:
        """Playback speed relative to the recording."""
        return self._settings.rate

    def call(self, client, request):
        """Return a service's answer."""
        return self.finish(client.call_async(request), f'an answer of {client.srv_name}')

    def finish(self, future, what: str):
        """Return a future's result; the spinning thread completes it."""
        future.add_done_callback(lambda _: self._notify())
        self.wait(future.done, what)
        return future.result()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool], what: str, look_s: float = 0.5) -> None:
        """Block until the condition holds; PlaybackError after timeout_s."""
        deadline = time.monotonic() + self._settings.timeout_s
        with self._changed:
            while not condition():
                if self._stop:
                    raise PlaybackError('Interrupted.')
                if time.monotonic() > deadline:
                    raise PlaybackError(
                        f'Waited {self._settings.timeout_s:.0f} s for {what} in vain.')
                self._changed.wait(look_s)


def main(args=None):
    """Play the bag once, or until SIGINT or SIGTERM."""
    players = []

    def make() -> PlayerNode:
        players.append(PlayerNode(lambda: signal.raise_signal(signal.SIGTERM)))
        return players[0]

    run(make, args)
    leave(int(players[0].failed))


if __name__ == '__main__':
    main()
