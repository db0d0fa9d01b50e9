"""Two systems on one machine do not hear each other."""

import subprocess
import sys

from vla_policy_node.domain import free_domain

ASK = 'from vla_policy_node.domain import free_domain; print(free_domain(), flush=True); input()'


def test_processes_that_live_at_the_same_time_get_different_domains():
    asked = [subprocess.Popen([sys.executable, '-c', ASK], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True) for _ in range(3)]
    domains = [int(process.stdout.readline()) for process in asked]
    mine = free_domain()
    assert free_domain() == mine
    for process in asked:
        process.communicate('\n')
    assert len({*domains, mine}) == 4
    assert all(1 <= domain <= 101 for domain in (*domains, mine))
