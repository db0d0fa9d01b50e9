"""The guard node: passes commands on or sends a hold, so that a robot never hears silence.

It is a process of its own next to the robot's driver, which subscribes `guarded_command`. Whatever
happens to the policy node (killed, hung, cut off, two of them), the driver is told to stand still
within two control periods, and in every period after that. `control.guard` decides what passes.
"""

import contextlib
import os
import threading
import time
from dataclasses import dataclass

from geometry_msgs.msg import TwistStamped, Vector3
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from std_msgs.msg import Header

from vla_msgs.msg import EndEffectorCommand
from vla_msgs.msg import HoldReason as HoldReasonMessage
from vla_policy_node.control.guard import STREAM, Ceilings, Guard, GuardVerdict, SentCommand
from vla_policy_node.control.hold import Hold, HoldReason
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.messages import to_hold, to_time, to_twist
from vla_policy_node.nodes.parameters import ParameterStore, parameter
from vla_policy_node.nodes.running import run
from vla_policy_node.wire.cdr import MessageError, read_command

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


class GuardNode(Node):
    """Node `guard`: `command` in, `guarded_command` and, if asked, `guarded_twist_command` out.

    All callbacks run on one thread. Raises ParameterError if a parameter cannot be used.
    """

    def __init__(self, **options):
        super().__init__('guard', **options)
        self._settings: GuardParameters = ParameterStore(
            self, GuardParameters, lambda: True).checked()
        self._period_s = 1.0 / self._settings.control_rate_hz
        self._guard = Guard(self._period_s, Ceilings(
            self._settings.max_step_translation_m, self._settings.max_step_rotation_rad))
        self._hold = Hold(HoldReason.NONE)
        self._ended = False
        self._lock = threading.Lock()  # nothing may follow the hold of stand_still
        profile = qos.guarded_output(self._period_s)
        self._output = self.create_publisher(EndEffectorCommand, 'guarded_command', profile)
        self._twists = self.create_publisher(
            TwistStamped, 'guarded_twist_command', profile
        ) if self._settings.publish_twist else None
        self._topic = self.resolve_topic_name(STREAM)
        self.create_subscription(
            EndEffectorCommand, STREAM, self._take, qos.command_input(), raw=True)
        self.create_timer(max(self._period_s / 4.0, FASTEST_LOOK_S), self._look,
                          clock=Clock(clock_type=ClockType.STEADY_TIME))

    def stand_still(self) -> None:
        """Send a last hold (any thread)."""
        with self._lock:
            self._ended = True
            self._send_hold(Hold(HoldReason.INACTIVE))
        self._output.wait_for_all_acked(Duration(seconds=qos.HOLD_DELIVERY_S))

    def _take(self, raw: bytes, info: dict) -> None:
        with self._lock:
            if self._ended:
                return
            try:
                command = read_command(raw)
            except MessageError as error:
                self._obey(self._guard.refuse(time.monotonic()), None)
                self._warn(f"A message on '{self._topic}' is no command: {error}")
                return
            verdict = self._guard.take(
                command, self._senders(info), self.get_clock().now().nanoseconds,
                time.monotonic())
            self._obey(verdict, command)

    def _look(self) -> None:
        with self._lock:
            if not self._ended and (hold := self._guard.tick(time.monotonic())):
                self._obey(hold, None)

    def _obey(self, verdict: GuardVerdict | Hold, command: SentCommand | None) -> None:
        # Sent first: logging may block on a full disk.
        if isinstance(verdict, Hold):
            self._send_hold(verdict)
            self._tell(verdict)
        elif verdict is GuardVerdict.FORWARD:
            self._send(_to_message(command))
            self._tell(Hold(HoldReason.NONE))

    def _senders(self, info: dict) -> frozenset:
        """Return who may have sent a message.

        rclpy before Kilted cannot tell; all publishers on the topic count there.
        """
        if sender := info.get('publisher_gid'):
            return frozenset([bytes(sender['data'])])
        return frozenset(bytes(publisher.endpoint_gid) for publisher in
                         self.get_publishers_info_by_topic(self._topic))

    def _send_hold(self, hold: Hold) -> None:
        now_ns = self.get_clock().now().nanoseconds
        self._send(EndEffectorCommand(
            header=Header(stamp=to_time(now_ns), frame_id=self._guard.frame_id),
            gripper=self._guard.gripper, hold=True, hold_reason=to_hold(hold),
            target_time=to_time(now_ns + round(self._period_s * 1e9)), chunk_step=-1,
            disagreement=float('nan'), epoch=self._guard.epoch,
        ))

    def _send(self, message: EndEffectorCommand) -> None:
        self._output.publish(message)
        if self._twists is not None:
            self._twists.publish(to_twist(message, self._period_s))

    def _tell(self, hold: Hold) -> None:
        if hold != self._hold:
            self._hold = hold
            if hold.code is HoldReason.NONE:
                self.get_logger().info('Commands pass.')
            elif hold.code is HoldReason.ACTION_INVALID:
                self._warn('The guard holds the robot: a command is not finite, or above '
                           'max_step_translation_m or max_step_rotation_rad of the guard.')
            else:
                self._warn(f'The guard holds the robot: {hold.text}')

    def _warn(self, text: str) -> None:
        self.get_logger().warning(text, throttle_duration_sec=1.0)


def _to_message(command: SentCommand) -> EndEffectorCommand:
    return EndEffectorCommand(
        header=Header(stamp=to_time(command.stamp_ns), frame_id=command.frame_id),
        translation=Vector3(**dict(zip('xyz', command.translation_m, strict=True))),
        rotation=Vector3(**dict(zip('xyz', command.rotation_rad, strict=True))),
        gripper=command.gripper,
        hold=command.hold,
        hold_reason=HoldReasonMessage(
            code=command.hold_code, stream=command.hold_stream, text=command.hold_text),
        observation_stamp=to_time(command.observation_stamp_ns),
        target_time=to_time(command.target_time_ns),
        chunk_step=command.chunk_step,
        disagreement=command.disagreement,
        epoch=command.epoch,
        limited=command.limited,
    )


def main(args=None):
    """Run the node until something ends it; its last message is a hold."""
    # Before others on a busy machine, where the user may (`nice` in /etc/security/limits.conf);
    # threads made later inherit it.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    run(GuardNode, args)


if __name__ == '__main__':
    main()
