"""Collects the counters of all components into one table for status and reports."""

from collections.abc import Mapping

from vla_policy_node.control.commander import Commander
from vla_policy_node.loop.worker import PolicyWorker


def counters(
    commander: Commander, worker: PolicyWorker, others: Mapping[str, int]
) -> dict[str, int]:
    """Return every count of every part under 'part.name'."""
    parts = commander.parts
    groups = {
        'tick': commander.counts(),
        'input': parts.pairer.counts(),
        parts.mover.measured_as: parts.mover.measured.counts(),
        'executor': parts.executor.counts(),
        'limit': parts.mover.counts(),
        'worker': worker.counts(),
        'node': others,
    }
    return {f'{group}.{name}': count for group, counts in groups.items()
            for name, count in sorted(counts.items())}
