"""A small pi0 goes through the stages to LightVLA, in LeRobot's layout."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_data import CAMERAS, make_demonstrations, small_config

from vla_policy_node.commands.train import stage_config, start_of
from vla_policy_node.families.pi0 import Pi0Family
from vla_policy_node.policy.interface import InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime import small
from vla_policy_node.runtime.small_pi0 import create_small_pi0
from vla_policy_node.training import stage_run
from vla_policy_node.training.curves import read_metrics
from vla_policy_node.training.stage_run import Run, train
from vla_policy_node.training.trainer import STATE, Trainer

FEW = ('steps=2', 'batch=8', 'validate_every_steps=2', 'validation_frames=4',
       'repeated_diffusion_steps=2')


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('pi0')
    start = create_small_pi0(root / 'start', small_config())
    return start, make_demonstrations(root / 'demos'), make_demonstrations(
        root / 'scenes', layout='scattered')


def run_of(stage, start, folders, out, *changes, scenes=True):
    _, demonstrations, still = folders
    return Run(
        stage_config(stage, None, [*FEW, *changes]), start,
        None if stage in ('grounding', 'localization') else demonstrations,
        still if scenes else None, out)


def test_the_first_stage_makes_one_of_its_sizes(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    config = stage_config('grounding', None, ['family=pi0', 'layers=1', 'width=128'])
    start = start_of(config, None)
    policy = LocalPolicy.load(start, methods=())
    assert policy.config.architecture == (
        'pi0: SigLIP 4x96, Gemma 1x128, expert 1x88, 10 steps')
    assert not policy.config.trained
    with pytest.raises(ValueError, match=r"^family must be 'openvla_oft' or 'pi0', not 'pi1'\.$"):
        stage_config('grounding', None, ['family=pi1'])


def test_the_default_size_fits_what_is_shipped():
    from vla_policy_node.families import create_network
    from vla_policy_node.runtime.small_pi0 import small_pi0_config

    network = create_network(small_pi0_config(small.CONFIG))
    assert sum(weight.numel() for weight in network.parameters()) < 5e6


def test_stages_lead_to_a_policy_in_lerobots_layout(folders, tmp_path):
    start = folders[0]
    for stage, changes, scenes in (
            ('localization', ['tokens_kept=6'], True),
            ('behavior_cloning', ['tokens_kept=6'], True), ('lightvla', [], False)):
        start = train(run_of(
            stage, start, folders, tmp_path / stage, *changes, scenes=scenes))
    logged = read_metrics(tmp_path / 'behavior_cloning')
    assert {'flow', 'attend', 'readout', 'action'} <= logged[-1].keys()
    policy = LocalPolicy.load(start, methods=('lightvla',))
    assert policy.config.trained
    assert policy.config.chunk_length == 8
    assert policy.description.method_settings['lightvla']['multiplicity_bias'] is True
    gray = np.full((56, 56, 3), 128, np.uint8)
    chunk = policy.infer(InferenceRequest(
        Observation(dict.fromkeys(CAMERAS, gray), np.zeros(8), 'pick it up')))
    assert chunk.actions.shape == (8, 7)
    assert np.isfinite(chunk.actions).all()
    (entry,) = json.loads((folders[1] / 'dataset_statistics.json').read_text()).values()
    found = Pi0Family().load_statistics(start, policy.config)
    np.testing.assert_allclose(found.action.origin, entry['action']['mean'], rtol=1e-6)
    np.testing.assert_allclose(found.action.width_back, entry['action']['std'], rtol=1e-6)
    np.testing.assert_allclose(found.state.width_back, entry['proprio']['std'], rtol=1e-6)
    assert 'trained' not in json.loads((start / 'config.json').read_text())


def test_an_interrupted_run_goes_on_to_the_same_bits(folders, tmp_path, monkeypatch):
    straight, stopped = (
        run_of('behavior_cloning', folders[0], folders, tmp_path / name, 'steps=3',
               'tokens_kept=6') for name in 'ab')
    train(straight)
    optimise = Trainer._optimise

    def interrupted_in_step_2(trainer):
        if trainer.step == 1:
            signal.raise_signal(signal.SIGINT)
        return optimise(trainer)

    monkeypatch.setattr(Trainer, '_optimise', interrupted_in_step_2)
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    monkeypatch.setattr(Trainer, '_optimise', optimise)
    train(stopped)
    expected, found = (
        torch.load(run.out / STATE, weights_only=True) for run in (straight, stopped))
    for kind in ('weights', 'average'):
        for name, tensor in expected[kind].items():
            assert torch.equal(tensor, found[kind][name]), name
    assert read_metrics(straight.out) == read_metrics(stopped.out)


@pytest.mark.parametrize(('stage', 'changes', 'sentence'), [
    ('cogact', [], 'Stage cogact does not train policies whose actions follow a flow, by the'),
    ('deer', [], 'Stage deer does not train policies whose actions follow a flow'),
    ('mole', [], 'Stage mole does not train policies whose actions follow a flow'),
    ('behavior_cloning', ['losses={noise: 1}'], 'Stage behavior_cloning does not train policies'),
])
def test_what_a_flow_does_not_learn_by_is_refused(
        stage, changes, sentence, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(stage_run, 'load_model', None)
    run = run_of(stage, folders[0], folders, tmp_path / 'run', *changes, scenes=False)
    with pytest.raises(ValueError, match=f'^{sentence}'):
        train(run)
    assert not run.out.exists()


def test_a_size_that_the_checkpoint_does_not_have_is_refused(folders, tmp_path):
    run = run_of('grounding', folders[0], folders, tmp_path / 'run', 'family=pi0', 'width=192')
    with pytest.raises(ValueError, match=r'^family=pi0, width=192 is for a new network, and '):
        train(run)


def test_a_policy_trained_by_regression_does_not_learn_a_flow(folders, tmp_path):
    other = small.create_small_checkpoint(tmp_path / 'oft', config=small_config())
    run = run_of('behavior_cloning', other, folders, tmp_path / 'run')
    run = replace(run, config=replace(run.config, losses={'flow': 1.0}))
    with pytest.raises(ValueError, match="by the loss 'flow', which needs a policy whose "):
        train(run)
