"""Non-blocking stdout and stderr: a stalled reader of the log must not stall the node."""

import os
import stat
from contextlib import suppress


def never_wait_for_readers() -> None:
    """Make stdout and stderr drop what their reader does not take, instead of waiting for it.

    A terminal paused with Ctrl-S, `| less` or a stopped `ros2 launch` reads nothing, and rclpy
    logs with the interpreter's lock held: one line on one thread would block everything, commands
    and stops included. Both are reopened, because the mode of the inherited file description is
    shared with other processes. Files, sockets and what another user owns stay as they are. Call
    it before the first line is logged.
    """
    for descriptor in (1, 2):
        with suppress(OSError):
            kind = os.fstat(descriptor).st_mode
            if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
                anew = os.open(f'/proc/self/fd/{descriptor}',
                               os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
                os.dup2(anew, descriptor)
                os.close(anew)
