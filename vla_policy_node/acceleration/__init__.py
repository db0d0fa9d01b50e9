"""Acceleration methods by name: one file per published method, found by being there."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping

from vla_policy_node.acceleration.base import Method, Report

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')
_METHODS = {method.name: method for method in Method.__subclasses__() if method.name}

__all__ = ['Method', 'Report', 'available', 'create', 'settings']


def available() -> tuple[str, ...]:
    """Names of all methods, in alphabetical order."""
    return tuple(sorted(_METHODS))


def settings(name: str) -> Mapping[str, object]:
    """Settings of a method with their defaults; ValueError for an unknown name."""
    if name not in _METHODS:
        raise ValueError(
            f'There is no acceleration method {name!r}; choose from {", ".join(available())}.'
        )
    parameters = inspect.signature(_METHODS[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


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
    return _METHODS[name](**chosen)
