"""Registry of acceleration methods: one file per published method, found by its presence."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from vla_policy_node.acceleration import declarations
from vla_policy_node.acceleration.base import Method, Report, Step
from vla_policy_node.acceleration.declarations import (
    Assumption,
    Capability,
    Effect,
    check_fixed_shapes,
    check_policy,
    check_together,
)
from vla_policy_node.acceleration.objective import STAGES, ObjectiveStage
from vla_policy_node.nn.config import ModelConfig

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')


def _subclasses(kind: type[Method]) -> list[type[Method]]:
    return [method for sub in kind.__subclasses__() for method in (sub, *_subclasses(sub))]


_METHODS = {method.name: method for method in _subclasses(Method) if method.name}

__all__ = [
    'Assumption', 'Capability', 'Effect', 'Method', 'Report', 'Step', 'available',
    'change_network', 'check_execution', 'check_fixed_shapes', 'check_policy',
    'check_together', 'create', 'execution_modes', 'named', 'objectives', 'prepare', 'settings']


def available() -> tuple[str, ...]:
    """Names of all methods, in alphabetical order."""
    return tuple(sorted(_METHODS))


def named(name: str) -> type[Method]:
    """Return the method of this name, without settings; ValueError if there is none."""
    if name not in _METHODS:
        raise ValueError(
            f'There is no acceleration method {name!r}; choose from {", ".join(available())}.'
        )
    return _METHODS[name]


def settings(name: str) -> Mapping[str, object]:
    """Settings of a method with their defaults; ValueError for an unknown name."""
    parameters = inspect.signature(named(name)).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def objectives() -> tuple[ObjectiveStage, ...]:
    """Stages of training that teach methods."""
    return tuple(STAGES.values())


def execution_modes(methods: Sequence[str]) -> tuple[str, ...]:
    """Execution modes in which these methods are valid; see `Method.assumes`."""
    return declarations.execution_modes(map(named, methods))


def check_execution(methods: Sequence[str], mode: str) -> None:
    """Raise ValueError with one sentence for methods that are invalid in an execution mode."""
    declarations.check_execution(map(named, methods), mode)


def create(name: str, **chosen: object) -> Method:
    """Make a method; ValueError for an unknown name or setting, or a value of the wrong type."""
    defaults = settings(name)
    for key, value in chosen.items():
        if key not in defaults:
            raise ValueError(
                f'Method {name!r} has no setting {key!r}; it has {", ".join(defaults) or "none"}.'
            )
        if type(value) is int and type(defaults[key]) is float:
            chosen[key] = value = float(value)
        if type(value) is not type(defaults[key]):
            raise ValueError(
                f'Setting {key!r} of method {name!r} must be a '
                f'{type(defaults[key]).__name__}, not {value!r}.'
            )
    return named(name)(**chosen)


def prepare(methods: Sequence[Method], checkpoint: Path, config: ModelConfig) -> None:
    """Prepare methods that will run together, each for the model as the others change it.

    config: of the checkpoint. ValueError with one sentence for a method that cannot run on it.
    """
    check_policy(methods, config)
    for method in methods:
        config = method.changed_config(config)
    for method in methods:
        method.prepare(checkpoint, config)


def change_network(methods: Sequence[Method], network: nn.Module) -> None:
    """Let methods change a network that has its weights already, instead of while it is loaded."""
    for method in methods:
        method.change_structure(network)
    for method in methods:
        method.change_weights(network)
