"""Publishes one command per control period, and a hold at once on every stop."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable

from rclpy.node import Node
from rclpy.publisher import Publisher

from vla_policy_node.control.commander import Command, Commander
from vla_policy_node.control.hold import Hold, HoldReason
from vla_policy_node.control.pacing import SILENCE_PERIODS, Beat, Pacing
from vla_policy_node.control.pairing import Pair
from vla_policy_node.control.session import Outcome
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.loop.worker import PolicyWorker
from vla_policy_node.nodes import messages
from vla_policy_node.nodes.command_loop import CommandLoop

# Replaces SILENCE_PERIODS in lock-step, where the world waits for the policy.
LOCK_STEP_SILENCE_S = 2.0


class Commands:
    """Lets the commander decide and publishes the decision, stops as well as actions.

    Any thread may call anything: one lock is held from decision to publication, because an action
    must not overtake the hold that follows it. It is held no longer than that.

    now_ns: the node's clock. twists: publisher of the same as velocities, or None.
    hold_changed: called after a command whose hold differs from the last one's.
    clock_trouble: says what is wrong with the node's clock.
    """

    def __init__(
        self,
        node: Node,
        commander: Commander,
        parameters: PolicyParameters,
        now_ns: Callable[[], int],
        publisher: Publisher,
        twists: Publisher | None,
        hold_changed: Callable[[], None],
        clock_trouble: Callable[[], str] = str,
    ):
        self._clock = node.get_clock()
        self._logger = node.get_logger()
        self._commander = commander
        self._parameters = parameters
        self._period_ns = parameters.period_ns
        self._joints = parameters.joint_spec
        self._now_ns = now_ns
        self._publisher = publisher
        self._twists = twists
        self._hold_changed = hold_changed
        self._clock_trouble = clock_trouble
        self._lock = threading.Lock()
        self._loop: CommandLoop | None = None
        self._worker: PolicyWorker | None = None
        self._silent_since_s: float | None = None
        if parameters.pacing == 'observation':
            self._pacing = Pacing.OBSERVATION
        else:
            sim_time = node.get_parameter('use_sim_time').value
            self._pacing = Pacing.CLOCK if sim_time else Pacing.STEADY
        self.hold = self._logged = Hold(HoldReason.INACTIVE)  # of the last command
        self.conflict: Hold | None = None  # a topic with more than one publisher; set by the node

    def start(self, worker: PolicyWorker) -> None:
        """Start sending a command per period (executor thread)."""
        self._worker = worker
        self._loop = CommandLoop(
            self._clock, self._pacing, self._period_ns, self._silence_s(), self._on_beat,
            self._logger.fatal)

    def stop(self) -> None:
        """Stop sending (executor thread)."""
        if self._loop is not None:
            self._loop.stop()
            self._loop = None

    def send(self, outside: Hold | None = None, late_ns: int = 0) -> None:
        """Send what is due now.

        outside: a reason to hold that the commander cannot see. late_ns: how long ago the
        period began; its action is still the one to send, or the next would come too early.
        """
        self._send_for(lambda now_ns: now_ns - late_ns + self._period_ns, outside)

    def send_for_pair(self, pair: Pair) -> None:
        """Send what belongs to an observation, in lock-step (worker thread)."""
        self._send_for(lambda _: pair.stamp_ns + self._period_ns)

    def _silence_s(self) -> float:
        if self._pacing is Pacing.OBSERVATION:
            return LOCK_STEP_SILENCE_S
        return self._parameters.clock_timeout_s or SILENCE_PERIODS * self._period_ns / 1e9

    def _on_beat(self, beat: Beat, late_ns: int) -> None:
        if beat is Beat.TICK:
            self._silent_since_s = None
            self.send(late_ns=late_ns)
        elif self._pacing is Pacing.CLOCK:
            self._endure_silence()
        elif self._worker.trouble():
            self.send()
        elif not self._worker.is_busy:
            self._send_for(lambda now_ns: now_ns + self._period_ns, pause=True)

    def _endure_silence(self) -> None:
        """Hold while simulated time stands still; after the time for bad inputs end the goal."""
        parts = self._commander.parts
        # Once the clock moves on, nobody can tell how old earlier pictures are.
        parts.pairer.reset()
        self._silent_since_s = self._silent_since_s or time.monotonic()
        silent_ns = (time.monotonic() - self._silent_since_s) * 1e9
        if parts.input_timeout_ns and silent_ns >= parts.input_timeout_ns:
            self._commander.end(Outcome.INPUT_LOST)
        self.send(Hold(HoldReason.CLOCK_STOPPED, detail=self._clock_trouble()))

    def _send_for(
        self, target: Callable[[int], int], outside: Hold | None = None, pause: bool = False
    ) -> None:
        if late := self._worker and self._worker.trouble():
            self._commander.end(Outcome.INFERENCE_FAILED, hold=late)
        with self._lock:
            now_ns = self._now_ns()
            if pause:
                command = self._commander.pause(Hold(HoldReason.CLOCK_STOPPED), target(now_ns))
            else:
                # On simulated time, the simulation determines how long a goal lasts.
                steady_ns = time.monotonic_ns() if self._pacing is Pacing.STEADY else None
                command = self._commander.tick(
                    now_ns, target(now_ns), steady_ns, outside or self.conflict)
            self._publish(command, now_ns)
            changed = command.hold != self.hold
            self.hold = command.hold
        if changed:
            self._report(command)

    def _publish(self, command: Command, now_ns: int) -> None:
        if spec := self._joints:
            msg = messages.to_joint_command(command, now_ns, spec)
        else:
            msg = messages.to_command(command, now_ns, self._parameters.frame_id)
        self._publisher.publish(msg)
        if self._twists is not None:
            self._twists.publish(messages.to_twist(msg, self._period_ns / 1e9))
        if loop := self._loop:
            loop.sent()

    def _report(self, command: Command) -> None:
        """Log the change. Without the lock, and never raising: the robot has been told already."""
        try:
            self._log(command)
            self._hold_changed()
        except Exception:
            self._logger.error(traceback.format_exc())

    def _log(self, command: Command) -> None:
        hold = command.hold
        # Between chunks a hold may come and go many times a second; the counters show that.
        if hold.code in (HoldReason.AWAITING_INFERENCE, HoldReason.CHUNK_EXHAUSTED):
            return
        if hold != self._logged:
            self._logged = hold
            self._logger.info('Moving.' if hold.code is HoldReason.NONE
                              else f'Holding: {hold.text} {command.detail}'.rstrip())
