"""The whole system as `make demo` runs it, and what its report makes of an episode."""

import json
import math
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vla_policy_node.control.hold import HoldReason
from vla_policy_node.demo import report
from vla_policy_node.demo.recorder import RecordedEpisode

pytestmark = pytest.mark.alone

PERIOD_NS = 50_000_000


def episode(moves=8, holds=2, applied=8):
    reasons = [HoldReason.NONE] * moves + [HoldReason.CHUNK_EXHAUSTED] * holds
    return RecordedEpisode(
        'pick up the bowl', 3,
        commands=[(index * PERIOD_NS, reason) for index, reason in enumerate(reasons)],
        inference_ms=[100.0, 120.0], tokens_kept=[60, 80], observation_age_ms=[150.0, 250.0],
        stage_ms=[{'vision': 60.0}, {'vision': 80.0}], world_steps=10, applied=applied,
        overlays=[{}],
    )


def summarise(*episodes, real_time=True):
    return report.summarise(episodes, 512, 50.0, real_time)


def test_the_summary_counts_actions_and_holds_apart():
    summary = summarise(episode(), episode())
    assert summary['episodes'] == 2
    assert summary['commands_sent'] == 16
    assert summary['holds'] == {'chunk_exhausted': 4}
    assert summary['tokens_kept_mean'] == 70.0
    assert summary['inference_ms']['p50'] == 110.0
    assert summary['observation_age_ms']['p50'] == 200.0
    assert summary['stage_ms'] == {'vision': 70.0}


def test_jitter_is_the_distance_from_the_period_and_does_not_span_episodes():
    first, second = episode(), episode()
    second.commands = [(stamp + 10**12 + (5_000_000 if index % 2 else 0), reason)
                       for index, (stamp, reason) in enumerate(second.commands)]
    assert summarise(first)['command_jitter_ms']['p99'] == 0.0
    assert summarise(first, second)['command_jitter_ms']['p99'] == pytest.approx(5.0)
    assert summarise(first)['command_rate_hz'] == pytest.approx(20.0)


def test_lock_step_has_neither_jitter_nor_rate():
    summary = summarise(episode(), real_time=False)
    assert math.isnan(summary['command_rate_hz'])
    assert math.isnan(summary['command_jitter_ms']['p50'])


def test_an_episode_without_an_applied_action_is_a_problem():
    assert report.problems(summarise(episode())) == []
    problems = report.problems(summarise(episode(), episode(applied=0)))
    assert problems == ["No action was applied in the episode 'pick up the bowl'."]
    nothing = report.problems(summarise(RecordedEpisode('move', 0)))
    assert {'No inference finished.', 'The visualizer drew nothing.'} <= {*nothing}


def test_json_has_null_where_there_is_no_figure(tmp_path):
    report.write_json(tmp_path / 'demo.json', summarise(RecordedEpisode('move', 0)))
    figures = json.loads((tmp_path / 'demo.json').read_text())
    assert figures['inference_ms'] == {'p50': None, 'p95': None, 'p99': None}


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """World, policy, visualizer and recorder over DDS for five seconds of the world's time.

    In lock-step, so that no machine is too slow.
    """
    out = tmp_path_factory.mktemp('demo')
    environment = {key: value for key, value in os.environ.items() if key != 'ROS_DOMAIN_ID'}
    done = subprocess.run(
        [sys.executable, '-m', 'vla_policy_node.cli', 'demo', '--episodes', '1', '--steps', '100',
         '--pace', 'lock-step', '--out', str(out)],
        capture_output=True, text=True, timeout=560, env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


@pytest.mark.timeout(600)  # other programs may have the processor, too
def test_the_demo_runs_its_processes_and_leaves_figures_and_pictures(demo):
    out, stdout = demo
    assert 'untrained' not in stdout
    figures = json.loads((out / 'demo.json').read_text())
    assert figures['episodes'] == 1
    assert figures['tasks'][0]['instruction'] == (
        'pick up the alphabet soup and place it in the basket')
    assert figures['actions_applied'] >= 90
    assert figures['commands_sent'] >= figures['actions_applied']
    assert 0 < figures['tokens_kept_mean'] < figures['tokens_total'] == 512
    assert figures['inference_ms']['p50'] > 0
    for name in ('filmstrip_0.png', 'tokens_third_person.png', 'tokens_wrist.png'):
        picture = np.asarray(Image.open(out / name))
        assert picture.std() > 10, f'{name} is blank'
    with Image.open(out / 'overlay.gif') as video:
        assert video.n_frames > 1
    assert (out / 'overlay.mp4').stat().st_size > 1000


@pytest.mark.timeout(600)
def test_the_bag_of_the_demo_is_replayed_dense_against_lightvla_in_under_a_minute(demo, tmp_path):
    """The demo ran LightVLA, so the replay must find its commands again in every digit.

    With as many threads: on some processors another number of them is another last digit.
    """
    threads = max(1, len(os.sched_getaffinity(0)) - 1)  # those of the node
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, '-m', 'vla_policy_node', 'replay', str(demo[0] / 'bag'), '--config',
         'dense', '--against', 'lightvla', '--threads', str(threads),
         '--out', str(tmp_path / 'out')],
        capture_output=True, text=True, timeout=560, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Of the processor: other programs may share it.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60.0
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert 4.5 < report['bag']['duration_s'] < 7.0
    assert report['a']['inferences'] >= 12
    dense, lightvla = report['a']['actions'], report['b']['actions']
    assert lightvla['periods'] >= 90
    assert max(row['max'] for row in lightvla['sent_error']) == 0.0
    assert max(row['max'] for row in dense['sent_error']) > 0.0
    assert report['b']['gflops']['mean'] < report['a']['gflops']['mean']
    assert len(list((tmp_path / 'out').glob('different_*.jpg'))) == 10
