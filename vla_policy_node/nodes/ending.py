"""Orderly shutdown of a node: the robot stands still first, and the process always ends.

Three things end a node: SIGINT, SIGTERM or SIGHUP; the death of the process that started the
system, if it is named in the environment (not for a node started by hand); the node itself.
Whatever hangs then, the process is gone before `ros2 launch` runs out of patience.
"""

import contextlib
import faulthandler
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from vla_policy_node.system.processes import SUPERVISOR

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Longest time from request to end; `ros2 launch` waits 5 s before it sends SIGTERM.
EXIT_S = 4.0
# How long everything waits for the hold; longer means that the lock on the commands is stuck.
HOLD_S = 1.0
# A later signal counts as a second one: a closing terminal sends several at once.
REPEAT_S = 1.0


class Ending:
    """Waits for a request to end, on a thread that nothing else can delay.

    Python runs signal handlers on the main thread between two instructions, and the main thread
    may hang in a callback. The interpreter, however, writes the signal number to a descriptor at
    once, and this thread reads it. Create it on the main thread, once per process.

    exit_s: the process is gone this long after the request; None for a node that moves nothing
        and has files to finish.
    """

    def __init__(self, exit_s: float | None = EXIT_S):
        self.begun = threading.Event()
        self._held = threading.Event()
        self._hold: Callable[[], None] = lambda: None
        self._exit_s = exit_s
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, lambda *_: None)
        self._supervisor = _open_supervisor()
        threading.Thread(target=self._watch, name='ending', daemon=True).start()

    def first(self, hold: Callable[[], None]) -> None:
        """Set what makes the robot stand still; called once, on a thread of its own."""
        self._hold = hold

    def begin(self) -> None:
        """Start the shutdown if it has not begun; wait until the robot is told (any thread)."""
        os.write(self._writer, b'\0')
        self._held.wait(HOLD_S)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        if self._supervisor is not None:
            poll.register(self._supervisor, select.POLLIN)
        poll.poll()
        begun_s = time.monotonic()
        if self._exit_s is not None:
            # Needs no interpreter, so it also ends a process whose main thread hangs inside one
            # C function with the interpreter's lock.
            faulthandler.dump_traceback_later(self._exit_s + 0.5, exit=True, file=sys.__stderr__)
        self._take()
        self.begun.set()
        threading.Thread(target=self._tell_robot, name='hold', daemon=True).start()
        if self._exit_s is None:
            return
        self._held.wait(HOLD_S)
        self._wait_for_signal(begun_s + REPEAT_S, begun_s + self._exit_s)
        _exit_now()

    def _tell_robot(self) -> None:
        try:
            self._hold()
        finally:
            self._held.set()

    def _wait_for_signal(self, from_s: float, deadline_s: float) -> None:
        """Return at the deadline, or at a signal after from_s."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        while (left_s := deadline_s - time.monotonic()) > 0:
            poll.poll(left_s * 1e3)
            if any(self._take()) and time.monotonic() >= from_s:
                return

    def _take(self) -> bytes:
        """Return the numbers of the signals that have come, 0 for `begin`."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._reader, 64)
        return b''


def _open_supervisor() -> int | None:
    """Return a descriptor that is readable when the supervisor has died.

    Raises SystemExit if it is dead already: nobody would be left to stop this node.
    """
    pid = os.environ.get(SUPERVISOR)
    if not pid:
        return None
    try:
        return os.pidfd_open(int(pid))
    except ProcessLookupError:
        raise SystemExit('The process that started this node has ended; so does the node.'
                         ) from None
    except (ValueError, OSError) as error:
        raise SystemExit(f'{SUPERVISOR} is {pid!r}, a process that cannot be watched ({error}); '
                         'unset it, and this node outlives what started it.') from None


def leave(code: int = 0) -> NoReturn:
    """End the process, in which nothing is left to do.

    Tearing down an interpreter with torch takes seconds on a busy machine, longer than
    `ros2 launch` waits.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _exit_now() -> None:
    with contextlib.suppress(Exception):  # nobody may be left to read it
        print('The node has not ended by itself; it is ended now, and this is what it did:',
              file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.__stderr__)
    os._exit(1)
