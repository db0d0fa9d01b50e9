"""Fields of a parameter dataclass: default, description, unit and bounds. Without ROS."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from vla_policy_node.common.plain_yaml import parse_plain_yaml


@dataclass(frozen=True)
class Spec:
    """What one parameter may be."""

    description: str
    unit: str = ''
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    tunable: bool = False
    part: str = ''


def parameter(
    default: Any,
    description: str,
    unit: str = '',
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    tunable: bool = False,
    part: str = '',
) -> Any:
    """Return a dataclass field for a parameter.

    low, high: inclusive bounds, also of each element of a list. tunable: may change while the
    node is configured. part: what must then be made anew, see the class; all else runs on.
    """
    spec = Spec(description, unit, low, high, tuple(choices), tunable, part)
    factory = (lambda: default) if isinstance(default, (list, tuple)) else MISSING
    if factory is MISSING:
        return field(default=default, metadata={'spec': spec})
    return field(default_factory=factory, metadata={'spec': spec})


def as_declared(default: Any, value: object) -> object:
    """Return a value in the type of its parameter's default if it means the same, else as it is.

    YAML tells 1 from 1.0, an empty list has no type, and `ros2 param set` sends 1e-3 and a list
    of whole and other numbers as text.
    """
    is_list = isinstance(default, (list, tuple))
    kind = type(default[0]) if is_list and default else type(default)
    if kind is float and isinstance(value, str):
        value = _number_or_list(value)
    if is_list and isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        elements = [_as_float(element) if kind is float else element for element in value]
        return [''] if kind is str and not elements else elements
    return _as_float(value) if kind is float and not is_list else value


def changed_parts(former: Any, values: Any) -> frozenset[str]:
    """Return the parts that the differences between two parameter dataclasses concern."""
    return frozenset(
        f.metadata['spec'].part for f in fields(values)
        if getattr(former, f.name) != getattr(values, f.name)) - {''}


def check_values(cls: type, values: Mapping[str, object]) -> None:
    """Raise ValueError with one sentence for a value that a parameter of `cls` cannot have."""
    for f in fields(cls):
        if f.name not in values:
            continue
        spec: Spec = f.metadata['spec']
        default = f.default if f.default is not MISSING else f.default_factory()
        value = values[f.name]
        is_list = isinstance(default, (list, tuple))
        kind = type(default[0]) if is_list else type(default)
        if is_list != isinstance(value, (list, tuple)) or not all(
                _is(kind, element) for element in (value if is_list else [value])):
            what = f'a list of {kind.__name__}' if is_list else f'of type {kind.__name__}'
            raise ValueError(f'{f.name} is {str(value)[:60]!r}; it must be {what}.')
        for element in value if is_list else [value]:
            if spec.choices and element not in spec.choices:
                raise ValueError(
                    f"{f.name} is '{element[:60]}'; choose one of {', '.join(spec.choices)}.")
            low = -math.inf if spec.low is None else spec.low
            high = math.inf if spec.high is None else spec.high
            if kind in (int, float) and not low <= element <= high:
                raise ValueError(f'{f.name} is {element}; it must lie in {low:g} to {high:g}.')


def _number_or_list(text: str) -> object:
    with suppress(ValueError):
        return float(text)
    with suppress(ValueError):
        found = parse_plain_yaml(text, 'The value')
        if isinstance(found, list) and all(type(element) in (int, float) for element in found):
            return found
    return text


def _as_float(value: object) -> object:
    return float(value) if type(value) is int else value


def _is(kind: type, value: object) -> bool:
    if kind is bool or isinstance(value, bool):
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
