"""Judges one trial as safe, unsafe, crash or hang, by the promises alone.

Imports nothing of the node: it integrates what was sent on an ideal robot, looks up what had
arrived by then, and knows nothing of how the promises are kept.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from vla_policy_node.bench.faults.oracle_findings import (
    CRASH,
    HANG,
    UNSAFE,
    BrokenPromise,
    actions,
    in_force,
    unsafe,
)
from vla_policy_node.bench.faults.oracle_motion import SLACK, finite, limits, workspace
from vla_policy_node.bench.faults.records import (
    CAMERA_STREAMS,
    STREAMS,
    Promise,
    Sample,
    SampleVerdict,
    Sent,
    Trial,
)

_STAMP_SLACK_S = 2e-6  # of nanoseconds in a float of seconds since 1970


def judge(trial: Trial) -> list[BrokenPromise]:
    """Return every broken promise of a trial, none if all were kept."""
    findings = [BrokenPromise(CRASH, 'ended', math.nan, text) for text in trial.ends]
    findings += [BrokenPromise(HANG, 'stuck', math.nan, text) for text in trial.stuck]
    findings += [BrokenPromise(UNSAFE, 'gap', math.nan, text) for text in trial.silences]
    for rule in (_goals, finite, limits, workspace, _plan, _inputs, _observations, _gaps,
                 _answers, _recovery):
        findings += rule(trial)
    return findings


@dataclass(frozen=True)
class StopLatency:
    """How long a moving robot went on after a stop was asked for.

    latency_s: to the first hold, inf if none came. excused_s: what the machine had to do with it.
    """

    kind: str
    latency_s: float
    excused_s: float = 0.0


def stop_latencies(trial: Trial) -> tuple[StopLatency, ...]:
    """Return the latency of each stop of a motion; one of a robot that holds has none."""
    latencies = []
    for stop in trial.stops:
        before = next((s for s in reversed(trial.sent) if s.at_s < stop.requested_s), None)
        if before is None or before.hold:
            continue
        first_s = next((sent.at_s for sent in trial.sent
                        if sent.hold and sent.at_s >= stop.requested_s), math.inf)
        latencies.append(StopLatency(stop.kind, first_s - stop.requested_s,
                                     _slack_s(trial, stop.requested_s, first_s)))
    return tuple(latencies)


# --- who may move ---

def _goals(trial: Trial) -> Iterator[BrokenPromise]:
    """No action without a goal, of another goal, or after an acknowledged stop."""
    goals = {goal.epoch: goal for goal in trial.goals}
    newest = -1
    for sent in trial.sent:
        if not sent.hold:
            goal = goals.get(sent.epoch)
            if goal is None:
                yield unsafe('no_goal', sent, f'an action of epoch {sent.epoch}, no goal has it')
            elif sent.at_s < goal.from_s:
                yield unsafe('no_goal', sent, 'an action before its goal was asked for')
            elif sent.at_s > goal.until_s:
                late_s = sent.at_s - goal.until_s
                if late_s > _slack_s(trial, goal.until_s, sent.at_s):
                    yield unsafe('stopped', sent,
                                  f'an action {late_s:.3f} s after its stop was acknowledged')
            if sent.epoch < newest:
                yield unsafe('stopped', sent, 'an action of an ended goal after its last hold')
        newest = max(newest, sent.epoch)


# --- what it was made from ---

def _plan(trial: Trial) -> Iterator[BrokenPromise]:
    """No element twice, none of an old observation, each at its own time."""
    seen = set()
    for sent in actions(trial):
        element = (sent.epoch, sent.observation_stamp_s, sent.chunk_step)
        if element in seen:
            yield unsafe('twice', sent, f'element {sent.chunk_step} of one chunk was sent twice')
        seen.add(element)
        promises = in_force(trial, sent.at_s)
        period_s = max((p.period_s for p in promises), default=math.inf)
        chunk_s = max((p.chunk_s for p in promises), default=math.inf)
        age_s = sent.stamp_s - sent.observation_stamp_s
        if age_s > chunk_s + period_s:
            yield unsafe('old_observation', sent, f'made from an observation {age_s:.3f} s old')
        due_s = sent.observation_stamp_s + (sent.chunk_step + 1) * period_s
        if promises and abs(sent.target_time_s - due_s) > period_s:
            yield unsafe('wrong_element', sent, f'element {sent.chunk_step} was due at another '
                          f'time, {sent.target_time_s - due_s:+.3f} s away')
        ahead_s = sent.target_time_s - sent.stamp_s
        if promises and not -period_s <= ahead_s <= 3 * period_s:
            yield unsafe('wrong_target', sent, f'for the time {ahead_s:+.3f} s from now')


def _inputs(trial: Trial) -> Iterator[BrokenPromise]:
    """Each stream had a good sample not long ago."""
    if not trial.samples:
        return
    streams = {stream: _Stream(trial, stream) for stream in STREAMS}
    for sent in actions(trial):
        promises = in_force(trial, sent.at_s)
        for name, stream in streams.items():
            since_s, faults = stream.since_good(sent)
            # What is too old is looked at once a period.
            allowed_s = max((p.allowance_s.get(fault, p.max_age_s) + p.period_s
                             for p in promises for fault in (*faults, '')), default=math.inf)
            slack_s = _slack_s(trial, sent.at_s - since_s, sent.at_s)
            if since_s > allowed_s + slack_s + _STAMP_SLACK_S:
                what = ', '.join(sorted(faults)) or 'nothing arrived'
                yield unsafe('input', sent,
                              f'{name}: the last good sample was {since_s:.3f} s ago ({what})')


class _Stream:
    """The samples of one stream in the order of their arrival."""

    def __init__(self, trial: Trial, name: str):
        self._trial = trial
        self._samples = sorted((s for s in trial.samples if s.stream == name),
                               key=lambda sample: sample.arrived_s)
        self._arrived = [sample.arrived_s for sample in self._samples]

    def since_good(self, sent: Sent) -> tuple[float, set[str]]:
        """Seconds since the last usable arrival before a command, and the faults since then."""
        faults = set()
        for index in range(bisect_right(self._arrived, sent.at_s) - 1, -1, -1):
            if self._is_usable(index, sent):
                return self._passed_s(self._samples[index], sent), faults
            faults.add(self._samples[index].fault or 'stamp')
        return math.inf, faults

    def _passed_s(self, sample: Sample, sent: Sent) -> float:
        """Seconds from an arrival to a command."""
        passed_s = sent.at_s - sample.arrived_s
        if self._trial.simulated and sample.clock_s <= sent.stamp_s:
            return min(passed_s, sent.stamp_s - sample.clock_s)
        return passed_s

    def _is_usable(self, index: int, sent: Sent) -> bool:
        """Whether a sample says what is true now: its content, and a stamp of now.

        Of now by the node's clock when it arrived, or when the command was sent.
        """
        sample = self._samples[index]
        if sample.verdict is SampleVerdict.BAD:
            return False
        promises = in_force(self._trial, sample.arrived_s)
        return not promises or any(
            -p.future_tolerance_s - _STAMP_SLACK_S <= clock_s - sample.stamp_s
            <= p.max_age_s + _STAMP_SLACK_S
            for p in promises for clock_s in (sample.clock_s, sent.stamp_s))


def _observations(trial: Trial) -> Iterator[BrokenPromise]:
    """The observation behind an action was delivered, whole, and with good partners."""
    if not trial.samples:
        return
    by_stream = {stream: sorted((s for s in trial.samples if s.stream == stream),
                                key=lambda sample: sample.stamp_s) for stream in STREAMS}
    stamps = {stream: [s.stamp_s for s in samples] for stream, samples in by_stream.items()}
    checked: dict[float, str] = {}
    for sent in actions(trial):
        promises = in_force(trial, sent.at_s)
        if not promises:
            continue
        stamp_s = sent.observation_stamp_s
        if stamp_s not in checked:
            checked[stamp_s] = _lacking(stamp_s, by_stream, stamps, promises, sent.at_s)
        if checked[stamp_s]:
            yield unsafe('observation', sent, checked[stamp_s])


def _lacking(stamp_s: float, by_stream: dict, stamps: dict, promises: list[Promise],
             at_s: float) -> str:
    for stream in STREAMS:
        if stream == STREAMS[0]:
            tolerance_s = 0.0
        elif stream in CAMERA_STREAMS:
            tolerance_s = max(p.max_spread_s for p in promises)
        else:
            tolerance_s = max(p.state_tolerance_s for p in promises)
        tolerance_s += _STAMP_SLACK_S
        low = bisect_right(stamps[stream], stamp_s - tolerance_s)
        near = [s for s in by_stream[stream][low:bisect_right(stamps[stream],
                                                              stamp_s + tolerance_s)]
                if s.arrived_s <= at_s]
        tolerated = set().union(*(p.tolerated for p in promises))
        if not any(s.verdict is not SampleVerdict.BAD or s.fault in tolerated for s in near):
            faults = ', '.join(sorted({s.fault for s in near})) or 'nothing with that stamp'
            return f'made from {stream} that cannot be used ({faults})'
    return ''


# --- that it goes on ---

def _gaps(trial: Trial) -> Iterator[BrokenPromise]:
    """While active something is said every two control periods."""
    times = [sent.at_s for sent in trial.sent]
    for span in trial.active:
        inside = [t for t in times if span.from_s <= t <= span.until_s]
        until_s = [span.until_s] if math.isfinite(span.until_s) else []
        for before, after in zip([span.from_s, *inside], [*inside, *until_s], strict=False):
            allowed = [p.gap_periods * p.period_s
                       for p in (*in_force(trial, before), *in_force(trial, after))]
            slack_s = _slack_s(trial, before, after)
            if allowed and after - before > max(allowed) + slack_s + SLACK:
                yield BrokenPromise(UNSAFE, 'gap', before,
                                    f'no command for {after - before:.3f} s while active')


def _answers(trial: Trial) -> Iterator[BrokenPromise]:
    """Services answer in time."""
    for answer in trial.answers:
        if answer.answered_s is None:
            yield BrokenPromise(HANG, 'no_answer', answer.asked_s, f'{answer.service}: no answer')
        elif answer.answered_s - answer.asked_s > answer.bound_s + _slack_s(
                trial, answer.asked_s, answer.answered_s):
            took_s = answer.answered_s - answer.asked_s
            yield BrokenPromise(HANG, 'late_answer', answer.asked_s, f'{answer.service}: answered '
                                f'after {took_s:.3f} s, {answer.bound_s:g} s at most')


def _recovery(trial: Trial) -> Iterator[BrokenPromise]:
    """Standing still for ever is no way to be safe: once all is well again the robot moves."""
    if trial.recovers_from_s is None:
        return
    first_s = next((s.at_s for s in trial.sent
                    if not s.hold and s.at_s >= trial.recovers_from_s), math.inf)
    until_s = trial.recovers_from_s + trial.recovers_within_s
    if first_s > until_s + _slack_s(trial, trial.recovers_from_s, until_s):
        reasons = sorted({s.reason for s in trial.sent if s.at_s >= trial.recovers_from_s})
        yield BrokenPromise(
            HANG, 'never_recovers', trial.recovers_from_s,
            f'all was well again, but nothing moved for {trial.recovers_within_s:g} s; '
            f'hold reasons {reasons}')


# --- small things ---

def _slack_s(trial: Trial, from_s: float, until_s: float) -> float:
    """How much longer something may take: the way to the receiver, and waiting for a CPU."""
    if not trial.starved:
        return trial.receive_slack_s
    first = max(0, bisect_right(trial.starved, (from_s, math.inf)) - 1)
    last = min(len(trial.starved) - 1, bisect_right(trial.starved, (until_s, math.inf)))
    return trial.receive_slack_s + trial.starved[last][1] - trial.starved[first][1]
