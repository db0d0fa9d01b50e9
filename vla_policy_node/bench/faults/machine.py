"""The policy node's core without its threads, clock and middleware: time is just a number.

The only file of the campaign that knows how the node is put together.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

from vla_policy_node.bench.faults.records import Promise, Sent, TimeSpan
from vla_policy_node.control.commander import Command
from vla_policy_node.control.hold import Hold, HoldReason
from vla_policy_node.control.pacing import SILENCE_PERIODS, Beat, Pacer, Pacing
from vla_policy_node.control.session import Outcome, Session
from vla_policy_node.loop.control_loop import ControlLoop
from vla_policy_node.loop.inputs import RefusedError, SensorInputs
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.loop.worker import PolicyWorker
from vla_policy_node.policy.interface import Policy

_FRAME_S = 0.07  # between two pictures of the slowest camera
_CLOCK_RESOLUTION_S = 0.004  # of a simulated clock
_SILENT = logging.getLogger('vla_policy_node.faults')
_SILENT.setLevel(logging.CRITICAL + 1)


class Machine:
    """Inputs, worker and commander, called by one thread in the order that the trial says.

    now_ns: the node's clock. parameters: those of the node.
    simulated: whether the node is on simulated time.
    """

    def __init__(self, parameters: Mapping[str, object], policy: Policy, now_ns: Callable[[], int],
                 simulated: bool):
        self._simulated = simulated
        self._values = dict(parameters)
        self.parameters = PolicyParameters(**self._values)
        self._now_ns = now_ns
        self.session = Session()
        loop = ControlLoop(policy, self.parameters.make_parts(), self.parameters.period_ns,
                           self.session)
        self.commander = loop.commander
        self._worker = PolicyWorker(
            loop, self.parameters.streams, now_ns, lambda result: None, logger=_SILENT)
        self._inputs = SensorInputs(self.commander, self.parameters.streams)

    def activate(self) -> None:
        """Allow goals, as `on_activate`."""
        self.commander.parts.pairer.reset()
        self.session.activate()

    def deactivate(self) -> None:
        """Allow no goals, as `on_deactivate`."""
        self.session.deactivate()

    def begin(self, instruction: str, duration_s: float) -> int:
        """Return the epoch of the goal; ValueError if it is refused."""
        return self.commander.begin(instruction, round(duration_s * 1e9)).epoch

    def cancel(self) -> None:
        """Stop following the instruction."""
        self.commander.end(Outcome.CANCELLED)

    def estop(self) -> None:
        """Latch the emergency stop."""
        self.commander.estop()

    def reset_estop(self) -> None:
        """Release the emergency stop."""
        self.session.reset_estop()

    def change(self, **values) -> None:
        """Set parameters as a client would; ValueError if they are refused."""
        parameters = PolicyParameters(**{**self._values, **values})
        self.commander.replace(parameters.retuned(self.commander.parts, self.parameters))
        self.parameters, self._values = parameters, {**self._values, **values}

    def file(self, stream: str, raw: bytes) -> None:
        """Hand over a message as a subscription does."""
        with suppress(RefusedError):
            self._inputs.file(stream, raw)

    def work(self) -> None:
        """Let the worker look whether there is something to infer from, and infer."""
        self._worker.work_once(0.0)

    def start_commands(self, steady_s: float) -> None:
        """Begin to count control periods, as the thread of the commands."""
        self._pacer = Pacer(
            Pacing.CLOCK if self._simulated else Pacing.STEADY, self.parameters.period_ns,
            round(SILENCE_PERIODS * self.parameters.period_ns), _ns(steady_s), self._now_ns())

    def next_poll_s(self, steady_s: float) -> float:
        """Return when to ask for a command again."""
        wait_s = self._pacer.wait_ns(_ns(steady_s)) / 1e9
        return steady_s + (min(wait_s, _CLOCK_RESOLUTION_S) if self._simulated else wait_s)

    def poll(self, steady_s: float) -> Sent | None:
        """Return the command that is due now, if one is."""
        beat = self._pacer.poll(_ns(steady_s), self._now_ns())
        if beat is None:
            return None
        return self.command(
            steady_s, Hold(HoldReason.CLOCK_STOPPED) if beat is Beat.SILENCE else None)

    def command(self, steady_s: float, outside: Hold | None = None) -> Sent:
        """Return what is sent now: in a control period, or at once after a stop."""
        now_ns = self._now_ns()
        command = self.commander.tick(
            now_ns, now_ns + self.parameters.period_ns,
            None if self._simulated else _ns(steady_s), outside)
        self._pacer.sent(_ns(steady_s))
        return to_sent(command, now_ns, steady_s, self.parameters.frame_id)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def to_sent(command: Command, now_ns: int, steady_s: float, frame_id: str) -> Sent:
    """Return what a receiver of the command would note."""
    return Sent(
        at_s=steady_s, stamp_s=now_ns / 1e9,
        hold=command.hold.code is not HoldReason.NONE, reason=int(command.hold.code),
        translation_m=tuple(command.motion.translation_m.tolist()),
        rotation_rad=tuple(command.motion.rotation_rad.tolist()),
        gripper=float(command.motion.gripper),
        observation_stamp_s=command.observation_stamp_ns / 1e9,
        target_time_s=command.target_time_ns / 1e9,
        chunk_step=command.chunk_step, epoch=command.epoch, frame_id=frame_id)


def promise_of(parameters: PolicyParameters, chunk_length: int, span: TimeSpan) -> Promise:
    """Return what a node with these parameters promises."""
    period_s = 1.0 / parameters.control_rate_hz
    chunk_s = chunk_length * period_s
    # Frames may be lost before; one picture, or two in turn, are new once; then comes the time to
    # tell, then the next frame.
    frozen_s = parameters.max_age_s + parameters.freeze_timeout_s + 3 * _FRAME_S
    return Promise(
        span=span, period_s=period_s,
        max_age_s=parameters.max_age_s, max_spread_s=parameters.max_spread_s,
        state_tolerance_s=parameters.state_tolerance_s,
        future_tolerance_s=parameters.future_tolerance_s, chunk_s=chunk_s,
        max_step_m=parameters.max_step_translation_m,
        max_step_rad=parameters.max_step_rotation_rad,
        max_velocity_m_s=parameters.max_linear_velocity_m_s,
        max_velocity_rad_s=parameters.max_angular_velocity_rad_s,
        max_acceleration_m_s2=parameters.max_linear_acceleration_m_s2,
        max_acceleration_rad_s2=parameters.max_angular_acceleration_rad_s2,
        workspace_min_m=parameters.workspace_min_m, workspace_max_m=parameters.workspace_max_m,
        allowance_s={'frozen': frozen_s},
        tolerated=frozenset({'frozen'}),
    )
