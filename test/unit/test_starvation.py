"""What the machine kept from processes is known, whoever took it."""

import os
import time

from vla_policy_node.bench.faults import starvation
from vla_policy_node.bench.faults.starvation import Starvation


def test_time_that_the_host_of_a_virtual_machine_took_counts(monkeypatch):
    stolen_s = iter([5.0, 5.0, 5.3])
    monkeypatch.setattr(starvation, '_stolen_s', lambda: next(stolen_s, 5.3))
    monkeypatch.setattr(starvation, '_run_delays_ns', lambda pid: {})
    with Starvation(time.monotonic()) as machine:
        deadline_s = time.monotonic() + 30.0
        while len(machine.samples) < 5 and time.monotonic() < deadline_s:
            time.sleep(0.01)
    totals = [total for _, total in machine.samples]
    assert totals[:2] == [0.0, 0.0]
    assert abs(totals[-1] - 0.3) < 1e-9


def test_what_the_kernel_says_of_this_machine_can_be_read():
    assert starvation._stolen_s() >= 0.0
    delays_ns = starvation._run_delays_ns(os.getpid())
    assert delays_ns
    assert all(delay_ns >= 0 for delay_ns in delays_ns.values())
