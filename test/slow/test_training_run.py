"""Runs of a few steps on made-up demonstrations: they learn, resume and leave a policy."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_data import CAMERAS, make_demonstrations, small_config

from vla_policy_node.outputs.folder import claim
from vla_policy_node.policy.interface import InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime.small import create_small_checkpoint
from vla_policy_node.training.config import TrainingConfig, read_training_config
from vla_policy_node.training.curves import read_metrics
from vla_policy_node.training.stage_run import COMMAND, HEADS, Run, train
from vla_policy_node.training.trainer import FINAL_RATE, STATE, learning_rate

CLONE = TrainingConfig(
    stage='behavior_cloning', steps=6, batch=8, learning_rate=1e-3, warmup_steps=2, tokens_kept=6,
    losses={'action': 1.0, 'token': 0.2, 'point': 0.2, 'attend': 0.1, 'readout': 0.5},
    validate_every_steps=3, validation_frames=8)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('training')
    start = create_small_checkpoint(root / 'start', config=small_config())
    return start, make_demonstrations(root / 'demos')


def run_in(out, folders, config=CLONE, **changes):
    start, demonstrations = folders
    return Run(config, start, demonstrations, None, out, **changes)


def weights(run):
    return torch.load(run.out / STATE, weights_only=True)


def test_a_run_leaves_a_policy_that_acts(folders, tmp_path):
    checkpoint = train(run_in(tmp_path / 'run', folders))
    assert json.loads((checkpoint / 'config.json').read_text())['trained'] is True
    policy = LocalPolicy.load(checkpoint, methods=('lightvla',))
    gray = np.full((56, 56, 3), 128, np.uint8)
    chunk = policy.infer(InferenceRequest(
        Observation(dict.fromkeys(CAMERAS, gray), np.zeros(8), 'pick it up')))
    assert chunk.actions.shape == (8, 7)
    assert policy.description.statistics_key == json.loads(
        (folders[1] / 'dataset_statistics.json').read_text()).popitem()[0]
    assert (tmp_path / 'run' / HEADS).is_file()
    assert (tmp_path / 'run' / 'curves.png').stat().st_size > 10_000
    assert list((tmp_path / 'run' / 'tensorboard').iterdir())


def test_a_policy_runs_lightvla_as_it_was_trained(folders, tmp_path):
    for bias in (True, False):
        config = replace(
            CLONE, stage='lightvla', tokens_kept=0, steps=1, losses={'action': 1.0},
            objective={'multiplicity_bias': bias})
        checkpoint = train(run_in(tmp_path / str(bias), folders, config))
        described = LocalPolicy.load(checkpoint, methods=('lightvla',)).description
        assert described.method_settings['lightvla']['multiplicity_bias'] is bias
        chosen = LocalPolicy.load(
            checkpoint, methods=('lightvla',),
            method_settings={'lightvla': {'multiplicity_bias': not bias}}).description
        assert chosen.method_settings['lightvla']['multiplicity_bias'] is not bias


def test_an_interrupted_run_goes_on_to_the_same_bits(folders, tmp_path, monkeypatch):
    straight, stopped = run_in(tmp_path / 'a', folders), run_in(tmp_path / 'b', folders)
    train(straight)

    from vla_policy_node.training.trainer import Trainer

    optimise = Trainer._optimise

    def interrupted_in_step_4(trainer):
        if trainer.step == 3:
            signal.raise_signal(signal.SIGINT)
        return optimise(trainer)

    monkeypatch.setattr(Trainer, '_optimise', interrupted_in_step_4)
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    assert weights(stopped)['step'] == 4
    monkeypatch.setattr(Trainer, '_optimise', optimise)
    train(stopped)
    expected, found = weights(straight), weights(stopped)
    for kind in ('weights', 'average'):
        for name, tensor in expected[kind].items():
            assert torch.equal(tensor, found[kind][name]), name
    assert read_metrics(straight.out) == read_metrics(stopped.out)


def test_grounding_finds_the_named_square_and_attends_to_it(folders, tmp_path):
    config = replace(
        CLONE, stage='locate', steps=100, batch=16, learning_rate=5e-3, tokens_kept=0,
        losses={'token': 1.0, 'point': 1.0, 'attend': 1.0}, chunk_length=1, ema=0.9,
        validate_every_steps=100)
    train(run_in(tmp_path / 'run', folders, config))
    logged = [line for line in read_metrics(tmp_path / 'run') if line['kind'] == 'train']
    for loss in ('token', 'attend'):
        assert logged[-1][loss] < 0.6 * logged[0][loss], loss


@pytest.mark.parametrize('noise', ['uniform', 'gumbel'])
def test_the_pruner_is_trained_with_its_projector_and_not_the_encoders(folders, tmp_path, noise):
    config = replace(
        CLONE, stage='lightvla', tokens_kept=0, losses={'action': 1.0}, objective={'noise': noise},
        frozen=('vision_backbone',))
    run = run_in(tmp_path / 'run', folders, config)
    train(run)
    names = weights(run)['weights']
    assert 'model.projector.fc1.weight' in names
    assert not [name for name in names if 'vision_backbone' in name]
    kept = [line['tokens'] for line in read_metrics(run.out) if line['kind'] == 'train']
    assert all(1 <= count <= 32 for count in kept)


def test_low_rank_updates_end_up_in_the_weights(folders, tmp_path):
    run = run_in(tmp_path / 'run', folders, replace(CLONE, lora_rank=4, learning_rate=1e-2))
    checkpoint = train(run)
    assert any('lora_' in name for name in weights(run)['weights'])
    from safetensors.torch import load_file

    before = load_file(folders[0] / 'model.safetensors')
    after = load_file(checkpoint / 'model.safetensors')
    assert before.keys() == after.keys()
    changed = 'language_model.model.layers.0.self_attn.q_proj.weight'
    assert not torch.equal(before[changed], after[changed])


def test_the_learning_rate_warms_up_and_falls_to_a_twentieth():
    config = replace(CLONE, steps=100, warmup_steps=10)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(FINAL_RATE * 1e-3)


def test_settings_that_are_not_known_are_refused_in_one_sentence(tmp_path):
    path = tmp_path / 'stage.yaml'
    path.write_text('stage: clone\nsteps: 10\nlerning_rate: 1.0\n')
    with pytest.raises(ValueError, match='no entry'):
        read_training_config(path, {})
    path.write_text('stage: clone\nsteps: 10\nlosses: {happiness: 1}\n')
    with pytest.raises(ValueError, match='no loss'):
        read_training_config(path, {})
    path.write_text('stage: dream\nsteps: 10\n')
    with pytest.raises(ValueError, match='stage must be'):
        read_training_config(path, {})


def test_numbers_are_read_as_people_write_them(tmp_path):
    path = tmp_path / 'stage.yaml'
    path.write_text('stage: clone\nsteps: 10\nlearning_rate: 1e-3\nlosses: {action: 1}\n')
    assert read_training_config(path, {}).learning_rate == 1e-3
    for wrong in ('learning_rate: fast', 'steps: 1.5', 'noise_decays: 1', 'losses: 3'):
        path.write_text(f'stage: lightvla\nsteps: 10\n{wrong}\n')
        with pytest.raises(ValueError, match='takes a'):
            read_training_config(path, {})


@pytest.mark.parametrize('state', [
    b'', {'step': 1}, {'step': 'two', 'weights': {}, 'average': {}, 'optimiser': {}},
])
def test_a_damaged_state_is_refused_with_a_sentence(folders, tmp_path, state):
    """As a run leaves it that was interrupted; what is sealed and changed is not read at all."""
    run = run_in(tmp_path / 'run', folders)
    claim(run.out, [STATE], COMMAND)
    if state:
        torch.save(state, run.out / STATE)
    else:
        (run.out / STATE).write_bytes(state)
    with pytest.raises(ValueError, match=rf'{STATE} .*\.$'):
        train(run)
