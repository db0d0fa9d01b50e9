"""What a trial is judged by: broken promises, and what was promised when."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from vla_policy_node.bench.faults.records import Promise, Sent, Trial

UNSAFE, CRASH, HANG = 'unsafe', 'crash', 'hang'


@dataclass(frozen=True)
class BrokenPromise:
    """One broken promise. category: UNSAFE, CRASH or HANG; rule: its name."""

    category: str
    rule: str
    at_s: float
    text: str


def actions(trial: Trial) -> Iterator[Sent]:
    """Return all that was sent but holds."""
    return (sent for sent in trial.sent if not sent.hold)


def in_force(trial: Trial, at_s: float) -> list[Promise]:
    """Return the promises of a time; around a change, those before and after it."""
    return [promise for promise in trial.promises if promise.span.holds(at_s)]


def is_finite(sent: Sent) -> bool:
    """Whether a motion is one of numbers."""
    return all(map(math.isfinite, (*sent.translation_m, *sent.rotation_rad)))


def unsafe(rule: str, sent: Sent, text: str) -> BrokenPromise:
    """Return what a command broke."""
    return BrokenPromise(UNSAFE, rule, sent.at_s, text)
