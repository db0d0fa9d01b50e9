"""`vla bench node` runs and every figure of its table is there; the values are not a test's."""

import json
import math
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.alone


@pytest.mark.slow
def test_the_node_benchmark_fills_its_table(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != 'ROS_DOMAIN_ID'}
    done = subprocess.run(
        [sys.executable, '-m', 'vla_policy_node.cli', 'bench', 'node', '--duration', '5',
         '--out', str(tmp_path)],
        capture_output=True, text=True, timeout=200, env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'control-timer jitter' in done.stdout
    figures = json.loads((tmp_path / 'bench_node.json').read_text())
    assert figures['inferences'] > 0
    assert figures['command_rate_hz'] > 0
    for name in ('command_jitter_ms', 'observation_age_at_inference_ms', 'inference_ms'):
        assert all(math.isfinite(value) for value in figures[name].values()), name
    assert 0 < figures['image_callback_core_share']['raw'] < 1
    assert figures['memory_end_mb'] > 100
