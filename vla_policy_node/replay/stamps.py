"""Which time of a bag's samples to use: their stamps, or when they were recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import islice
from statistics import median

from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.topics import BagTopics
from vla_policy_node.wire.cdr import MessageError, with_stamp, with_transform_stamps
from vla_policy_node.wire.streams import is_static, source_of

# Recording times and stamps that are this far apart come from different clocks.
OTHER_CLOCK_S = 10.0
_FIRST = 9  # messages that say how late a topic was recorded
HEADER, LOG = STAMPS = ('header', 'log')


def samples(bag: Bag, topics: BagTopics) -> Iterator[tuple[str, int, bytes]]:
    """Yield topic, time of recording (ns) and message of the inputs, stamped as they count."""
    for topic, time_ns, raw in bag.messages(topics.inputs):
        is_transforms = source_of(topics.inputs[topic]) in topics.streams.transforms
        yield topic, time_ns, stamped(raw, time_ns, is_transforms) if topics.by_log else raw


def stamped(raw: bytes, time_ns: int, is_transforms: bool = False) -> bytes:
    """Return a message with its time of recording as stamp, as it is if there is no place."""
    try:
        return (with_transform_stamps if is_transforms else with_stamp)(raw, time_ns)
    except MessageError:
        return raw


def require_stamps(bag: Bag, topics: BagTopics) -> None:
    """Raise BagError if all samples of an input have a stamp of zero: nothing can be paired."""
    if topics.by_log:
        return
    unstamped = [topic for topic, stream in topics.inputs.items()
                 if not is_static(stream) and is_unstamped(bag, topics, topic)]
    if unstamped:
        raise BagError(
            f"The bag '{bag.path}' has no stamps on {', '.join(unstamped)}: all are zero; let the "
            'publisher stamp them, or take the times of recording with '
            f'`vla replay --stamps {LOG}`.')


def is_unstamped(bag: Bag, topics: BagTopics, topic: str) -> bool:
    """Return whether all stamps are zero; looks no further than to the first one that is not."""
    found = False
    with closing(bag.messages([topic])) as messages:
        for _, _, raw in messages:
            try:
                if topics.streams.stamp_of(topics.inputs[topic], raw):
                    return False
                found = True
            except MessageError:
                continue  # the replay counts it
    return found


def is_of_other_clock(bag: Bag, topics: BagTopics, topic: str) -> bool:
    """Return whether the stamps of an input are of another clock than the first camera's."""
    if topics.by_log:
        return False
    first = topics.streams.cameras[0]
    camera = next(name for name, stream in topics.inputs.items() if stream == first)
    return abs(_delay_s(bag, topics, topic) - _delay_s(bag, topics, camera)) > OTHER_CLOCK_S


def _delay_s(bag: Bag, topics: BagTopics, topic: str) -> float:
    """Return how long after their stamps the first messages were recorded, 0.0 if unknown."""
    found = []
    with closing(bag.messages([topic])) as messages:
        for _, time_ns, raw in islice(messages, _FIRST):
            with suppress(MessageError):  # the replay counts it
                found.append(time_ns - topics.streams.stamp_of(topics.inputs[topic], raw))
    return median(found) / 1e9 if found else 0.0
