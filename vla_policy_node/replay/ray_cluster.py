"""Distributes bags over an existing Ray cluster (`pip install vla_policy_node[ray]`)."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence

from vla_policy_node.replay.many import run_one
from vla_policy_node.replay.merged import BagOutcome
from vla_policy_node.replay.settings import ReplaySettings

_KNOCK_S = 5.0


class RayError(ValueError):
    """No Ray, or no cluster at the address; one sentence says what to do."""


def connect(
    address: str, settings: ReplaySettings
) -> Callable[[Sequence[tuple[str, str]]], Iterator[BagOutcome]]:
    """Return a function that runs jobs on a cluster and yields their outcomes as they come.

    address: of a running cluster, for instance 'auto' or 'ray://head:10001'. This package must be
    installed on every machine of it. Raises RayError.
    """
    try:
        import ray
    except ImportError:
        raise RayError('Ray is not installed; `pip install ray`, or use --workers.') from None
    mine = not ray.is_initialized()
    if mine:
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level='ERROR')
        except (ConnectionError, ValueError, OSError, RuntimeError) as error:
            reason = str(error).strip().split('\n')[0].rstrip('.')
            raise RayError(f"There is no Ray cluster at '{address}' ({reason}); start one with "
                           '`ray start --head`.') from error
    return lambda jobs: _run(ray, jobs, settings, mine)


def _knock(address: str) -> None:
    """Raise OSError at once if nobody listens; Ray would try for a minute."""
    host, _, port = address.rpartition(':')
    if port.isdigit():
        socket.create_connection((host.rpartition('/')[2], int(port)), _KNOCK_S).close()


def _run(ray, jobs, settings: ReplaySettings, mine: bool) -> Iterator[BagOutcome]:
    try:
        remote = ray.remote(num_cpus=settings.threads)(run_one)
        waiting = {remote.remote(*job, settings): job for job in jobs}
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(ready)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().split('\n')[-1]
                yield BagOutcome(*job, problem=f"The worker for '{job[0]}' failed: {reason}")
    finally:
        if mine:
            ray.shutdown()
