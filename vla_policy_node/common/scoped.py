"""Context managers that change process-wide settings and restore them.

Whoever uses this package in a process of their own finds torch and the environment after a call as
they were before it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# torch is imported where it is needed: who only sets the environment starts sooner without it.

# How many calls are inside `torch_threads`, and how many threads torch used outside of them.
_lock = threading.Lock()
_inside = 0
_outside = 0
_known = threading.local()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Have torch compute with `count` threads in the calling thread; 0 leaves it alone.

    Any thread; each has a number of its own. In torch (2.13, OpenMP) `set_num_threads` sets two
    things: the number of the thread that calls it, which is OpenMP's, and the one with which every
    thread begins that computes for the first time, which is the process's. Both are put back here,
    also where two threads are inside at once: what a thread finds at its first visit may then be
    the other one's number, and is not what it leaves with. Numbers of threads change results in
    their last bits, where the matrix library divides sums among threads.
    """
    if not count:
        yield
        return
    import torch

    before = _enter()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        _leave(before)


def _enter() -> int:
    global _inside, _outside
    import torch

    with _lock:
        # Asked in any case: a thread that was set before it ever asked is set anew when it does.
        before = torch.get_num_threads()
        if _inside == 0:
            _outside = before
        elif not hasattr(_known, 'here'):
            before = _outside
        _inside += 1
        _known.here = True
        return before


def _leave(before: int) -> None:
    global _inside
    import torch

    with _lock:
        torch.set_num_threads(before)
        _inside -= 1


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set variables of the environment, for processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
