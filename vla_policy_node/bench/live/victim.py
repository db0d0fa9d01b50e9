"""A policy node in a process of its own, whose policy answers as standard input tells it to.

    python -m vla_policy_node.bench.live.victim --ros-args -p checkpoint:=...

Each line is one JSON object: {"kind": a fault of the group 'policy' or '', "case": N, "seed": S,
"hang": seconds}; it holds from the next inference on. All else of the node is what users run.
"""

import copy
import json
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from vla_policy_node.bench.faults.draw import draw_fault
from vla_policy_node.bench.faults.world import ScriptedPolicy, Setup
from vla_policy_node.nodes import policy_node
from vla_policy_node.policy.interface import InferenceRequest
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime.small import CONFIG, create_small_checkpoint

CHUNK_LENGTH, LATENCY_S = 8, 0.02


def create_checkpoint(directory: Path) -> Path:
    """Write an untrained checkpoint that loads in a moment; a real one, with its tokenizer."""
    config = copy.deepcopy(CONFIG)
    for encoder in config['vision_tiny'].values():
        encoder.update(embed_dim=16, feature_block=0, num_heads=1, mlp_hidden=16, img_size=56)
    config['text_config'].update(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    return create_small_checkpoint(directory, config=config)


def live_setup(motion: str = 'calm') -> Setup:
    """Return the setup of every trial on a running node."""
    return Setup(
        parameters={}, chunk_length=CHUNK_LENGTH, latency_s=LATENCY_S, camera_hz=30.0,
        state_hz=50.0, transport_s=0.0, lag_s=0.02, motion=motion, clock_start_s=1_000.0,
        start_m=(0.0, 0.0, 0.5), goal_at_s=0.0, simulated=True)


def _new_policy(order: dict) -> ScriptedPolicy:
    setup = live_setup(order.get('motion', 'calm'))
    policy = ScriptedPolicy(setup, np.random.default_rng(order.get('case', 0)), time.sleep)
    if order.get('kind'):
        fault = draw_fault(order['kind'], order['case'], order['seed'])
        fault.begin(SimpleNamespace(policy=policy, setup=setup))
    if order.get('hang'):
        policy.latency_s = order['hang']
    return policy


class Orders:
    """The policy that answers now; replaced as a whole by the thread that reads orders."""

    def __init__(self):
        self._policy = _new_policy({})
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self._policy = _new_policy(json.loads(line))

    def infer(self, policy: LocalPolicy, request: InferenceRequest):
        """Stand in for `LocalPolicy.infer` (worker thread)."""
        return self._policy.infer(request)


def main() -> None:
    """Run the policy node until a signal."""
    orders = Orders()
    LocalPolicy.infer = lambda policy, request: orders.infer(policy, request)
    policy_node.main()


if __name__ == '__main__':
    main()
