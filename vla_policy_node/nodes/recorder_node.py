"""The recorder node: records everything that a replay needs into a self-describing bag.

There is no rosbag2_py outside a ROS 2 installation, so this is a node with raw subscriptions.
Besides the messages, the folder gets `policy.yaml`, the policy node's parameters as a parameter
file, and `robot.yaml`, the contract of the robot with the topics of the bag.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message

from vla_msgs.msg import (
    ActionChunk,
    EndEffectorCommand,
    JointCommand,
    PolicyInfo,
    PolicyStatus,
    TokenSelection,
    WorldStatus,
)
from vla_policy_node.contract import (
    ContractError,
    RobotContract,
    find_contract,
    parse_contract,
    to_yaml,
)
from vla_policy_node.contract.fit import differences
from vla_policy_node.contract.joints import is_moved_by_joints
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.bag_writer import STORAGES, BagWriter, RecordingError
from vla_policy_node.nodes.message_classes import input_class, message_class, type_name
from vla_policy_node.nodes.parameter_reader import ParameterReader
from vla_policy_node.nodes.parameters import (
    ParameterError,
    ParameterStore,
    is_foreign,
    parameter,
)
from vla_policy_node.nodes.resolving import elsewhere, resolved, topics_of
from vla_policy_node.nodes.running import run
from vla_policy_node.outputs.files import write_text
from vla_policy_node.system.recorded import RECORDED_PARAMETERS, RECORDED_ROBOT
from vla_policy_node.wire.streams import InputStreams, is_static

REPORT_PERIOD_S = 10.0
_EARLY = 20  # messages kept from before the clock
_COMMANDS = ((EndEffectorCommand, 'command'), (TwistStamped, 'twist_command'))
_JOINT_COMMANDS = ((JointCommand, 'joint_command'),)
# What a replay or a person may want, besides the inputs of the policy.
_OUTPUTS = (
    (ActionChunk, 'action_chunk'), (TokenSelection, 'token_selection'),
    (PolicyStatus, 'policy_status'), (WorldStatus, 'world_status'),
    (DiagnosticArray, '/diagnostics'),
)


@dataclass(frozen=True)
class RecorderParameters:
    """Parameters of the node `recorder`."""

    output: str = parameter('', 'Folder of the bag; must not exist.')
    storage: str = parameter('mcap', 'Format; only mcap survives a recorder that is killed.',
                             choices=tuple(STORAGES))
    compression: str = parameter('none', 'Compress with zstd.', choices=('none', 'zstd'))
    contract: str = parameter(
        '', 'The robot whose inputs to record; empty: the one of the policy node, and until that '
        'describes itself end_effector.')
    compressed: bool = parameter(
        False, "Record '<camera>/image_raw/compressed' instead of '<camera>/image_raw'.")
    queue_mb: int = parameter(
        256, 'Messages waiting for the disk; what comes beyond is dropped and counted.', 'MB', 1,
        65536)
    extra_topics: tuple = parameter([''], 'Other topics to record, once they have a publisher.')
    policy_node: str = parameter('policy', 'Node whose parameters are kept beside the messages.')

    def __post_init__(self) -> None:
        """Raise ValueError for a contract that cannot be used."""
        find_contract(self.contract)


class RecorderNode(Node):
    """Node `recorder`: records from its start to its end. All callbacks run on one thread.

    Times in the bag are the node's clock, so with use_sim_time those of the simulation.
    Raises ParameterError if a parameter cannot be used or the bag cannot be made.
    """

    def __init__(self, **options):
        super().__init__('recorder', **options)
        # First: the node must be destroyable whatever fails below.
        self._writer: BagWriter | None = None
        self._settings: RecorderParameters = ParameterStore(
            self, RecorderParameters, lambda: True).checked()
        if not self._settings.output:
            raise ParameterError('output is empty; name a new folder for the recording.')
        try:
            self._writer = BagWriter(
                Path(self._settings.output), self._settings.storage,
                self._settings.compression == 'zstd', self._settings.queue_mb, self.get_logger())
        except RecordingError as error:
            raise ParameterError(str(error)) from None
        self._last_ns = 0
        self._awaited: dict[str, bool] = {}  # topics, and whether a replay needs them
        self._heard: set[str] = set()
        self._early: list[tuple[str, str, bytes]] = []
        self._asking = None
        self._robot: RobotContract
        self._inputs: set[str] = set()  # topics of its streams
        self._listened: set[str] | None = None  # topics of the policy node, as far as it is known
        self._info_topic = self.resolve_topic_name('policy_info')
        self._extra = {
            self.resolve_topic_name(topic) for topic in self._settings.extra_topics if topic}
        self._policy_parameters = ParameterReader(self, self._settings.policy_node)
        self._subscribe()
        self.create_timer(REPORT_PERIOD_S, self._report)
        if self._extra:
            self.create_timer(0.5, self._subscribe_extra)
        self.get_logger().info(f'Recording to {self._settings.output}')

    def destroy_node(self):
        """Finish the bag, then the node."""
        if self._writer is not None:
            self._writer.close()
            self._report()
            if optional := self._silent(needed=False):
                self.get_logger().info(f'Also silent: {", ".join(optional)}')
        super().destroy_node()

    @property
    def output(self) -> str:
        """Folder of the bag."""
        return self._settings.output

    @property
    def recorded(self) -> bool:
        """Whether any message is in the bag; complete after `destroy_node`."""
        return bool(self._writer and self._writer.written)

    def _silent(self, needed: bool) -> list[str]:
        """Return the topics on which nothing came, those that a replay needs or the others."""
        return [topic for topic in self._awaited
                if self._is_needed(topic) is needed and topic not in self._heard]

    def _is_needed(self, topic: str) -> bool:
        """Whether a replay needs a topic: of the inputs those of the policy, if there is one."""
        return self._awaited[topic] and (
            self._listened is None or topic in self._listened or topic not in self._inputs)

    def _subscribe(self) -> None:
        try:
            self._record_robot(find_contract(self._settings.contract))
        except ValueError as error:  # of messages that are not installed
            raise ParameterError(str(error)) from None
        self._awaited.update(dict.fromkeys(sorted(self._extra), True))
        for kind, topic in _OUTPUTS:
            self._listen(kind, topic, _deep(ReliabilityPolicy.RELIABLE))
        self._listen(PolicyInfo, 'policy_info', qos.latched())

    def _record_robot(self, robot: RobotContract) -> None:
        """Record inputs and commands of a robot, and its contract beside them."""
        former = set(self._awaited)
        streams = InputStreams(robot, self._settings.compressed)
        for stream, (kind, topic) in streams.topics.items():
            if self.resolve_topic_name(topic) not in former:
                profile = qos.static_transforms() if is_static(stream) else _deep(
                    ReliabilityPolicy.BEST_EFFORT)
                self._listen(input_class(kind), topic, profile, needed=not is_static(stream))
        for kind, topic in _JOINT_COMMANDS if is_moved_by_joints(robot) else _COMMANDS:
            if self.resolve_topic_name(topic) not in former:
                self._listen(kind, topic, _deep(ReliabilityPolicy.RELIABLE))
        inputs = {self.resolve_topic_name(topic) for _, topic in streams.topics.values()}
        # Those of a robot that is not there are not missed.
        self._awaited.update(dict.fromkeys(self._inputs - inputs, False))
        self._robot, self._inputs = robot, inputs
        self._write(RECORDED_ROBOT, to_yaml(resolved(self, robot)))

    def _follow_robot(self, raw: bytes) -> None:
        """Record the robot that the policy node says it serves, or say that it is another one."""
        text = deserialize_message(raw, PolicyInfo).contract
        if not text:
            return
        try:
            robot = parse_contract(text, 'The contract of the policy node')
        except ContractError as error:
            self.get_logger().warning(str(error))
            return
        apart = differences(robot, self._robot)
        if apart and self._settings.contract:
            self.get_logger().warning(
                f'The policy node serves another robot than {self._robot.name}: '
                f'{" and ".join(apart)} differ; what it needs may be missing in the recording.')
        elif apart or robot.topics != self._robot.topics:
            try:
                self._record_robot(robot)
            except ValueError as error:  # of messages that are not installed
                self.get_logger().warning(str(error))

    def _look_at_policy(self) -> None:
        """Learn what the policy node listens to; one that has gone is remembered."""
        self._listened = topics_of(self, self._settings.policy_node) or self._listened

    def _listen(
        self, kind: type, topic: str, profile: QoSProfile, needed: bool = False
    ) -> None:
        resolved = self.resolve_topic_name(topic)
        self._awaited.setdefault(resolved, needed)
        self.create_subscription(
            kind, topic, partial(self._keep, resolved, type_name(kind)), profile, raw=True)

    def _subscribe_extra(self) -> None:
        for topic, types in self.get_topic_names_and_types():
            if topic not in self._extra:
                continue
            self._extra.discard(topic)
            try:
                kind = message_class(types[0])
            except (ImportError, AttributeError):
                self.get_logger().warning(f"'{topic}' is not recorded: its type {types[0]} is not "
                                          'installed here.')
                continue
            self._listen(kind, topic, _deep(ReliabilityPolicy.BEST_EFFORT))

    def _keep(self, topic: str, type_name: str, raw: bytes) -> None:
        self._heard.add(topic)
        now_ns = self.get_clock().now().nanoseconds
        if topic == self._info_topic:
            self._ask_for_parameters()
            self._follow_robot(raw)
            self._look_at_policy()
        if now_ns == 0:  # simulated time is not known yet; only latched messages are kept
            self._early = [*self._early, (topic, type_name, raw)][-_EARLY:]
            return
        # A bag is read in the order of its times; a clock that goes back must not disturb it.
        self._last_ns = max(self._last_ns, now_ns)
        early, self._early = self._early, []
        for message in (*early, (topic, type_name, raw)):
            self._writer.add(*message[:2], self._last_ns, message[2])

    def _ask_for_parameters(self) -> None:
        """Ask the policy node once it is available, and again whenever it describes itself."""
        if not self._policy_parameters.is_ready():
            self._asking = self._asking or self.create_timer(
                0.5, self._ask_for_parameters, clock=Clock(clock_type=ClockType.STEADY_TIME))
            return
        if self._asking:
            self.destroy_timer(self._asking)
            self._asking = None
        self._policy_parameters.names().add_done_callback(self._ask_for_values)

    def _ask_for_values(self, future) -> None:
        answer = future.result()
        names = [name for name in (answer.result.names if answer else ()) if not is_foreign(name)]
        self._policy_parameters.values(names).add_done_callback(
            partial(self._write_parameters, names))

    def _write_parameters(self, names: list[str], future) -> None:
        answer = future.result()
        values = {} if answer is None else {
            name: parameter_value_to_python(value)
            for name, value in zip(names, answer.values, strict=False)}
        values = {name: list(value) if not isinstance(value, (str, int, float, bool)) else value
                  for name, value in values.items() if value is not None}
        if not values:
            return
        self._write(RECORDED_PARAMETERS, yaml.safe_dump(
            {'policy': {'ros__parameters': values}}, sort_keys=False))

    def _write(self, name: str, text: str) -> None:
        file = self._writer.path / name
        try:
            write_text(file, text)
        except OSError as error:
            self.get_logger().error(f'{file} cannot be written: {error.strerror}.')

    def _report(self) -> None:
        self._look_at_policy()
        written, dropped = self._writer.written, self._writer.dropped
        text = f'{sum(written.values())} messages on {len(written)} topics'
        if lost := {topic: n for topic, n in dropped.items() if n}:
            counts = ', '.join(f'{topic} {n}' for topic, n in sorted(lost.items()))
            why = self._writer.problem or 'The disk is too slow.'
            self.get_logger().warning(f'{text}; dropped: {counts}. {why}')
        else:
            self.get_logger().info(text)
        if self._heard and not (written or lost):
            self.get_logger().warning('Messages come, but no /clock; publish it or record without '
                                      'use_sim_time.')
        if silent := self._silent(needed=True):
            self.get_logger().warning(f'Nothing came on {", ".join(silent)}; see `ros2 topic info '
                                      f'-v {silent[0]}`.{elsewhere(self)}')


def _deep(reliability: ReliabilityPolicy) -> QoSProfile:
    """Return a profile with room for late callbacks; a recording wants every message."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=50, reliability=reliability,
                      durability=DurabilityPolicy.VOLATILE)


def main(args=None):
    """Run the node until SIGINT or SIGTERM; it then finishes the bag.

    The exit code is 1 if nothing was recorded.
    """
    nodes: list[RecorderNode] = []

    def make() -> RecorderNode:
        nodes.append(RecorderNode())
        return nodes[0]

    run(make, args, exit_s=None)
    if not nodes[0].recorded:
        print(f"Nothing came, so '{nodes[0].output}' is empty.", file=sys.stderr)
        raise SystemExit(1)


if __name__ == '__main__':
    main()
