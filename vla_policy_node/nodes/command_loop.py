"""The command thread: ticks on a steady clock, independent of everything else."""

import os
import select
import threading
import time
from collections.abc import Callable

from rclpy.clock import Clock, JumpThreshold
from rclpy.duration import Duration

from vla_policy_node.control.pacing import Beat, Pacer, Pacing
from vla_policy_node.nodes.failures import FailureLog

# How long a running tick may take when the loop is told to stop.
STOP_S = 2.0


class CommandLoop:
    """Calls `tick` whenever a command is due; nothing else in the process can delay it.

    clock: the node's. tick: called with the reason and the delay in ns (on this loop's thread);
    what it raises is passed to `log`, and the next tick comes all the same.
    silence_s: see `control.pacing.Pacer`.
    """

    def __init__(self, clock: Clock, pacing: Pacing, period_ns: int, silence_s: float,
                 tick: Callable[[Beat, int], None], log: Callable[[str], None]):
        self._clock = clock
        self._tick = tick
        self._log = log
        self._pacer = Pacer(pacing, period_ns, round(silence_s * 1e9), time.monotonic_ns(),
                            self._now_ns())
        self._stopping = False
        self._failures = FailureLog(log)
        # Not an Event: before Python 3.11 its timeout follows the system clock.
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._jumps = None
        if pacing is not Pacing.STEADY:
            self._jumps = clock.create_jump_callback(
                JumpThreshold(min_forward=Duration(nanoseconds=1),
                              min_backward=Duration(nanoseconds=-1), on_clock_change=True),
                post_callback=lambda _: self._poke())
        self._thread = threading.Thread(target=self._run, name='commands', daemon=True)
        self._thread.start()

    def sent(self) -> None:
        """Record a command that somebody else sent (any thread)."""
        self._pacer.sent(time.monotonic_ns())

    def stop(self) -> None:
        """End the thread, or log that its tick hangs after STOP_S (any other thread)."""
        self._stopping = True
        if self._jumps is not None:
            self._jumps.unregister()
        self._poke()
        self._thread.join(STOP_S)
        if self._thread.is_alive():  # and still uses its wake-up descriptor
            self._log('The thread that commands hangs; restart the process.')
            return
        os.close(self._wake)

    def _poke(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _now_ns(self) -> int:
        return self._clock.now().nanoseconds

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        while not self._stopping:
            beat = self._pacer.poll(time.monotonic_ns(), self._now_ns())
            if beat is not None:
                self._call(beat)
                continue
            wait_ns = self._pacer.wait_ns(time.monotonic_ns())
            if wait_ns < 1_000_000:  # poll counts in milliseconds
                time.sleep(wait_ns / 1e9)
            elif poller.poll(wait_ns // 1_000_000):
                os.eventfd_read(self._wake)

    def _call(self, beat: Beat) -> None:
        try:
            self._tick(beat, self._pacer.late_ns)
        except Exception as error:
            self._failures.note(error)
