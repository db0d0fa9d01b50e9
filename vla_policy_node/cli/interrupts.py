"""What Ctrl-C does to `vla`, whenever it comes: one line on standard error and exit code 130.

The first one raises KeyboardInterrupt, so that what is under way is put in order. A second one
does not wait for that. Commands that have an order of their own, such as saving what was trained,
set another handler meanwhile.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130  # exit code
_PATIENCE_S = 0.3
_said = False


@contextmanager
def handled() -> Iterator[None]:
    """Handle Ctrl-C in here and until the process has ended. Main thread."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `vla ... &` in a script
        yield
        return
    # Python hands the signal back to the system at its very end, which would end us otherwise.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGINT, _unwind)
    sys.unraisablehook = partial(_unless_it_came, sys.__unraisablehook__)
    threading.excepthook = partial(_unless_it_came, threading.__excepthook__)
    try:
        yield
    except BaseException as error:
        if not came() or (isinstance(error, SystemExit) and error.code != INTERRUPTED):
            raise
        # Whatever it is: a library may turn KeyboardInterrupt into an error of its own.
        if not _said:
            say()
        raise SystemExit(INTERRUPTED) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGINT, _end_now)  # what is left takes a moment, and no decision


def say(sentence: str = '') -> None:
    """Say that the command was interrupted, for a second Ctrl-C as well."""
    global _said
    _said = True
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    print(sentence or 'Interrupted.', file=sys.stderr, flush=True)


def came() -> bool:
    """Whether Ctrl-C has come, and is under way to whoever handles it."""
    return signal.getsignal(signal.SIGINT) is _end_now


def _unwind(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _end_now)
    signal.signal(signal.SIGALRM, _unwind_still)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S, _PATIENCE_S)
    raise KeyboardInterrupt


def _unwind_still(number: int, frame: FrameType | None) -> None:
    """Raise again if KeyboardInterrupt was lost: swallowed in an import, or in a destructor."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return  # being put in order
        error = error.__context__
    raise KeyboardInterrupt


def _end_now(number: int, frame: FrameType | None) -> NoReturn:
    processes: Any = sys.modules.get('multiprocessing.process')
    with suppress(Exception):
        for child in processes.active_children() if processes else ():
            child.kill()
    if not _said:
        with suppress(OSError):
            os.write(2, b'Interrupted.\n')
    os._exit(INTERRUPTED)


def _unless_it_came(hook: Callable[[Any], object], error: Any) -> None:
    """Say what destructors and threads raise, but not what they do because of Ctrl-C."""
    if not came():
        hook(error)
