"""A ROS domain for one process and its children."""

import fcntl
import functools
import os
import tempfile
from pathlib import Path

# 1 to 101 keeps the ports out of the ephemeral range of Linux.
_DOMAINS = range(1, 102)
_held = []  # a lock is held as long as the process lives


@functools.cache
def free_domain() -> int:
    """Return this process's domain: one that no other living process of this user got here.

    Two systems in one domain are two publishers on each input. Falls back to one by chance if all
    are taken.
    """
    folder = Path(tempfile.gettempdir()) / f'vla_domains_{os.getuid()}'
    folder.mkdir(mode=0o700, exist_ok=True)
    start = os.getpid() % len(_DOMAINS)
    candidates = [*_DOMAINS[start:], *_DOMAINS[:start]]
    for domain in candidates:
        lock = (folder / str(domain)).open('w')
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _held.append(lock)
        return domain
    return candidates[0]
