"""Timing faults: stamps, clocks, late and lost messages."""

import numpy as np

from vla_policy_node.bench.faults.kinds import kind, on_streams, pick, some_streams
from vla_policy_node.bench.faults.messages import Message
from vla_policy_node.bench.faults.records import SampleVerdict, TimeSpan
from vla_policy_node.bench.faults.trial import Fault, Simulation
from vla_policy_node.bench.faults.world import SECOND

Rng = np.random.Generator


# --- stamps ---

@kind('stamp_delay')
def stamp_delay(rng: Rng, span: TimeSpan) -> Fault:
    """Transport that takes too long; the stamps are true."""
    delay_s = rng.uniform(0.05, 1.5)
    return Fault('stamp_delay', span, on_streams(
        some_streams(rng),
        lambda m: m.but('delay', SampleVerdict.OPEN, arrives_s=m.arrives_s + delay_s)),
        lingers_s=delay_s)


@kind('stamp_shift')
def stamp_shift(rng: Rng, span: TimeSpan) -> Fault:
    """A source whose clock is ahead or behind."""
    shift_ns = int(pick(rng, (-60.0, -5.0, -1.0, -0.4, 0.3, 1.0, 5.0, 60.0)) * SECOND)
    return Fault('stamp_shift', span, on_streams(
        some_streams(rng), lambda m: m.stamped(m.stamp_ns + shift_ns, 'shift')))


@kind('stamp_negative')
def stamp_negative(rng: Rng, span: TimeSpan) -> Fault:
    """Stamps before 1970, at the ends of the field, and zero."""
    stamp_ns = pick(rng, (-1, -SECOND, -2**31 * SECOND, (2**31 - 1) * SECOND + 999_999_999, 0))
    return Fault('stamp_negative', span, on_streams(
        some_streams(rng), lambda m: m.stamped(stamp_ns, 'negative')))


@kind('stamp_frozen')
def stamp_frozen(rng: Rng, span: TimeSpan) -> Fault:
    """The same stamp on every message."""
    first: dict[str, int] = {}
    return Fault('stamp_frozen', span, on_streams(some_streams(rng), lambda m: (
        m.stamped(first[m.stream], 'frozen_stamp') if m.stream in first
        else first.setdefault(m.stream, m.stamp_ns) and m)))


@kind('stamp_duplicates')
def stamp_duplicates(rng: Rng, span: TimeSpan) -> Fault:
    """Every message several times."""
    copies = int(rng.integers(2, 6))

    def alter(message: Message) -> list[Message]:
        return [message, *(
            message.but('duplicate', SampleVerdict.OPEN) for _ in range(copies - 1))]

    return Fault('stamp_duplicates', span, alter)


@kind('stamp_reorder')
def stamp_reorder(rng: Rng, span: TimeSpan) -> Fault:
    """Messages that overtake each other."""
    widest_s = rng.uniform(0.02, 0.3)
    return Fault('stamp_reorder', span, on_streams(some_streams(rng), lambda m: m.but(
        'reorder', SampleVerdict.OPEN, arrives_s=m.arrives_s + rng.uniform(0.0, widest_s))),
        lingers_s=widest_s)


@kind('stamp_drift')
def stamp_drift(rng: Rng, span: TimeSpan) -> Fault:
    """A source whose clock runs too fast or too slow."""
    rate = pick(rng, (-0.5, -0.1, 0.02, 0.2, 1.0))
    return Fault('stamp_drift', span, on_streams(some_streams(rng), lambda m: m.stamped(
        m.stamp_ns + int(rate * (m.captured_s - span.from_s) * SECOND), 'drift',
        SampleVerdict.OPEN)))


@kind('stamp_jumps')
def stamp_jumps(rng: Rng, span: TimeSpan) -> Fault:
    """Stamps that leap about."""
    widest_s = pick(rng, (0.2, 2.0, 60.0))
    return Fault('stamp_jumps', span, on_streams(some_streams(rng), lambda m: m.stamped(
        m.stamp_ns + int(rng.uniform(-widest_s, widest_s) * SECOND), 'jumps', SampleVerdict.OPEN)))


# --- clocks ---

@kind('clock_step_everywhere')
def clock_step_everywhere(rng: Rng, span: TimeSpan) -> Fault:
    """The clock of the machine is set, that of node and sources alike, and back again."""
    # Not by whole periods: a new stamp is never an old one again.
    step_s = pick(rng, (-60.0, -5.0, -0.5, 0.2, 0.5, 5.0, 60.0)) * rng.uniform(0.99, 1.01)

    def step(simulation: Simulation, by_s: float) -> None:
        simulation.node_clock.set(simulation.now_s, by_s)
        simulation.source_clock.set(simulation.now_s, by_s)

    return Fault('clock_step_everywhere', span, begin=lambda s: step(s, step_s),
                 end=lambda s: step(s, -step_s))


@kind('clock_step_node')
def clock_step_node(rng: Rng, span: TimeSpan) -> Fault:
    """Only the clock of the node is set."""
    step_s = pick(rng, (-60.0, -5.0, -0.5, 0.5, 5.0, 60.0))
    return Fault('clock_step_node', span,
                 begin=lambda s: s.node_clock.set(s.now_s, step_s),
                 end=lambda s: s.node_clock.set(s.now_s, -step_s))


@kind('clock_stops')
def clock_stops(rng: Rng, span: TimeSpan) -> Fault:
    """A /clock that stands still, for the node alone or for everybody, then leaps or goes on."""
    alone, leaps = rng.random() < 0.5, rng.random() < 0.5

    def set_rate(simulation: Simulation, rate: float) -> None:
        lost_s = span.until_s - span.from_s if rate and (leaps or alone) else 0.0
        simulation.node_clock.set(simulation.now_s, lost_s, rate)
        if not alone:
            simulation.source_clock.set(simulation.now_s, lost_s, rate)

    return Fault('clock_stops', span, begin=lambda s: set_rate(s, 0.0),
                 end=lambda s: set_rate(s, 1.0))


@kind('clock_negative')
def clock_negative(rng: Rng, span: TimeSpan) -> Fault:
    """A /clock before its beginning."""
    def step(simulation: Simulation, sign: int) -> None:
        for clock in (simulation.node_clock, simulation.source_clock):
            clock.set(simulation.now_s, sign * (simulation.setup.clock_start_s + 100.0))

    return Fault('clock_negative', span, begin=lambda s: step(s, -1), end=lambda s: step(s, 1))


@kind('clock_rate')
def clock_rate(rng: Rng, span: TimeSpan) -> Fault:
    """Simulated time that runs slower or faster than the wall."""
    rate = pick(rng, (0.25, 0.5, 1.5, 3.0))

    def set_rate(simulation: Simulation, value: float) -> None:
        for clock in (simulation.node_clock, simulation.source_clock):
            clock.set(simulation.now_s, 0.0, value)

    return Fault('clock_rate', span, begin=lambda s: set_rate(s, rate),
                 end=lambda s: set_rate(s, 1.0))


# --- losses ---

@kind('lost_stream')
def lost_stream(rng: Rng, span: TimeSpan) -> Fault:
    """Nothing more from some streams."""
    return Fault('lost_stream', span, on_streams(some_streams(rng), lambda m: None))


@kind('lost_some')
def lost_some(rng: Rng, span: TimeSpan) -> Fault:
    """Most messages never arrive."""
    share = rng.uniform(0.3, 0.97)
    return Fault('lost_some', span, on_streams(
        some_streams(rng), lambda m: None if rng.random() < share else m))


@kind('lost_in_bursts')
def lost_in_bursts(rng: Rng, span: TimeSpan) -> Fault:
    """A stream that comes and goes, and arrives all at once when it comes."""
    burst_s = rng.uniform(0.1, 0.6)
    return Fault('lost_in_bursts', span, on_streams(some_streams(rng), lambda m: m.but(
        'burst', SampleVerdict.OPEN,
        arrives_s=max(m.arrives_s, span.from_s + burst_s * np.ceil(
            (m.captured_s - span.from_s) / burst_s)))), lingers_s=burst_s)
