"""Fields of a parameter dataclass: default, description, unit and bounds. Knows no ROS."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spec:
    """What one parameter may be."""

    description: str
    unit: str = ''
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    tunable: bool = False


def parameter(
    default: Any,
    description: str,
    unit: str = '',
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    tunable: bool = False,
) -> Any:
    """Return a dataclass field for a parameter.

    low, high: inclusive bounds, also of each element of a list. tunable: may change while the
    node is configured.
    """
    spec = Spec(description, unit, low, high, tuple(choices), tunable)
    factory = (lambda: default) if isinstance(default, (list, tuple)) else MISSING
    if factory is MISSING:
        return field(default=default, metadata={'spec': spec})
    return field(default_factory=factory, metadata={'spec': spec})
