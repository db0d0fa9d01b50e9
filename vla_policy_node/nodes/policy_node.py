"""The policy node: camera pictures and robot state in, bounded commands out.

It has four threads. The executor thread: subscription callbacks only file bytes by stamp. The
command thread pops the action whose time is now, on a steady clock, and waits for nothing. The
goals thread serves goals and stops (`goals`). The worker thread decodes, infers and publishes
results. `control.commander` decides what to send; this file only connects it to ROS.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from dataclasses import replace

from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, State, TransitionCallbackReturn
from rclpy.publisher import Publisher
from std_msgs.msg import Header

from vla_msgs.msg import PolicyStatus
from vla_policy_node.contract.joints import is_moved_by_joints
from vla_policy_node.control.hold import Hold, HoldReason
from vla_policy_node.control.session import GoalRefusedError, Session
from vla_policy_node.loop.contract_fields import check_moved
from vla_policy_node.loop.control_loop import ControlLoop
from vla_policy_node.loop.inputs import SensorInputs
from vla_policy_node.loop.loading import load_ready
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.loop.shadowed import ShadowedPolicy
from vla_policy_node.loop.worker import PolicyWorker
from vla_policy_node.nodes import qos
from vla_policy_node.nodes.clock_trouble import ClockTrouble
from vla_policy_node.nodes.command_outputs import CommandOutputs
from vla_policy_node.nodes.commands import Commands
from vla_policy_node.nodes.ending import leave
from vla_policy_node.nodes.estop_record import EstopRecord
from vla_policy_node.nodes.goals import GoalServer, Work
from vla_policy_node.nodes.lifecycle import release_state_machine, state_label, transition
from vla_policy_node.nodes.limit_changes import refused_change
from vla_policy_node.nodes.parameters import ParameterStore, given
from vla_policy_node.nodes.reporting import PolicyReports, fill_feedback, make_status
from vla_policy_node.nodes.running import run
from vla_policy_node.nodes.subscriptions import Subscriptions
from vla_policy_node.policy.interface import Policy
from vla_policy_node.system.files import shipped_checkpoint

GRAPH_PERIOD_S = 0.5


class PolicyNode(LifecycleNode):
    """Managed node `policy`.

    configure validates every parameter, loads the policy and warms it up; activate starts the
    worker and the commands; deactivate sends a hold and stops them; cleanup frees the
    model. A parameter that cannot be used fails configure with a sentence and the node stays up.
    """

    def __init__(self, **kwargs):
        super().__init__('policy', **kwargs)
        self._configured = self._active = self._hung = self._ended = False
        cls, problem = PolicyParameters, ''
        try:
            cls = cls.of(str(given(self, 'contract') or ''))
        except ValueError as error:
            problem = str(error)
        self._store = ParameterStore(
            self, cls, lambda: self._configured, self._apply_parameters,
            self._refuse_parameters, {'contract': problem} if problem else {})
        if self._store.problem and not self.get_parameter('autostart').value:
            self.get_logger().warning(f'configure will be refused: {self._store.problem}')
        self._by_joints = is_moved_by_joints(cls.robot)
        # In seconds of the clock: above those of an earlier process, if goals last a little.
        self._session = Session(int(time.time()) % 2**32)
        self._counts: Counter[str] = Counter()
        self._input_subscriptions: Subscriptions | None = None
        self._report_timers = []
        self._commands: Commands | None = None
        self._policy: Policy | None = None
        self._goals: GoalServer | None = None
        self._worker: PolicyWorker | None = None
        self._shadow: ShadowedPolicy | None = None
        self._clock_trouble: ClockTrouble | None = None
        # For /diagnostics: why the last configure was refused; what is wrong, by entry.
        self._refused, self._troubles = '', {}
        self._outputs = CommandOutputs(self, self._by_joints)
        self._reports = PolicyReports(self)
        self._filed_publisher = self.create_publisher(Header, 'filed', qos.event_output())
        # Steady, like all reports: it must also be said that simulated time stands still.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0, self._publish_diagnostics, clock=self._steady)

    # --- transitions: executor thread ---

    @transition
    def on_configure(self, state: State):
        """Validate, load, warm up, create all endpoints."""
        self._refused = ''
        try:
            self._refuse_if_hung()
            self._configure()
        except Exception as error:
            self._refused = str(error) if isinstance(error, ValueError) else f'{error!r}'
            if isinstance(error, ValueError):
                self._release()
                self._publish_diagnostics()
            raise

    def _configure(self) -> None:
        parameters = self._settings = self._ceilings = self._store.checked()
        check_moved(parameters.robot)
        lock_step = parameters.pacing == 'observation'
        if lock_step and not self.get_parameter('use_sim_time').value:
            raise ValueError("pacing 'observation' is for lock-step on simulated time; set "
                             "use_sim_time, or pacing to 'timer'.")
        # Once: a file that vanishes or changes must not prevent tighter limits.
        self._references = parameters.read_references()
        self._load(parameters)
        self._streams = replace(parameters.streams, spec=self._policy.description.spec)
        self._outputs.renew()
        parts = parameters.make_parts(self._references, self._streams)
        if self.get_parameter('use_sim_time').value:
            self._clock_trouble = ClockTrouble(self, parameters)
        loop = ControlLoop(self._policy, parts, parameters.period_ns, self._session)
        self._commander = loop.commander
        self._commands = Commands(
            self, self._commander, parameters, self._now_ns, self._outputs.commands,
            self._outputs.twists if parameters.publish_twist else None, self._publish_status,
            self._clock_text)
        self._worker = PolicyWorker(
            loop, self._streams, self._now_ns, lambda result: self._reports.publish_result(
                result, self._settings.period_ns, self._streams.cameras[0]),
            self._commands.send_for_pair if lock_step else lambda pair: None,
            parameters.latency_window, self.get_logger(), parameters.inference_timeout_s,
        )
        self._input_subscriptions = self._subscribe(self._filed_publisher if lock_step else None)
        self._goals = self._goals or GoalServer(self, self._session)
        self._goals.take_up(self._work(), self._restore_estop(parameters))
        self._publish_info()
        self._report_timers = [
            self.create_timer(period_s, callback, clock=self._steady) for period_s, callback in (
                (1.0 / parameters.status_rate_hz, self._publish_status),
                (GRAPH_PERIOD_S, self._watch_graph))
        ]
        self._configured = True

    @transition
    def on_activate(self, state: State):
        """Start subscriptions, inference and commands."""
        self._refuse_if_hung()
        self._active = True
        self._commander.parts.pairer.reset()
        self._watch_graph()
        self._session.activate()
        if self._ended:  # the process was told to end in the meantime
            self._session.deactivate()
        if self._shadow is not None:
            self._shadow.start()
        self._worker.start()
        self._commands.start(self._worker)

    @transition
    def on_deactivate(self, state: State):
        """Stop, then hold: the last message on the wire must not be an action."""
        self._stop()

    @transition
    def on_cleanup(self, state: State):
        """Free the model and all endpoints."""
        self._release()

    @transition
    def on_shutdown(self, state: State):
        """Stop, hold and free, from any state."""
        self._stop()
        self._release()

    def on_error(self, state: State) -> TransitionCallbackReturn:
        """Fall back to unconfigured after an exception in a transition."""
        self._stop()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def destroy_node(self) -> None:
        """Leave the graph, too."""
        if self._goals is not None:
            self._goals.destroy()
            self._goals = None
        super().destroy_node()
        release_state_machine(self)

    def stand_still(self) -> None:
        """Hold from now on, whatever the executor is doing, for good (any thread)."""
        self._ended = True
        if self._active:
            self._session.deactivate()
            self._commands.send()

    def _refuse_if_hung(self) -> None:
        if self._hung:
            raise ValueError('An inference of before does not end; restart the process.')

    def _stop(self) -> None:
        if not self._active:
            return
        self._active = False
        self._session.deactivate()
        try:
            self._commands.send()  # at once, and for as long as the worker finishes its inference
            self._hung = not self._worker.stop()
            if self._hung:
                self.get_logger().fatal('An inference does not end; restart the process.')
            if self._shadow is not None:
                self._shadow.stop()
        finally:
            self._commands.stop()
        self._commands.send()
        self._goals.settle()
        self._outputs.commands.wait_for_all_acked(Duration(seconds=qos.HOLD_DELIVERY_S))
        self._publish_status()

    def _release(self) -> None:
        self._configured = False
        if self._goals is not None:
            self._goals.lay_down()
        for timer in self._report_timers:
            self.destroy_timer(timer)
        self._report_timers = []
        if self._input_subscriptions is not None:
            self._input_subscriptions.destroy()
            self._input_subscriptions = None
        if self._clock_trouble is not None:
            self._clock_trouble.destroy()
            self._clock_trouble = None
        if self._commands is not None:
            self._commands.stop()
        if self._policy is not None and not self._hung:  # a hung inference still uses it
            self._policy.close()
        self._policy = self._worker = self._commands = self._shadow = None
        gc.collect()

    # --- configure ---

    def _restore_estop(self, parameters: PolicyParameters) -> EstopRecord:
        record = EstopRecord(parameters.state_directory, self.context.get_domain_id(),
                             self.get_fully_qualified_name())
        self._troubles = {'emergency stop': record.restore(self._session, self.get_logger())}
        return record

    def _work(self) -> Work:
        """Return what goals need of this configuration, also when it is over."""
        commander, commands, worker = self._commander, self._commands, self._worker
        return Work(
            commander, self._policy.check_instruction, self._refuse_goal, commands.send,
            lambda: round(self._settings.default_duration_s * 1e9),
            lambda feedback: fill_feedback(
                feedback, commander.steps, commands.hold, worker.last),
            lambda: worker.counts().get('inferences', 0))

    def _load(self, parameters: PolicyParameters) -> None:
        if not parameters.checkpoint:
            raise ValueError(
                'checkpoint is empty; name a checkpoint directory, for example '
                f"'{shipped_checkpoint()}', or make one with `vla new-checkpoint DIR`.")
        self._policy, self._shadow = load_ready(parameters, self.get_logger())

    def _subscribe(self, filed: Publisher | None, kind=Subscriptions) -> Subscriptions:
        inputs = SensorInputs(self._commander, self._streams)
        return kind(self, self._streams, inputs, self._counts, filed)

    # --- reports: executor thread ---

    def _make_status(self, worker: PolicyWorker) -> PolicyStatus:
        hold = self._commands.hold
        text = self._clock_text()
        if text and hold.code is not HoldReason.NONE and not hold.detail:
            hold = replace(hold, detail=text)
        return make_status(
            state_label(self), self._settings, self._streams, self._commander, worker, hold,
            self._counts, self._now_ns())

    def _clock_text(self) -> str:
        watch = self._clock_trouble
        return '' if watch is None else watch.text()

    def _publish_status(self) -> None:
        if worker := self._worker:  # None if this timer fired while the node was cleaned up
            self._reports.publish_status(self._make_status(worker))

    def _publish_diagnostics(self) -> None:
        if worker := self._worker:
            description = worker.description
            self._reports.publish_diagnostics(
                self._make_status(worker), description.checkpoint,
                description.chunk_length * self._settings.period_ns / 1e6,
                self._shadow.summary() if self._shadow else None, worker.trouble(),
                {**self._troubles, 'clock': self._clock_text()})
        else:
            self._reports.publish_idle_diagnostics(
                state_label(self), self._refused, self._now_ns())

    def _publish_info(self) -> None:
        self._reports.publish_info(self._policy.description, self._settings, self._now_ns())

    # --- who else is there: executor thread ---

    def _watch_graph(self) -> None:
        """Hold while two publishers write one input, or command one robot."""
        if not (self._commands and self._input_subscriptions):  # while it is cleaned up
            return
        topics = [*self._input_subscriptions.unshared_topics, *self._outputs.topics]
        if self._by_joints:  # the controllers have the guard, and nobody else
            topics += [self.resolve_topic_name(group.topic)
                       for group in self._settings.robot.actions]
        doubled = next((topic for topic in topics if self.count_publishers(topic) > 1), None)
        self._commands.conflict = doubled and Hold(HoldReason.SOURCE_CONFLICT, doubled)
        if self._clock_trouble is not None:
            self._clock_trouble.watch_graph()

    def _refuse_goal(self) -> None:
        """Raise GoalRefusedError if no goal can begin, whatever it is (goals thread)."""
        worker = self._worker
        if worker is None:  # it was cleaned up at this moment
            raise GoalRefusedError('The node is not configured; configure and activate it first.')
        if worker.trouble():
            raise GoalRefusedError(
                'The policy is still busy with an inference that is late; restart the node if it '
                'stays so.')
        if self._now_ns() == 0:
            raise GoalRefusedError(
                'The clock has not started; publish /clock or set use_sim_time to false.')

    # --- parameters: executor thread ---

    def _refuse_parameters(self, old: PolicyParameters, new: PolicyParameters) -> str:
        try:
            self._policy.description.check_mode(new.execution_mode)
        except ValueError as error:
            return str(error)
        return refused_change(self._ceilings, old, new, self._session.goal is not None)

    def _apply_parameters(self, parameters: PolicyParameters) -> None:
        former, self._settings = self._settings, parameters
        self._commander.replace(parameters.retuned(
            self._commander.parts, former, self._references, self._streams))
        self._publish_info()

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds


def main(args=None):
    """Run the node until SIGINT or SIGTERM; it then stops, holds and frees."""
    run(PolicyNode, args)
    leave()


if __name__ == '__main__':
    main()
