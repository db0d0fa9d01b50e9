"""Worker processes: deaf to Ctrl-C, gone when their parent is, and ended in order if it stops.

Ctrl-C goes to the whole group of processes, and would interrupt workers in the middle of an
import; who started them decides instead.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

_PATIENCE_S = 5.0  # for a worker to put its files in order

Submit = Callable[..., Future]


@contextmanager
def worker_pool(
    workers: int, method: str = 'spawn', initializer: Callable[..., object] | None = None,
    initargs: tuple = (),
) -> Iterator[Submit]:
    """Give the `submit` of a pool of processes; leaving with an exception ends them at once.

    A call is `submit(function, *arguments)`. What is under way in a worker then ends like by
    SystemExit, so that nothing unfinished is left on the disk.
    """
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context(method), _begin, (initializer, initargs))

    def submit(function: Callable[..., Any], *arguments: Any) -> Future:
        with interrupts_blocked():  # this may start a process
            return pool.submit(_call, function, *arguments)

    try:
        yield submit
    except BaseException:
        _end({*multiprocessing.active_children()} - before)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Hold Ctrl-C back; processes that are started in here never get it unless they unblock it.

    Blocking it in this thread is inherited by the processes, but another thread may still receive
    it, and Python then interrupts the main thread: there it is noted, and delivered in the end.
    """
    if threading.current_thread() is not threading.main_thread():
        with _blocked():
            yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        with _blocked():
            yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _blocked() -> Iterator[None]:
    # Starting this one unblocks the signal, in the midst of starting the first other process.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(processes: set[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE_S)
        if process.is_alive():
            process.kill()


class WorkerEndedError(BaseException):
    """The parent wants this worker to end; not to be caught, except to be raised again."""


def _begin(initializer: Callable[..., object] | None, initargs: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _unwind(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise WorkerEndedError


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        signal.signal(signal.SIGTERM, _unwind)
        return function(*arguments)
    except WorkerEndedError:
        os._exit(1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
