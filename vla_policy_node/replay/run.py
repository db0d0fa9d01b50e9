"""Runs one policy through one bag with the node's pairer, worker, executor and commander."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from vla_policy_node.control.end_effector import EndEffectorMover
from vla_policy_node.loop.control_loop import ControlLoop
from vla_policy_node.loop.counters import counters
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.loop.worker import PolicyWorker
from vla_policy_node.policy.interface import Policy
from vla_policy_node.policy.warm_up import warm_up
from vla_policy_node.replay.bag import Bag
from vla_policy_node.replay.bag_summary import BagSummary
from vla_policy_node.replay.timeline import PacedPolicy, Timeline
from vla_policy_node.replay.topics import BagTopics
from vla_policy_node.replay.trace import Trace
from vla_policy_node.replay.unmeasured import UnmeasuredMover

_MOST_PROBLEMS = 20


def run_policy(
    bag: Bag, topics: BagTopics, summary: BagSummary, parameters: PolicyParameters, policy: Policy,
    label: str, latency_ns: int, on_inference: Callable[[int], None] = lambda stamp_ns: None,
) -> Trace:
    """Return the trace of the run; two calls differ in wall times only.

    latency_ns: how much of the bag's time an inference takes. on_inference: called with each
    stamp. Raises BagError for a bag that cannot be read to its end.
    """
    spec = parameters.action_spec()
    # Commands do not move the arm of a recording, and the bag says when its goals end.
    topics = topics.needed_by({label: policy.description.spec})
    parts = replace(parameters, max_tracking_error_m=0.0, input_timeout_s=0.0).make_parts(
        streams=topics.streams,
        end_effector=EndEffectorMover if topics.streams.pose else UnmeasuredMover)
    paced = PacedPolicy(policy, latency_ns)
    loop = ControlLoop(paced, parts, parameters.period_ns)
    trace = Trace(label, spec, parameters.period_ns, parameters.execution_mode,
                  policy.description)
    by_timer = parameters.pacing == 'timer'
    timeline = paced.timeline = Timeline(
        bag, topics, summary, loop.commander, parameters.period_ns, by_timer,
        lambda time_ns, command: trace.commands.append((time_ns, command)))

    def keep(result) -> None:
        trace.add(result)
        on_inference(result.pair.stamp_ns)

    reported = logging.Logger(label)  # of this run alone
    reported.addHandler(_Problems(trace.problems))
    worker = PolicyWorker(
        loop, topics.streams, lambda: timeline.now_ns, keep,
        (lambda pair: None) if by_timer else timeline.command_for,
        logger=reported,
    )
    warm_up(policy, parameters.warmup_inferences)
    while timeline.step():
        while worker.work_once(0.0):  # what came during an inference is next, at once
            pass
    trace.counts = counters(loop.commander, worker, timeline.counts)
    pairer = loop.commander.parts.pairer
    trace.refusals, trace.remarks = timeline.refusals, worker.state.remarks()
    trace.held, trace.ages_ns = pairer.health(timeline.now_ns), pairer.ages_ns(timeline.now_ns)
    if trace.inferences:  # otherwise whoever called says the one that counts
        for problem in trace.problems:
            logging.getLogger(__name__).error(problem)
    return trace


class _Problems(logging.Handler):
    """Keeps what the worker reports, each text once."""

    def __init__(self, kept: list[str]):
        super().__init__(logging.ERROR)
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a text."""
        text = record.getMessage()
        if text not in self._kept and len(self._kept) < _MOST_PROBLEMS:
            self._kept.append(text)
