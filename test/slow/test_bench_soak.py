"""The soak tells a process that grows from one that does not."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vla_policy_node.bench.soak import ResourceSample, judge, plot, sample

pytestmark = pytest.mark.alone

LEAKING = '''
import sys, threading, time, os
kept, kind = [], sys.argv[1]
print('ready', flush=True)
for _ in range(100_000):
    if kind == 'memory':
        kept.append(bytearray(os.urandom(100_000)))
    elif kind == 'threads':
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    elif kind == 'descriptors':
        kept.append(open(os.devnull))
    time.sleep(0.02)
'''


def watch(kind, count=40):
    """Samples of a process that loses what is named."""
    with subprocess.Popen([sys.executable, '-c', LEAKING, kind], stdout=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout.readline() == 'ready\n'
        since_s, samples = time.monotonic(), []
        for _ in range(count):
            time.sleep(0.05)
            samples.append(sample(process.pid, since_s))
        process.kill()
    return samples


@pytest.mark.parametrize(('kind', 'word'), [
    ('memory', 'Memory'), ('threads', 'threads'), ('descriptors', 'descriptors')])
def test_a_process_that_loses_something_is_flagged(kind, word):
    assert any(word in problem for problem in judge(watch(kind)).problems)


def test_a_process_that_loses_nothing_is_not():
    assert judge(watch('nothing')).problems == []


def made_up(memory_mb, seconds=3600, step_s=1.0):
    return [ResourceSample(i * step_s, value, 20, 40)
            for i, value in enumerate(memory_mb(np.arange(0, seconds, step_s)))]


@pytest.mark.parametrize('seed', range(5))
def test_noise_and_wandering_of_the_allocator_are_no_slope(seed):
    rng = np.random.default_rng(seed)
    noise = made_up(lambda t: 400 + rng.normal(0, 1.0, len(t)))
    wandering = made_up(lambda t: 400 + 2 * np.sin(t / 300 + seed) + rng.normal(0, 0.2, len(t)))
    assert judge(noise).problems == judge(wandering).problems == []


def test_growth_in_the_warm_up_does_not_count_and_three_megabytes_an_hour_do():
    rng = np.random.default_rng(0)
    assert judge(made_up(lambda t: 400 + 50 * np.minimum(t / 800, 1.0))).problems == []
    verdict = judge(made_up(lambda t: 400 + 3.0 * t / 3600 + rng.normal(0, 0.3, len(t))))
    assert verdict.slope_mb_h == pytest.approx(3.0, abs=0.1)
    assert len(verdict.problems) == 1


def test_the_plot_is_drawn(tmp_path):
    plot(made_up(lambda t: 400 + t * 0, 60), tmp_path / 'soak.png')
    assert Path(tmp_path / 'soak.png').stat().st_size > 5000


def test_this_process_is_measured_as_the_kernel_sees_it():
    taken = sample(os.getpid(), time.monotonic())
    assert taken.resident_mb > 10
    assert taken.threads >= 1
    assert taken.descriptors >= 3


def test_the_bench_soaks_a_real_node_and_writes_its_figures(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != 'ROS_DOMAIN_ID'}
    done = subprocess.run(
        [sys.executable, '-m', 'vla_policy_node.cli', 'bench', 'soak', '--minutes', '0.3',
         '--out', str(tmp_path)],
        capture_output=True, text=True, timeout=150, env=environment)
    # So short a time is all warm-up: whether something grew is not the question.
    assert done.returncode in (0, 1), done.stderr
    figures = json.loads((tmp_path / 'soak.json').read_text())
    assert len(figures['samples']) >= 5
    assert all(resident_mb > 50 for _, resident_mb, _, _ in figures['samples'])
    assert (tmp_path / 'soak.png').is_file()
