"""The two libraries that only datasets need, asked for when they are used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def parquet() -> ModuleType:
    """Return `pyarrow.parquet`; ValueError with one sentence if it is not installed."""
    return _needed('pyarrow.parquet')


def arrow() -> ModuleType:
    """Return `pyarrow`; ValueError with one sentence if it is not installed."""
    return _needed('pyarrow')


def video() -> ModuleType:
    """Return PyAV, which says little by itself; ValueError if it is not installed."""
    library = _needed('av')
    library.logging.set_level(library.logging.PANIC)  # what is wrong is in the exception
    return library


def _needed(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError:
        raise ValueError(
            f'{name.partition(".")[0]} is not installed, which datasets of LeRobot need; '
            "`pip install 'vla_policy_node[dataset]'`, or pyarrow and av.") from None
