"""The interface that every kind of robot motion offers to the commander."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from vla_policy_node.control.hold import HoldError


class RobotWatch(Protocol):
    """What is measured of the robot. Any thread."""

    def observe(self, measured: Any, /) -> None:
        """Take the next measurement of a stream."""
        ...

    def reject(self, error: HoldError, /) -> None:
        """Note that the newest message of the stream in its hold holds no measurement."""
        ...

    def counts(self) -> dict[str, int]:
        """Return what was odd about measurements, by name."""
        ...


class Mover(Protocol):
    """Turns an action into a bounded motion, and knows what was sent and whether it is followed.

    A motion is the command of one control period for everything that an action moves: one cannot
    be sent half. The commander calls all of it under its lock, `measured` and `counts` excepted.

    spec: what the numbers of an action mean. measured_as: what counters call `measured`.
    """

    spec: Any
    period_s: float
    measured_as: str

    @property
    def measured(self) -> RobotWatch:
        """What must be told every measurement."""
        ...

    def follow(self, other: Any, /) -> None:
        """Take over what an earlier mover with other limits knows; the next action begins at rest.

        Call it before anything else.
        """
        ...

    def begin(self) -> None:
        """Start a goal."""
        ...

    def shift(self, by_ns: int) -> None:
        """Follow a clock that was stepped."""
        ...

    def check(self, now_ns: int) -> None:
        """Raise HoldError if what is measured forbids to move."""
        ...

    def plan(self, action: Any, now_ns: int) -> tuple[Any, tuple[str, ...]]:
        """Return the motion to send for an action, and the rules that changed it.

        Raises HoldError for what must not be sent; `rest` must follow then.
        """
        ...

    def sent(self, motion: Any, now_ns: int, target_ns: int) -> None:
        """Note that a motion is sent now, for the period that ends at target_ns."""
        ...

    def rest(self) -> None:
        """Assume that the robot stands still: the next motion begins at rest."""
        ...

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing was sent since `rest`."""
        ...

    def still(self) -> Any:
        """Return the motion that stands still."""
        ...

    def counts(self) -> Mapping[str, int]:
        """Return how often each rule changed a motion, by name (any thread)."""
        ...
