"""Measures whether camera images reach a node in another process, for `vla doctor`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vla_policy_node.system.domain import own_domain
from vla_policy_node.system.processes import middleware_environment

WIDTH, HEIGHT, RATE_HZ = 1280, 720, 15.0
# Below this share of pairs a policy acts on old pictures.
ENOUGH = 0.95
# Two processes start, find each other and end; on a busy machine that takes long.
SPARE_S = 40.0
# Linux has 0.2 MB, less than a tenth of a picture.
RMEM_MAX = 16 << 20
SHARED_MB = 32  # the segment of config/fastdds.xml


class TransportError(RuntimeError):
    """Nothing was measured; the message says why."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of pictures, one of each camera, with the same stamp; rate_hz: how fast they left."""

    arrived: int
    sent: int
    rate_hz: float

    @property
    def enough(self) -> bool:
        """Whether a policy sees what its cameras see."""
        return self.arrived >= ENOUGH * self.sent

    def __str__(self) -> str:
        """Say it in words."""
        return f'{self.arrived} of {self.sent} pairs arrived, sent at {self.rate_hz:.0f} Hz'


def measure(
    duration_s: float, driver: Mapping[str, str], on_sent: Callable[[int], None] = lambda _: None,
) -> Pairs:
    """Send two cameras of 1280x720 rgb8 at 15 Hz from one process to another.

    driver: environment variables of the sender on top of this process's, as a camera driver would
    have them; the receiver has those of our nodes. on_sent: called with the number of each pair.
    Both are in a domain of their own on this machine, which no robot hears. Ends within
    duration_s + SPARE_S, else raises TransportError.
    """
    with own_domain() as domain, tempfile.TemporaryFile('w+') as errors:
        apart = {**os.environ, 'ROS_DOMAIN_ID': str(domain),
                 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
        receiver = _start('receive', {**apart, **middleware_environment()}, errors)
        sender = _start('send', {**apart, **driver}, errors, f'{duration_s}')
        both = (sender, receiver)

        def give_up() -> None:
            for end in both:
                end.kill()

        timer = threading.Timer(duration_s + SPARE_S, give_up)
        timer.start()
        try:
            times = []
            for _ in sender.stdout or ():
                times.append(time.monotonic())
                on_sent(len(times))
            if sender.wait() or len(times) < 2:
                raise TransportError(_last_line(errors) or 'the sender did not end in time')
            answer, _ = receiver.communicate()  # it ends as its input does
            if receiver.returncode:
                raise TransportError(_last_line(errors) or 'the receiver did not end in time')
            return Pairs(int(answer), len(times), (len(times) - 1) / (times[-1] - times[0]))
        finally:
            timer.cancel()
            for end in both:
                end.kill()
                end.communicate()


def advice() -> str:
    """Say what to do where pairs are lost and the profile of config/fastdds.xml does not help."""
    parts = []
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        parts.append(f'This machine is busy (load {load:.0f} on {cores} cores): measure again '
                     'when it is not.')
    buffer = Path('/proc/sys/net/core/rmem_max')
    size = f' (now {buffer.read_text().strip()})' if buffer.is_file() else ''
    memory = Path('/dev/shm')
    free = f'{shutil.disk_usage(memory).free >> 20} MB' if memory.is_dir() else 'nothing'
    parts.append(
        f'Give DDS shared memory, {SHARED_MB} MB a process ({free} free in /dev/shm), or its '
        f'sockets larger buffers, `sudo sysctl -w net.core.rmem_max={RMEM_MAX}`{size}, or have '
        'the cameras send JPEG.')
    return ' '.join(parts)


def _start(role: str, env: Mapping[str, str], errors: IO, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-m', 'vla_policy_node.commands.transport_ends', role, *arguments],
        env={**env}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)


def _last_line(errors: IO) -> str:
    errors.seek(0)
    return next((line.strip() for line in reversed(errors.readlines()) if line.strip()), '')
