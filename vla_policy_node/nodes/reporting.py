"""Publishers and messages for the state of the policy node and for each inference."""

import math
from collections.abc import Mapping
from types import MappingProxyType

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from std_msgs.msg import Header

from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import ActionChunk, PolicyInfo, PolicyStatus, TokenSelection
from vla_policy_node.control.commander import Commander
from vla_policy_node.control.hold import Hold, HoldReason
from vla_policy_node.loop.counters import counters
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.loop.shadowed import ShadowSummary
from vla_policy_node.loop.worker import PolicyWorker, Result
from vla_policy_node.nodes import messages, qos
from vla_policy_node.nodes.messages import SHADOW_ENTRY, finite_or_zero, to_hold, to_time
from vla_policy_node.nodes.resolving import resolved
from vla_policy_node.policy.interface import PolicyDescription
from vla_policy_node.wire.streams import InputStreams

# Holds that are normal operation.
_CALM = frozenset({
    HoldReason.NONE, HoldReason.INACTIVE, HoldReason.NO_INSTRUCTION, HoldReason.GOAL_FINISHED,
    HoldReason.AWAITING_INFERENCE, HoldReason.CHUNK_EXHAUSTED,
})


def make_status(
    lifecycle_state: str,
    parameters: PolicyParameters,
    streams: InputStreams,
    commander: Commander,
    worker: PolicyWorker,
    hold: Hold,
    others: Mapping[str, int],
    now_ns: int,
) -> PolicyStatus:
    """Return the state of the node.

    streams: those that the policy needs. hold: of the last command.
    """
    goal = commander.session.goal
    latency = worker.latency.summary()
    last = worker.last
    ages_ms = {name: age / 1e6 for name, age in commander.parts.pairer.ages_ns(now_ns).items()}
    counts = counters(commander, worker, others)
    return PolicyStatus(
        header=Header(stamp=to_time(now_ns), frame_id=parameters.frame_id),
        lifecycle_state=lifecycle_state,
        goal_active=goal is not None,
        instruction=goal.instruction if goal else '',
        epoch=commander.session.epoch,
        hold=to_hold(hold),
        execution_mode=parameters.execution_mode,
        steps=commander.steps,
        inferences=worker.counts().get('inferences', 0),
        inference_p50_ms=finite_or_zero(latency.p50_ms),
        inference_p95_ms=finite_or_zero(latency.p95_ms),
        tokens_kept_mean=finite_or_zero(worker.tokens_kept.summary().mean_ms),
        tokens_total=last.chunk.tokens_total if last else 0,
        camera_spread_ms=last.pair.spread_ns / 1e6 if last else 0.0,
        camera_names=list(streams.cameras),
        camera_ages_ms=[ages_ms.get(camera, math.inf) for camera in streams.cameras],
        state_age_ms=max((ages_ms.get(source, 0.0) for source in streams.states), default=0.0),
        counter_names=list(counts),
        counter_values=list(counts.values()),
    )


def make_diagnostics(
    name: str, status: PolicyStatus, hardware_id: str, chunk_ms: float,
    shadow: ShadowSummary | None = None, trouble: Hold | None = None,
    others: Mapping[str, str] = MappingProxyType({}),
) -> DiagnosticArray:
    """Return /diagnostics: an entry each for commands, inference, troubles and the shadow.

    chunk_ms: how long the robot can go on with one chunk. shadow: None if there is none.
    trouble: why no answer of the policy can be expected. others: entry -> what else is wrong,
    '' for nothing.
    """
    code = HoldReason(status.hold.code)
    if code in _CALM:
        level, message = DiagnosticStatus.OK, status.hold.text
    elif code is HoldReason.ESTOP:
        level, message = DiagnosticStatus.WARN, status.hold.text
    else:
        level, message = DiagnosticStatus.ERROR, status.hold.text
    commands = DiagnosticStatus(
        level=level, name=f'{name}: commands', message=message, hardware_id=hardware_id)
    commands.values = [KeyValue(key=key, value=str(value)) for key, value in (
        ('hold reason', code.name), ('stream', status.hold.stream),
        *((f'{camera} age ms', f'{age_ms:.1f}') for camera, age_ms in zip(
            status.camera_names, status.camera_ages_ms, strict=True)),
        ('state age ms', f'{status.state_age_ms:.1f}'),
        ('camera spread ms', f'{status.camera_spread_ms:.1f}'),
        *zip(status.counter_names, map(str, status.counter_values), strict=True),
    )]
    slow = status.inference_p95_ms > chunk_ms
    if trouble is not None:
        level, message = DiagnosticStatus.ERROR, trouble.text
    elif slow:
        level, message = DiagnosticStatus.WARN, 'Inference takes longer than a chunk lasts.'
    else:
        level, message = DiagnosticStatus.OK, 'Inference keeps up.'
    inference = DiagnosticStatus(
        level=level, name=f'{name}: inference', message=message, hardware_id=hardware_id)
    kept = status.tokens_kept_mean / status.tokens_total if status.tokens_total else 1.0
    inference.values = [KeyValue(key=key, value=value) for key, value in (
        ('inferences', str(status.inferences)),
        ('p50 ms', f'{status.inference_p50_ms:.1f}'),
        ('p95 ms', f'{status.inference_p95_ms:.1f}'),
        ('tokens kept', f'{status.tokens_kept_mean:.1f} of {status.tokens_total}'),
        ('kept ratio', f'{kept:.3f}'),
        ('execution mode', status.execution_mode),
    )]
    entries = [commands, inference]
    entries += [
        DiagnosticStatus(
            level=DiagnosticStatus.ERROR, name=f'{name}: {what}', hardware_id=hardware_id,
            message=f'{wrong[0].upper()}{wrong[1:]}')
        for what, wrong in others.items() if wrong]
    if shadow is not None:
        entries.append(DiagnosticStatus(
            level=DiagnosticStatus.OK, name=f'{name}{SHADOW_ENTRY}', message=shadow.text,
            hardware_id=hardware_id,
            values=[KeyValue(key=key, value=value) for key, value in shadow.figures()]))
    return DiagnosticArray(header=status.header, status=entries)


def idle_diagnostics(name: str, state: str, refused: str, now_ns: int) -> DiagnosticArray:
    """Return /diagnostics of a node without a policy; refused: why it could not configure."""
    entry = DiagnosticStatus(
        level=DiagnosticStatus.OK, name=f'{name}: commands',
        message='The node has been shut down.' if state == 'finalized' else
        f'The node is {state}; configure and activate it to move.')
    if refused:
        entry.level, entry.message = DiagnosticStatus.ERROR, f'configure refused: {refused}'
    entry.values = [KeyValue(key='lifecycle state', value=state)]
    return DiagnosticArray(header=Header(stamp=to_time(now_ns)), status=[entry])


class PolicyReports:
    """Publishers of all but commands; they live as long as the node."""

    def __init__(self, node: Node):
        self._node = node
        self.chunks = node.create_publisher(ActionChunk, 'action_chunk', qos.event_output())
        self.selections = node.create_publisher(
            TokenSelection, 'token_selection', qos.event_output())
        self.status = node.create_publisher(PolicyStatus, 'policy_status', qos.event_output())
        self.info = node.create_publisher(PolicyInfo, 'policy_info', qos.latched())
        self.diagnostics = node.create_publisher(
            DiagnosticArray, '/diagnostics', qos.event_output())

    def publish_result(self, result: Result, period_ns: int, first_camera: str) -> None:
        """Publish one inference (worker thread); first_camera: whose stamp the chunk bears."""
        chunk, goal = result.chunk, result.goal
        for selection in chunk.selections:
            self.selections.publish(messages.to_selection(
                selection, chunk, messages.to_header(result.headers[selection.camera]),
                goal.instruction))
        self.chunks.publish(messages.to_chunk(
            chunk, messages.to_header(result.headers[first_camera]), goal.instruction,
            result.sequence, goal.epoch, period_ns, result.observation_age_ns,
            result.pair.spread_ns,
        ))

    def publish_status(self, status: PolicyStatus) -> None:
        """Publish the state of the node (any thread)."""
        self.status.publish(status)

    def publish_diagnostics(
        self, status: PolicyStatus, checkpoint: str, chunk_ms: float,
        shadow: ShadowSummary | None, trouble: Hold | None, others: Mapping[str, str],
    ) -> None:
        """Publish /diagnostics (executor thread); arguments as of `make_diagnostics`."""
        self.diagnostics.publish(make_diagnostics(
            self._node.get_fully_qualified_name(), status, checkpoint, chunk_ms, shadow, trouble,
            others))

    def publish_idle_diagnostics(self, state: str, refused: str, now_ns: int) -> None:
        """Publish /diagnostics without a policy; arguments as of `idle_diagnostics`."""
        self.diagnostics.publish(idle_diagnostics(
            self._node.get_fully_qualified_name(), state, refused, now_ns))

    def publish_info(
        self, description: PolicyDescription, parameters: PolicyParameters, now_ns: int
    ) -> None:
        """Publish the latched self-description (executor thread)."""
        self.info.publish(messages.to_info(
            description, parameters.action_spec(), parameters.execution_mode,
            parameters.camera_transforms, resolved(self._node, parameters.robot),
            parameters.period_ns, now_ns,
        ))


def fill_feedback(
    feedback: ExecuteInstruction.Feedback, steps: int, hold: Hold, last: Result | None
) -> None:
    """Tell a goal's client how far it is (goals thread). last: the newest inference, if any."""
    feedback.step = steps
    feedback.hold = messages.to_hold(hold)
    if last is not None:
        feedback.inference_ms = float(sum(last.chunk.stage_ms.values()))
        feedback.tokens_kept = last.chunk.tokens_kept
        feedback.tokens_total = last.chunk.tokens_total
        feedback.camera_spread_ms = last.pair.spread_ns / 1e6
