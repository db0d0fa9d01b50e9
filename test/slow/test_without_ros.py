"""What runs without ROS, and without torch: real commands, in processes that lack the packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from made_up_episodes import tiny_checkpoint
from replay_bag import make_bag
from training_data import make_demonstrations, small_config

from vla_policy_node.runtime.small import create_small_checkpoint

ROOT = Path(__file__).parents[2]
ROS = ['rclpy', 'rosidl_*', '*_msgs', '*_interfaces', '*_srvs', 'rpyutils', 'ament_*', 'launch*']
COMMANDS = [
    *([name] for name in (
        'bringup', 'instruct', 'demo', 'record', 'replay', 'tasks', 'demos', 'train', 'eval',
        'compress', 'new-checkpoint', 'check', 'doctor', 'bench')),
    *(['bench', name] for name in ('node', 'policy', 'selection', 'methods', 'faults', 'soak')),
    [],
]
# Python runs it at the start of every process, those that a command starts too.
SITE = '''
import fnmatch, os, sys

class Lacking:
    def find_spec(self, name, path=None, target=None):
        top = name.partition('.')[0]
        if any(fnmatch.fnmatch(top, pattern) for pattern in os.environ['LACKING'].split()):
            raise ModuleNotFoundError(f'There is no {name} here.', name=name)

sys.meta_path.insert(0, Lacking())
'''


@pytest.fixture
def lacking(tmp_path):
    """Run Python without some packages; return what it printed."""
    site = tmp_path / 'site'
    site.mkdir()
    (site / 'sitecustomize.py').write_text(SITE)

    def run(packages, *arguments):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True,
            check=False, timeout=300, env={
                **os.environ, 'PYTHONPATH': f'{site}:{ROOT}', 'LACKING': ' '.join(packages),
                'COLUMNS': '150'})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def vla(lacking):
    """Run `vla` without ROS."""
    return lambda *arguments: lacking(ROS, '-m', 'vla_policy_node', *arguments)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp('tiny') / 'tiny')


@pytest.fixture(scope='module')
def demos(tmp_path_factory):
    return make_demonstrations(tmp_path_factory.mktemp('demos') / 'demos')


def test_what_is_lacking_is_lacking(lacking):
    with pytest.raises(AssertionError, match='There is no rclpy here'):
        lacking(ROS, '-c', 'import rclpy')
    with pytest.raises(AssertionError, match='There is no vla_msgs here'):
        lacking(ROS, '-c', 'from vla_msgs.msg import PolicyInfo')


def test_every_command_explains_itself_without_ros_and_torch(lacking):
    script = '; '.join([
        'import io, contextlib', 'from typer.testing import CliRunner',
        'from vla_policy_node.cli import app', 'run = CliRunner().invoke',
        f'print([run(app, [*words, "--help"]).exit_code for words in {COMMANDS}])'])
    output = lacking([*ROS, 'torch', 'mujoco', 'rosbags'], '-c', script)
    assert output.strip() == str([0] * len(COMMANDS))


def test_check(vla, checkpoint):
    assert 'PASS' in vla('check', checkpoint).upper()


def test_train(vla, demos, tmp_path):
    start = create_small_checkpoint(tmp_path / 'start', config=small_config())
    vla('train', 'clone', '--from', start, '--demos', demos, '--out', tmp_path / 'run',
        '--set', 'steps=1', '--set', 'batch=4', '--set', 'validate_every_steps=1',
        '--set', 'validation_frames=4', '--set', 'tokens_kept=6')
    assert list((tmp_path / 'run').rglob('model.safetensors'))


def test_eval(vla, checkpoint, tmp_path):
    """Two processes: what a worker imports counts, too."""
    vla('eval', '--checkpoint', checkpoint, '--method', 'dense', '--tasks', '0', '--episodes', '2',
        '--horizon', '2', '--workers', '2', '--json', tmp_path / 'evaluation.json')
    assert (tmp_path / 'evaluation.json').is_file()


def test_bench_policy(vla, checkpoint, demos, tmp_path):
    vla('bench', 'policy', '--checkpoint', checkpoint, '--demos', demos, '--repetitions', '1',
        '--warm-up', '1', '--pictures', '1', '--only', 'dense, plain, float32',
        '--json', tmp_path / 'policy.json')
    assert json.loads((tmp_path / 'policy.json').read_text())['contenders']


def test_bench_methods(vla, checkpoint, tmp_path):
    vla('bench', 'methods', '--checkpoint', checkpoint, '--method', 'random_tokens:count=5',
        '--tasks', '0', '--no-success', '--frames-episodes', '1', '--horizon', '9',
        '--out', tmp_path / 'methods')
    assert (tmp_path / 'methods' / 'methods.md').is_file()


def test_replay_reads_and_writes_bags_with_rosbags_alone(vla, checkpoint, tmp_path):
    bag = make_bag(tmp_path / 'bag', seconds=0.5)
    vla('replay', bag, '--checkpoint', checkpoint, '--config', 'dense', '--against',
        'random_tokens:count=8', '--mcap', '--no-video', '--out', tmp_path / 'report')
    report = json.loads((tmp_path / 'report' / 'report.json').read_text())
    assert report['a']['inferences'] > 0
    written = yaml.safe_load((tmp_path / 'report' / 'foxglove' / 'metadata.yaml').read_text())
    topics = {entry['topic_metadata']['name'] for entry in
              written['rosbag2_bagfile_information']['topics_with_message_count']}
    assert topics == {'/overlay', '/difference', '/a/command', '/b/command', '/a/action_chunk',
                      '/b/action_chunk'}


NODE = '''
import sys
import numpy as np
import rclpy

from vla_policy_node.loop import parameters
from vla_policy_node.nodes.policy_node import PolicyNode
from vla_policy_node.policy.interface import ActionChunk, PolicyDescription

class Elsewhere:
    """A policy that another machine computes."""

    description = PolicyDescription(
        architecture='remote', chunk_length=8, visual_tokens=32,
        action_range=((-1.0,) * 6 + (0.0,), (1.0,) * 7))

    def infer(self, request):
        return ActionChunk(np.zeros((8, 7)), (), {'network': 1.0}, 'dense', 32, 32)

    def check_instruction(self, instruction):
        pass

    def warm_up(self, instruction):
        pass

    def reset(self):
        pass

    def close(self):
        pass

parameters.load_policy = lambda **options: Elsewhere()
rclpy.init(args=['--ros-args', '-p', 'checkpoint:=elsewhere'])
node = PolicyNode()
print(node.trigger_configure(), node.trigger_activate(), node.trigger_deactivate())
node.trigger_shutdown()
node.destroy_node()
assert 'torch' not in sys.modules
'''


def test_the_node_starts_without_torch_if_its_policy_is_elsewhere(lacking):
    output = lacking(['torch', 'torchvision', 'safetensors', 'mujoco'], '-c', NODE)
    assert output.count('SUCCESS') == 3
