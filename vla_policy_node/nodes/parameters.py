"""Parameters as frozen dataclasses: type, default, unit, bounds and description in one place.

    @dataclass(frozen=True)
    class MyParameters:
        control_rate_hz: float = parameter(20.0, 'Rate of the commands.', 'Hz', 1.0, 200.0)

    store = ParameterStore(node, MyParameters)
    store.checked()        # MyParameters, or ParameterError with one sentence per problem

A bad value in a file must neither crash the node nor be ignored: it is declared with its default,
remembered as a problem, and `checked` refuses until it is corrected.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from vla_policy_node.loop.parameter_fields import Spec, as_declared, parameter
from vla_policy_node.nodes.ros_arguments import is_for_all
from vla_policy_node.system.files import CLOSE

__all__ = ['ParameterError', 'ParameterStore', 'parameter']

_TYPES = {
    bool: (Parameter.Type.BOOL, 'true or false'),
    int: (Parameter.Type.INTEGER, 'a whole number'),
    float: (Parameter.Type.DOUBLE, 'a number with a decimal point, for example 20.0'),
    str: (Parameter.Type.STRING, 'a string'),
}
_ARRAYS = {
    float: (Parameter.Type.DOUBLE_ARRAY, 'a list of numbers with decimal points'),
    str: (Parameter.Type.STRING_ARRAY, 'a list of strings'),
}
# Declared by rclpy itself.
_FOREIGN = ('use_sim_time', 'start_type_description_service')


class ParameterError(ValueError):
    """Parameters that cannot be used; one sentence per problem."""


class ParameterStore:
    """Declares, checks and watches the parameters of one node.

    cls: dataclass made with `parameter`. Its own `__post_init__` may raise ValueError for
        combinations. is_configured: while it returns True only tunable parameters may change.
    apply: called with the new dataclass after tunable parameters changed (executor thread).
    refuse: given the old and the new dataclass while the node is configured, returns why the
        change cannot be made now, '' if it can.
    problems: parameter -> what is wrong with what it was given, found before.
    """

    def __init__(
        self,
        node: Node,
        cls: type,
        is_configured: Callable[[], bool] = lambda: False,
        apply: Callable[[Any], None] = lambda values: None,
        refuse: Callable[[Any, Any], str] = lambda old, new: '',
        problems: Mapping[str, str] | None = None,
    ):
        self._node = node
        self._cls = cls
        self._is_configured = is_configured
        self._apply = apply
        self._refuse = refuse
        self._fields = {f.name: f for f in fields(cls)}
        self._problems = {**self._unknown_overrides(), **(problems or {})}
        for name in self._fields:
            self._declare(name)
        node.add_pre_set_parameters_callback(self._as_declared)
        node.add_on_set_parameters_callback(self._validate)
        node.add_post_set_parameters_callback(self._on_changed)

    @property
    def problem(self) -> str:
        """What is wrong with what the node was given at the start, '' for nothing."""
        return ' '.join(self._problems.values())

    def checked(self) -> Any:
        """Return the parameters as their dataclass. Raises ParameterError."""
        if self.problem:
            raise ParameterError(self.problem)
        return self._build({})

    def _build(self, changes: dict[str, Any]) -> Any:
        values = {name: self._node.get_parameter(name).value for name in self._fields} | changes
        values = {name: _plain(value) for name, value in values.items()}
        try:
            return self._cls(**values)
        except ValueError as error:
            raise ParameterError(str(error)) from error

    def _declare(self, name: str) -> None:
        default = self._default(name)
        spec: Spec = self._fields[name].metadata['spec']
        descriptor = _descriptor(spec, default)
        override = self._overrides().get(name)
        if override is not None:
            if override.value is None and isinstance(default, list):  # an empty one, for rcl
                override = Parameter(name, value=[])
            override = self._overrides()[name] = _as_declared(default, override)
        ignore = False
        if override is not None and (problem := _problem(name, spec, default, override)):
            self._problems[name] = problem
            ignore = True
        kind = _kind(default)[0]
        self._node.declare_parameter(
            name, Parameter(name, kind, default).value, descriptor, ignore_override=ignore
        )

    def _as_declared(self, parameters: Sequence[Parameter]) -> list[Parameter]:
        """Return what is to be set in the types of the parameters (executor thread)."""
        wanted = [_as_declared(self._default(new.name), new) if new.name in self._fields else new
                  for new in parameters if not self._is_fixed(new)]
        # Nothing to set is not allowed; this changes nothing.
        return wanted or [self._node.get_parameter(next(iter(self._fields)))]

    def _is_fixed(self, new: Parameter) -> bool:
        """Return whether a parameter is read-only and would stay as it is: rclpy refuses it."""
        return (self._node.has_parameter(new.name)
                and self._node.describe_parameter(new.name).read_only and not self._is_new(new))

    def _is_new(self, new: Parameter) -> bool:
        # A file with all parameters of a node, as `ros2 param dump` writes it, may be loaded.
        return _plain(self._node.get_parameter(new.name).value) != _plain(new.value)

    def _validate(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        """Refuse what cannot be used; changes nothing (executor thread)."""
        changes = {}
        for new in parameters:
            # Before rclpy sees it: this would be another clock in the middle of a motion.
            if new.name == 'use_sim_time' and self._is_configured() and self._is_new(new):
                return SetParametersResult(successful=False, reason=(
                    'use_sim_time cannot change while the node is configured; clean up first.'))
            if new.name not in self._fields or not self._is_new(new):
                continue
            spec: Spec = self._fields[new.name].metadata['spec']
            problem = _problem(new.name, spec, self._default(new.name), new)
            if not problem and not spec.tunable and self._is_configured():
                problem = f'{new.name} cannot change while the node is configured; clean up first.'
            if problem:
                return SetParametersResult(successful=False, reason=problem)
            changes[new.name] = new.value
        try:
            values = self._build(changes)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if changes and self._is_configured() and (
                reason := self._refuse(self._build({}), values)):
            return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _on_changed(self, parameters: Sequence[Parameter]) -> None:
        """Apply changes that `_validate` accepted (executor thread)."""
        names = {new.name for new in parameters} & self._fields.keys()
        for name in names:
            self._problems.pop(name, None)
        if names and self._is_configured():
            self._apply(self._build({}))

    def _default(self, name: str) -> Any:
        f = self._fields[name]
        value = f.default if f.default is not MISSING else f.default_factory()
        return list(value) if isinstance(value, tuple) else value

    def _overrides(self) -> dict[str, Parameter]:
        # rclpy has no public access to overrides that were never declared.
        return self._node._parameter_overrides

    def _unknown_overrides(self) -> dict[str, str]:
        problems = {}
        for name in self._overrides():
            if name in self._fields or is_foreign(name):
                continue
            if is_for_all(name) and not difflib.get_close_matches(
                    name, self._fields, 1, CLOSE):
                continue
            close = difflib.get_close_matches(name, self._fields, 1)
            hint = f' did you mean {close[0]}?' if close else ' remove it.'
            problems[name] = f'There is no parameter {name};{hint}'
        return problems


def given(node: Node, name: str) -> Any:
    """Return what a parameter was given at the start, before it is declared; None if nothing."""
    override = node._parameter_overrides.get(name)
    return None if override is None else override.value


def is_foreign(name: str) -> bool:
    """Return whether a parameter is rclpy's own."""
    return name in _FOREIGN or name.startswith('qos_overrides.')


def _as_declared(default: Any, given: Parameter) -> Parameter:
    value = as_declared(default, given.value)
    if value is given.value:
        return given
    return Parameter(given.name, value=value)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) or hasattr(value, 'tolist') else value


def _kind(default: Any) -> tuple[Parameter.Type, str]:
    if isinstance(default, list):
        return _ARRAYS[type(default[0]) if default else str]
    return _TYPES[type(default)]


def _descriptor(spec: Spec, default: Any) -> ParameterDescriptor:
    unit = f' [{spec.unit}]' if spec.unit else ''
    descriptor = ParameterDescriptor(description=spec.description + unit)
    if spec.choices:
        descriptor.additional_constraints = f'one of {", ".join(spec.choices)}'
    if isinstance(default, float):
        descriptor.floating_point_range = [FloatingPointRange(
            from_value=-math.inf if spec.low is None else float(spec.low),
            to_value=math.inf if spec.high is None else float(spec.high),
        )]
    elif type(default) is int:
        descriptor.integer_range = [IntegerRange(
            from_value=-(2**63) if spec.low is None else int(spec.low),
            to_value=2**63 - 1 if spec.high is None else int(spec.high),
            step=1,
        )]
    return descriptor


def _problem(name: str, spec: Spec, default: Any, given: Parameter) -> str:
    kind, words = _kind(default)
    if given.type_ != kind:
        return f'{name} is {given.value!r}; it must be {words}.'
    values = given.value if isinstance(default, list) else [given.value]
    for value in values:
        if spec.choices and value not in spec.choices:
            return f"{name} is '{value}'; it must be one of {', '.join(spec.choices)}."
        if isinstance(value, float) and not math.isfinite(value):
            return f'{name} is {value}; it must be a finite number.'
        low = -math.inf if spec.low is None else spec.low
        high = math.inf if spec.high is None else spec.high
        if not isinstance(value, (str, bool)) and not low <= value <= high:
            unit = f' {spec.unit}' if spec.unit else ''
            return f'{name} is {value}{unit}; it must lie between {low:g} and {high:g}{unit}.'
    return ''
