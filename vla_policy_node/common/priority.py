"""Keeps the priority of threads what it was, whatever a library wants for itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_THREADS = Path('/proc/self/task')


@contextmanager
def same_priority() -> Iterator[None]:
    """Let the calling thread, and those that begin meanwhile, be scheduled as it was before.

    For root, SVT-AV1 gives its threads and its caller the highest real-time priority: nothing else
    on the machine, such as the driver of a robot, would run while they compute.
    """
    if not _THREADS.is_dir():  # not Linux
        yield
        return
    before = {*_THREADS.iterdir()}
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        begun = {*_THREADS.iterdir()} - before
        for thread in (0, *(int(path.name) for path in begun)):
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setscheduler(thread, policy, parameters)
