"""A run goes on from what it was made from, further than first asked, and alone in its folder."""

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_data import make_demonstrations, small_config

from vla_policy_node.outputs.folder import LOCK, alone, claim
from vla_policy_node.outputs.listing import LIST
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime.small import create_small_checkpoint
from vla_policy_node.training import run_record
from vla_policy_node.training.config import TrainingConfig
from vla_policy_node.training.run_record import RECORD
from vla_policy_node.training.stage_run import CHECKPOINT, COMMAND, HEADS, Run, train
from vla_policy_node.training.trainer import STATE

CONFIG = TrainingConfig(
    stage='behavior_cloning', steps=2, batch=4, warmup_steps=1, tokens_kept=6,
    losses={'action': 1.0}, validate_every_steps=100, validation_frames=4)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Return a run of two steps that is finished; whoever changes it works on a copy."""
    root = tmp_path_factory.mktemp('resumed')
    start = create_small_checkpoint(root / 'start' / 'checkpoint', config=small_config())
    run = Run(CONFIG, start, make_demonstrations(root / 'demos'), None, root / 'run')
    train(run)
    return run


@pytest.fixture
def run(made, tmp_path):
    """Return a run in a folder that can be changed, with the files of the finished one."""
    subprocess.run(['cp', '-r', '--preserve=mode', made.out, tmp_path / 'run'], check=True)
    return replace(made, out=tmp_path / 'run')


def record(run):
    return json.loads((run.out / RECORD).read_text())


def test_the_record_is_the_same_text_for_the_same_inputs(made, tmp_path):
    again = replace(made, out=tmp_path / 'again')
    train(again)
    assert (again.out / RECORD).read_bytes() == (made.out / RECORD).read_bytes()
    assert str(made.out.parent) not in (made.out / RECORD).read_text()


def test_a_finished_run_goes_on_with_more_steps_and_leaves_one_action_head(run):
    checkpoint = train(replace(run, config=replace(CONFIG, steps=3)))
    heads = [path.name for path in checkpoint.glob('action_head*')]
    assert heads == ['action_head--3_checkpoint.safetensors']
    assert LocalPolicy.load(checkpoint, methods=()).description.spec.actions
    assert record(run)['lengths'] == [
        {'from_step': 0, 'steps': 2}, {'from_step': 2, 'steps': 3}]


def test_fewer_steps_than_are_done_are_refused_and_change_nothing(run):
    before = {path: path.stat().st_mtime_ns for path in run.out.rglob('*') if path.is_file()}
    with pytest.raises(ValueError, match='at step 2, beyond steps=1;'):
        train(replace(run, config=replace(CONFIG, steps=1)))
    after = {path: path.stat().st_mtime_ns for path in run.out.rglob('*') if path.is_file()}
    listing = run.out / '.vla_output.json'
    assert before.pop(listing) and after.pop(listing) and before == after


def other_base(run, root):
    return replace(run, start=create_small_checkpoint(
        root / 'other' / 'checkpoint', config=small_config(), seed=1))


def other_heads(run, root):
    """Lay the heads of this run beside a checkpoint with the same bytes."""
    start = root / 'beside' / 'checkpoint'
    start.parent.mkdir()
    start.symlink_to(run.start)
    (start.parent / HEADS).write_bytes((run.out / HEADS).read_bytes())
    return replace(run, start=start)


def other_demonstrations(run, root):
    return replace(run, demonstrations=make_demonstrations(root / 'fewer', episodes=25))


def other_settings(run, root):
    return replace(run, config=replace(CONFIG, learning_rate=2e-3))


def scenes_as_well(run, root):
    return replace(run, scenes=run.demonstrations)


def two_processes(run, root):
    return replace(run, processes=2)


@pytest.mark.parametrize(('change', 'named'), [
    (other_base, 'another checkpoint .*--from'),
    (other_heads, 'other grounding heads .*--from'),
    (other_demonstrations, 'other demonstrations .*--demos'),
    (scenes_as_well, 'other scenes .*--scenes'),
    (other_settings, 'learning_rate=0.0005, not 0.002'),
    (two_processes, 'processes=1, not 2'),
])
def test_a_run_does_not_go_on_from_something_else(change, named, run, tmp_path):
    with pytest.raises(ValueError, match=rf'\A[^\n]*{named}[^\n]*\.\Z'):
        train(change(run, tmp_path))


def test_another_machine_is_refused_unless_it_is_named_and_then_written_down(run, monkeypatch):
    monkeypatch.setattr(run_record, 'processor_name', lambda: 'Another Processor')
    longer = replace(run, config=replace(CONFIG, steps=3))
    with pytest.raises(ValueError, match=r'machine is Another Processor, .*--despite machine'):
        train(longer)
    train(replace(longer, despite=('machine',)))
    assert record(run)['machine'] == 'Another Processor'
    assert [entry['step'] for entry in record(run)['despite']] == [2]
    with pytest.raises(ValueError, match="takes code, machine, versions, not 'demonstrations'"):
        replace(run, despite=('demonstrations',))


@pytest.mark.parametrize('text', [
    '', '[]', '{}', '{"format": 2}', '{"format": 1, "lengths": 3, "settings": {}}',
    '{"format": 1, "lengths": [{}], "settings": {}, "versions": {}, "despite": [], "base": ""}'])
def test_a_damaged_record_is_refused_with_a_sentence(text, made, tmp_path):
    now = record(made)
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(ValueError, match=rf'{RECORD} .*\.$'):
        run_record.go_on(tmp_path, now, 2)


def test_two_runs_do_not_write_into_one_folder(run, tmp_path):
    """Nor is the list of the one in progress touched by what is refused for another reason."""
    claim(run.out, [STATE], COMMAND)  # as a run in progress has it
    before = (run.out / LIST).read_bytes()
    for other in (run, replace(run, demonstrations=tmp_path / 'nowhere')):
        with alone(run.out), pytest.raises(ValueError, match='Another process writes into'):
            train(other)
    assert (run.out / LOCK).read_bytes() == b''
    assert (run.out / LIST).read_bytes() == before


def test_a_refused_run_leaves_no_folder(run, tmp_path):
    with pytest.raises(ValueError, match='is no folder of demonstrations'):
        train(replace(run, out=tmp_path / 'fresh', demonstrations=tmp_path / 'nowhere'))
    assert not (tmp_path / 'fresh').exists()


def test_sigterm_saves_and_the_same_run_goes_on(run, monkeypatch):
    from vla_policy_node.training.trainer import Trainer

    longer = replace(run, config=replace(CONFIG, steps=4))
    optimise = Trainer._optimise

    def terminated_in_step_3(trainer):
        signal.raise_signal(signal.SIGTERM)
        return optimise(trainer)

    monkeypatch.setattr(Trainer, '_optimise', terminated_in_step_3)
    with pytest.raises(KeyboardInterrupt):
        train(longer)
    assert torch.load(run.out / STATE, weights_only=True)['step'] == 3
    assert record(run)['finished'] is False
    monkeypatch.setattr(Trainer, '_optimise', optimise)
    train(longer)
    assert record(run)['finished'] is True


def test_a_full_disk_is_a_sentence_and_leaves_what_was_saved(run):
    before = (run.out / STATE).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(ValueError, match='cannot be written at step 3; make room'):
            train(replace(run, config=replace(CONFIG, steps=3)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert (run.out / STATE).read_bytes() == before
    assert not [*run.out.rglob('*.partial')]
    assert (run.out / CHECKPOINT / 'config.json').is_file()


def test_sigterm_to_the_parent_of_two_processes_saves(made, tmp_path):
    """As `kill PID`, or a scheduler that signals one process of a job; both end with one state."""
    out = tmp_path / 'run'
    code = (
        'import sys; from pathlib import Path; import test_training_resumed as t\n'
        'from dataclasses import replace\n'
        "if __name__ == '__main__':\n"
        '    start, demos, out = map(Path, sys.argv[1:])\n'
        '    config = replace(t.CONFIG, steps=100000)\n'
        '    try: t.train(t.Run(config, start, demos, None, out, processes=2))\n'
        '    except KeyboardInterrupt: sys.exit(130)\n')
    script = tmp_path / 'script.py'
    script.write_text(code)
    paths = [str(Path(__file__).parent), *sys.path]
    process = subprocess.Popen(
        [sys.executable, script, made.start, made.demonstrations, out],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)})
    try:
        while not (out / 'metrics.jsonl').exists() or not (out / 'metrics.jsonl').stat().st_size:
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 130
    finally:
        process.kill()
    assert torch.load(out / STATE, weights_only=True)['step'] >= 1
