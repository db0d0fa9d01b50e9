"""What a node prints must not hold it up."""

import os
import stat
from contextlib import suppress


def never_wait_for_readers() -> None:
    """Have stdout and stderr lose what their reader does not take, instead of waiting for it.

    A terminal that was stopped with Ctrl-S, `| less` or a stopped `ros2 launch` takes nothing, and
    rclpy logs with the interpreter's lock held: one line in one thread would stop all, commands
    and stops too. Each is opened anew, as the mode of the description that we were given is that
    of everybody who shares it. Files and sockets stay as they are, and what another user owns.
    Call it before the first line is logged.
    """
    for descriptor in (1, 2):
        with suppress(OSError):
            kind = os.fstat(descriptor).st_mode
            if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
                anew = os.open(f'/proc/self/fd/{descriptor}',
                               os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
                os.dup2(anew, descriptor)
                os.close(anew)
