"""Explains in one sentence why no observation in a bag could be used."""

from __future__ import annotations

from collections import Counter

from vla_policy_node.control.hold import Hold, HoldReason
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.replay.topics import BagTopics
from vla_policy_node.replay.trace import Trace

# These say that there is nothing to do or that something else is awaited.
_NO_CAUSE = frozenset({
    HoldReason.NONE, HoldReason.NO_INSTRUCTION, HoldReason.GOAL_FINISHED,
    HoldReason.AWAITING_INFERENCE, HoldReason.CHUNK_EXHAUSTED, HoldReason.INACTIVE})
_TIMES = (HoldReason.CAMERA_SPREAD, HoldReason.INPUT_STALE)


def why_unused(trace: Trace, topics: BagTopics, parameters: PolicyParameters) -> str:
    """Return the sentence.

    What the policy itself refused comes first: all inputs were good until there. Then what held
    the robot in most periods, in the words of what refused the samples if anything did.
    """
    if trace.problems:
        return trace.problems[0].strip().splitlines()[-1].rstrip('.')
    holds = Counter(command.hold for _, command in trace.commands
                    if command.hold.code not in _NO_CAUSE)
    hold = max(holds, key=holds.__getitem__, default=trace.held)
    # What was refused now and then does not make usable samples late.
    refusals = {key: count for key, count in trace.refusals.items() if hold is None or (
        key[0] == hold.stream and hold.code not in _TIMES)}
    if refusals:
        stream, sentence = max(refusals, key=refusals.__getitem__)
        return f'{_place(stream, topics)}: {sentence.rstrip(".")}'
    if hold is None or hold.code in _NO_CAUSE:
        return 'no set of all inputs lies within the time of an instruction'
    return _of_time(hold, trace, topics, parameters)


def _of_time(
    hold: Hold, trace: Trace, topics: BagTopics, parameters: PolicyParameters
) -> str:
    """Return what a hold says, with how far apart the stamps are and what is allowed."""
    place = _place(hold.stream, topics)
    first = topics.streams.cameras[0]
    if hold.code not in _TIMES or not {hold.stream, first} <= trace.ages_ns.keys():
        return f'{place}: {hold.text.rstrip(".")}'
    apart_s = (trace.ages_ns[hold.stream] - trace.ages_ns[first]) / 1e9
    measured = (f'its last stamp is {abs(apart_s):.3g} s {"before" if apart_s > 0 else "after"} '
                f'that of {first}' if hold.stream != first else
                f'its last stamp is {trace.ages_ns[first] / 1e9:.3g} s before the end of the bag')
    limits = {'max_spread_s': parameters.max_spread_s} if hold.code is (
        HoldReason.CAMERA_SPREAD) else {'max_age_s': parameters.max_age_s}
    if hold.code is HoldReason.INPUT_STALE and hold.stream not in topics.streams.cameras:
        limits['state_tolerance_s'] = parameters.state_tolerance_s
    allowed = ' and '.join(f'{name} of {value:g}' for name, value in limits.items())
    sentence = Hold(hold.code, hold.stream).text.rstrip('.')  # figures of the whole bag follow
    return f'{place}: {sentence} ({measured}; --config has a {allowed})'


def _place(stream: str, topics: BagTopics) -> str:
    """Return a stream with its topic."""
    topic = next((topic for topic, name in topics.inputs.items() if name == stream), '')
    return f'{stream} ({topic})' if topic else stream
