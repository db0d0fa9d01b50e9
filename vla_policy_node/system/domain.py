"""Reserves a ROS domain for one process and its children."""

import functools
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

# 1 to 101 keeps the ports out of the ephemeral range of Linux.
_DOMAINS = range(1, 102)
# Ports of a domain, as DDS counts them: 7400 + 250 * domain, and as many from there on.
_FIRST_PORT = 7400
_PORTS = 250
_for_life = ExitStack()


@functools.cache
def free_domain() -> int:
    """Return this process's domain, for as long as it lives; see `own_domain`."""
    return _for_life.enter_context(own_domain())


@contextmanager
def own_domain() -> Iterator[int]:
    """Lend a domain in which nobody on this machine is, and that nobody else gets meanwhile.

    Two systems in one domain are two publishers on each input. A domain that is lent is a name
    that one socket can be bound to: the kernel gives it to one process at a time, whoever's it is,
    and takes it back however that ends. A domain with open ports has somebody in it who did not
    ask here, or children of a process that has died. If none is free, it is one by chance.
    """
    start = os.getpid() % len(_DOMAINS)
    candidates = [*_DOMAINS[start:], *_DOMAINS[:start]]
    busy = _domains_with_open_ports()
    with socket.socket(socket.AF_UNIX) as name:
        for domain in candidates:
            if domain not in busy and _is_bound(name, f'\0vla_policy_node/domain/{domain}'):
                break
        else:
            domain = candidates[0]
        yield domain


def _is_bound(name: socket.socket, address: str) -> bool:
    try:
        name.bind(address)
    except OSError:  # it is somebody's
        return False
    return True


def _domains_with_open_ports() -> set[int]:
    ports = set()
    for table in ('/proc/net/udp', '/proc/net/udp6'):
        if Path(table).exists():
            rows = Path(table).read_text(encoding='ascii').splitlines()[1:]
            # sl, local_address as ADDRESS:PORT in hexadecimal digits, ...
            ports.update(int(row.split()[1].rpartition(':')[2], 16) for row in rows)
    return {(port - _FIRST_PORT) // _PORTS for port in ports if port >= _FIRST_PORT}
