"""`vla bench policy` in seconds: a machine that is measured quickly, and pictures without a world.

A test module imports the fixture by name: `from small_machine import small_machine  # noqa: F401`.
"""

import numpy as np
import pytest

from vla_policy_node.bench import policy_run, rates
from vla_policy_node.policy.interface import Observation

PROPRIO = np.array([-0.1, 0.0, 1.0, 3.1, 0.0, 0.0, 0.02, -0.02])


def observe(count):
    noise = np.random.default_rng(0)
    return [
        Observation(
            {camera: noise.integers(0, 256, (60, 80, 3), np.uint8)
             for camera in ('third_person', 'wrist')},
            PROPRIO, 'pick up the milk')
        for _ in range(count)
    ]


@pytest.fixture
def small_machine(monkeypatch):
    """Products and buffers that cost nothing, and pictures without a world."""
    monkeypatch.setattr(rates, '_SIDE', {'cpu': 64, 'cuda': 512})
    monkeypatch.setattr(rates, '_BYTES', {'cpu': 1 << 16, 'cuda': 1 << 20})
    monkeypatch.setattr(policy_run, 'observe_world', observe)
