"""`vla dataset`: sentences and exit codes, and what Ctrl-C leaves."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('pyarrow')
pytest.importorskip('av')
from training_data import make_demonstrations
from typer.testing import CliRunner

from vla_policy_node.cli.tree import app
from vla_policy_node.lerobot import libraries

PACK = Path(__file__).parents[1] / 'data' / 'lerobot_v3'
SLOWLY = '''
import sys, time
from vla_policy_node.lerobot import parts
write = parts.EpisodeParts.write
def slow(self, number, *rest):
    write(self, number, *rest)
    print('wrote', number, flush=True)
    time.sleep(0.2)
parts.EpisodeParts.write = slow
from vla_policy_node.cli import main
sys.argv = ['vla', *sys.argv[1:]]
main()
'''


def vla(*arguments):
    return CliRunner().invoke(app, ['dataset', *map(str, arguments)])


@pytest.mark.parametrize(('arguments', 'sentence'), [
    (['info', '{}/nothing'], 'hf download --repo-type dataset'),
    (['import', '{}/nothing', '--out', '{}/demos'], 'There is no folder'),
    (['import', str(PACK / 'dataset_video'), '--out', '{}/demos', '--camera', 'top'], 'NAME=KEY'),
    (['import', str(PACK / 'dataset_video'), '--out', '{}/demos', '--contract', 'joint_arm'],
     'name another feature with --action KEY'),
    (['export', '{}/nothing', '--out', '{}/set'], 'no folder of demonstrations'),
    (['from-bag', '{}/nothing', '--out', '{}/set'], 'There is no bag'),
    (['from-bag', '{}/nothing', '--out', '{}/set', '--stamps', 'sun'], '--stamps is'),
])
def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(tmp_path, arguments, sentence):
    done = vla(*[part.format(tmp_path) for part in arguments])
    assert done.exit_code == 2 and sentence in done.output.replace('\n', ' ')
    assert not [*tmp_path.iterdir()]


def test_a_dataset_is_described_and_imported(tmp_path):
    assert 'Pick up the red cube.' in vla('info', PACK / 'dataset_image').output
    done = vla('import', PACK / 'dataset_image', '--out', tmp_path / 'demos')
    assert done.exit_code == 0 and '3 demonstrations of 15 steps at 20 Hz' in done.output


@pytest.mark.parametrize('name', ['parquet', 'arrow', 'video'])
def test_a_library_that_is_not_installed_is_named_with_its_command(monkeypatch, name):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(libraries, 'import_module', missing)
    with pytest.raises(ValueError, match=r"is not installed.*pip install 'vla_policy_node\[data"):
        getattr(libraries, name)()


def test_after_an_interrupt_there_is_no_dataset_and_the_command_goes_on(tmp_path):
    make_demonstrations(tmp_path / 'demos', episodes=6, steps=6)
    command = [sys.executable, '-c', SLOWLY, 'dataset', 'export', str(tmp_path / 'demos'),
               '--out', str(tmp_path / 'set'), '--images']
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not running.stdout.readline().startswith('wrote 1'):
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130 and 'the same command goes on' in errors
    assert not (tmp_path / 'set').exists()
    done = vla('export', tmp_path / 'demos', '--out', tmp_path / 'set', '--images')
    assert done.exit_code == 0 and '6 episodes of 36 rows' in done.output
    assert '6 of them new' not in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ['demos', 'set']
