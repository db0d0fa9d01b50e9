"""Registry of faults: kind -> function that draws one."""

from collections.abc import Callable, Iterable

import numpy as np

from vla_policy_node.bench.faults.messages import Message
from vla_policy_node.bench.faults.records import CAMERA_STREAMS, STREAMS, TimeSpan
from vla_policy_node.bench.faults.trial import Fault

Maker = Callable[[np.random.Generator, TimeSpan], Fault]
# A pose with a wrong time is wrong by what the arm does meanwhile, near a wall not much.
MISTIMED_M = 0.005
KINDS: dict[str, Maker] = {}


def kind(name: str) -> Callable[[Maker], Maker]:
    """Register a maker under a name, 'group_what'."""
    def register(maker: Maker) -> Maker:
        def make(rng: np.random.Generator, span: TimeSpan) -> Fault:
            fault = maker(rng, span)
            if name.startswith(('stamp', 'clock')):
                fault.promise.setdefault('workspace_slack_m', MISTIMED_M)
            return fault

        KINDS[name] = make
        return maker

    return register


def pick(rng: np.random.Generator, options: tuple):
    """Return one of several."""
    return options[int(rng.integers(len(options)))]


def some_streams(rng: np.random.Generator) -> tuple[str, ...]:
    """Return one stream mostly, now and then the cameras, the states or all."""
    return pick(rng, (*((stream,) for stream in STREAMS), CAMERA_STREAMS, STREAMS[2:], STREAMS))


def on_streams(streams: Iterable[str], alter: Callable[[Message], Message | None]) -> Callable:
    """Return an alteration of the messages of some streams; None loses the message."""
    streams = frozenset(streams)

    def alter_some(message: Message) -> list[Message]:
        if message.stream not in streams:
            return [message]
        altered = alter(message)
        return [] if altered is None else [altered]

    return alter_some
