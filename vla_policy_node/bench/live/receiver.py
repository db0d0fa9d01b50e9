"""The robot's end of the wire: commands with the time at which the middleware received them."""

import threading
import time
from collections.abc import Callable

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter as ParameterMsg
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.task import Future
from std_srvs.srv import Trigger

from vla_msgs.msg import EndEffectorCommand, PolicyStatus
from vla_msgs.srv import StartInstruction
from vla_policy_node.bench.faults.records import Sent
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.messages import to_ns

# Every command counts, also while this process was busy.
EVERY_COMMAND = QoSProfile(depth=5000)
_TRANSITIONS = {'activate': Transition.TRANSITION_ACTIVATE,
                'deactivate': Transition.TRANSITION_DEACTIVATE}


class Receiver(Node):
    """Receives commands and calls the services of the policy node.

    zero_s: `time.monotonic` at the beginning of all times here.
    on_sent: called with each command (the thread that spins this node).
    """

    def __init__(self, zero_s: float, on_sent: Callable[[Sent], None]):
        super().__init__('receiver')
        self._zero_s, self._on_sent = zero_s, on_sent
        self.sent: list[Sent] = []
        self.status: PolicyStatus | None = None
        self.changed = threading.Condition()
        self.create_subscription(EndEffectorCommand, 'command', self._on_command, EVERY_COMMAND)
        self.create_subscription(
            PolicyStatus, 'policy_status', self._on_status, qos.event_output())
        self._clients_by_name = {
            'start': self.create_client(StartInstruction, 'policy/start'),
            'change_state': self.create_client(ChangeState, 'policy/change_state'),
            'set_parameters': self.create_client(SetParameters, 'policy/set_parameters'),
            **{name: self.create_client(Trigger, f'policy/{name}')
               for name in ('cancel', 'estop', 'reset_estop')},
        }

    def _on_command(self, msg: EndEffectorCommand, info: dict) -> None:
        sent = to_sent(msg, received_s(info) - self._zero_s)
        with self.changed:
            self.sent.append(sent)
            self.changed.notify_all()
        self._on_sent(sent)

    def _on_status(self, msg: PolicyStatus) -> None:
        with self.changed:
            self.status = msg
            self.changed.notify_all()

    def wait(self, predicate: Callable[[], object], timeout_s: float) -> object:
        """Return what the predicate says once it is true, or its last word at the timeout."""
        deadline_s = time.monotonic() + timeout_s
        with self.changed:
            while not (value := predicate()) and time.monotonic() < deadline_s:
                self.changed.wait(0.02)
        return value

    def call(self, name: str, timeout_s: float, **request) -> object | None:
        """Return the response of a service, None if none came in time (no spinning thread)."""
        client = self._clients_by_name[name]
        if not client.wait_for_service(timeout_s):
            return None
        future = client.call_async(client.srv_type.Request(**request))
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        if not done.wait(timeout_s):
            client.remove_pending_request(future)
            return None
        return future.result()

    def transition(self, name: str, timeout_s: float) -> object | None:
        """Ask for 'activate' or 'deactivate'."""
        return self.call('change_state', timeout_s, transition=Transition(id=_TRANSITIONS[name]))

    def set_parameters(self, timeout_s: float, **values) -> object | None:
        """Ask for other parameters."""
        return self.call('set_parameters', timeout_s, parameters=_parameters(values))

    def ask_for_parameters(self, **values) -> Future:
        """Ask for other parameters without waiting for the answer."""
        return self._clients_by_name['set_parameters'].call_async(
            SetParameters.Request(parameters=_parameters(values)))


def _parameters(values: dict) -> list[ParameterMsg]:
    return [Parameter(name, value=list(value) if isinstance(value, tuple) else value)
            .to_parameter_msg() for name, value in values.items()]


def received_s(info: dict) -> float:
    """Return when the middleware had a message, on `time.monotonic`."""
    # It tells so on the system's clock, which nobody steps while a campaign runs.
    return time.monotonic() - (time.time_ns() - info['received_timestamp']) / 1e9


def to_sent(msg: EndEffectorCommand, at_s: float) -> Sent:
    """Return what is noted of a command."""
    return Sent(
        at_s=at_s, stamp_s=to_ns(msg.header.stamp) / 1e9, hold=msg.hold,
        reason=msg.hold_reason.code,
        translation_m=(msg.translation.x, msg.translation.y, msg.translation.z),
        rotation_rad=(msg.rotation.x, msg.rotation.y, msg.rotation.z), gripper=msg.gripper,
        observation_stamp_s=to_ns(msg.observation_stamp) / 1e9,
        target_time_s=to_ns(msg.target_time) / 1e9, chunk_step=msg.chunk_step, epoch=msg.epoch,
        frame_id=msg.header.frame_id)
