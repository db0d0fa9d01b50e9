"""The guard node: passes commands on or sends a hold, so that the robot never goes without one.

It runs as a separate process next to the robot's driver, which obeys nobody else. Whatever happens
to the policy node (killed, hung, disconnected, duplicated), the driver gets a hold within two
control periods, and in every period after that. `control.guard` decides what passes.
"""

import contextlib
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from vla_policy_node.contract import find_contract
from vla_policy_node.contract.joints import is_moved_by_joints
from vla_policy_node.control.guard import Ceilings, GuardVerdict
from vla_policy_node.control.hold import Hold, HoldReason
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.ending import leave
from vla_policy_node.nodes.guard_outlets import EndEffectorOutlet, JointOutlet
from vla_policy_node.nodes.parameters import ParameterError, ParameterStore, parameter
from vla_policy_node.nodes.running import run
from vla_policy_node.wire.cdr import MessageError

# Shortest interval between checks for a missing command, otherwise four times a period.
FASTEST_LOOK_S = 0.002
PRIORITY = -10


@dataclass(frozen=True)
class GuardParameters:
    """Parameters of the node `guard`; none changes while it runs."""

    control_rate_hz: float = parameter(20.0, 'Rate of commands: that of the policy.', 'Hz', 1.0,
                                       200.0)
    max_step_translation_m: float = parameter(
        0.0125, 'Largest translation that passes, per control period.', 'm', 1e-6, 1.0)
    max_step_rotation_rad: float = parameter(
        0.025, 'Largest rotation that passes, per control period.', 'rad', 1e-6, 3.2)
    publish_twist: bool = parameter(
        False, 'Also publish geometry_msgs/TwistStamped for MoveIt Servo (speed units).')
    contract: str = parameter(
        '', 'The robot, as the parameter of the policy. Joints are bounded by it; the three above '
        'are for end effectors.')


class GuardNode(Node):
    """Node `guard`: commands of the policy in, commands for the driver of the robot out.

    An outlet knows which. All callbacks run on one thread. Raises ParameterError if a parameter
    cannot be used.
    """

    def __init__(self, **options):
        super().__init__('guard', **options)
        settings: GuardParameters = ParameterStore(self, GuardParameters, lambda: True).checked()
        period_s = 1.0 / settings.control_rate_hz
        self._outlet = self._make_outlet(settings, period_s)
        self._guard = self._outlet.guard
        self._hold = Hold(HoldReason.NONE)
        self._ended = False
        self._lock = threading.Lock()  # nothing may follow the hold of stand_still
        self._topic = self.resolve_topic_name(self._outlet.topic)
        self.create_subscription(
            self._outlet.kind, self._outlet.topic, self._take, qos.command_input(), raw=True)
        self.create_timer(max(period_s / 4.0, FASTEST_LOOK_S), self._look,
                          clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _make_outlet(
        self, settings: GuardParameters, period_s: float
    ) -> EndEffectorOutlet | JointOutlet:
        try:
            robot = find_contract(settings.contract)
        except ValueError as error:
            raise ParameterError(str(error)) from error
        if is_moved_by_joints(robot):
            return JointOutlet(self, period_s, robot)
        ceilings = Ceilings(settings.max_step_translation_m, settings.max_step_rotation_rad)
        return EndEffectorOutlet(self, period_s, ceilings, settings.publish_twist)

    def stand_still(self) -> None:
        """Send a last hold (any thread)."""
        with self._lock:
            self._ended = True
            self._outlet.hold(Hold(HoldReason.INACTIVE), self._now_ns())
        self._outlet.wait()

    def _take(self, raw: bytes, info: dict) -> None:
        with self._lock:
            if self._ended:
                return
            try:
                command = self._outlet.read(raw)
            except MessageError as error:
                self._obey(self._guard.refuse(time.monotonic()), None)
                self._warn(f"A message on '{self._topic}' is no command: {error}")
                return
            verdict = self._guard.take(
                command, self._senders(info), self._now_ns(), time.monotonic())
            self._obey(verdict, command)

    def _look(self) -> None:
        with self._lock:
            if not self._ended and (hold := self._guard.tick(time.monotonic())):
                self._obey(hold, None)

    def _obey(self, verdict: GuardVerdict | Hold, command: Any) -> None:
        # Sent first: logging may block on a full disk.
        if isinstance(verdict, Hold):
            self._outlet.hold(verdict, self._now_ns())
            self._tell(verdict)
        elif verdict is GuardVerdict.FORWARD:
            self._outlet.forward(command)
            self._tell(Hold(HoldReason.NONE))

    def _senders(self, info: dict) -> frozenset:
        """Return who may have sent a message.

        rclpy before Kilted cannot tell; all publishers on the topic count there.
        """
        if sender := info.get('publisher_gid'):
            return frozenset([bytes(sender['data'])])
        return frozenset(bytes(publisher.endpoint_gid) for publisher in
                         self.get_publishers_info_by_topic(self._topic))

    def _tell(self, hold: Hold) -> None:
        if hold != self._hold:
            self._hold = hold
            if hold.code is HoldReason.NONE:
                self.get_logger().info('Commands pass.')
            elif hold.code is HoldReason.ACTION_INVALID:
                self._warn('The guard holds the robot: a command is not finite, or above '
                           f'{self._outlet.too_large}.')
            else:
                self._warn(f'The guard holds the robot: {hold.text}')

    def _warn(self, text: str) -> None:
        self.get_logger().warning(text, throttle_duration_sec=1.0)

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds


def main(args=None):
    """Run the node until something ends it; its last message is a hold."""
    # Before others on a busy machine, where the user may (`nice` in /etc/security/limits.conf);
    # threads made later inherit it.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    run(GuardNode, args)
    leave()


if __name__ == '__main__':
    main()
