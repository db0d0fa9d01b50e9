"""Stage cogact: a diffusion head on the vision encoders and language model of another policy."""

import contextlib
import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_data import CAMERAS, make_demonstrations, small_config

from vla_policy_node.families import read_model_config
from vla_policy_node.policy.interface import InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime import loading
from vla_policy_node.runtime.small import create_small_checkpoint
from vla_policy_node.training import cognition, stages
from vla_policy_node.training.cognition import CognitionData
from vla_policy_node.training.config import TrainingConfig
from vla_policy_node.training.curves import read_metrics
from vla_policy_node.training.stage_run import Run, train
from vla_policy_node.training.stage_run import _data as make_data
from vla_policy_node.training.trainer import STATE, Trainer

COGACT = TrainingConfig(
    stage='cogact', steps=4, batch=8, learning_rate=1e-3, warmup_steps=2, tokens_kept=6,
    losses={'noise': 1.0, 'token': 0.2, 'point': 0.2, 'attend': 0.1, 'readout': 0.5},
    chunk_length=16, objective={'head_blocks': 1, 'head_width': 24, 'head_heads': 2},
    repeated_diffusion_steps=4,
    validate_every_steps=2, validation_frames=8)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('training')
    start = create_small_checkpoint(root / 'start', config=small_config())
    return start, make_demonstrations(root / 'demos')


def run_in(out, folders, config=COGACT):
    start, demonstrations = folders
    return Run(config, start, demonstrations, None, out)


def weights(run):
    return torch.load(run.out / STATE, weights_only=True)


def test_what_sees_and_reads_stays_and_the_head_is_new(folders):
    config = read_model_config(folders[0])
    start = loading.load_model(folders[0], config, 'cpu', 'float32')
    model = stages.named('cogact').changed_model(start, COGACT)
    for name, tensor in start.state_dict().items():
        if not name.startswith('action_head.'):
            assert torch.equal(model.state_dict()[name], tensor), name
    assert model.config.causal
    assert (model.config.cameras, model.config.proprio) == (2, True)
    # The authors' start: no noise is seen in anything yet.
    noise = model.action_head(torch.randn(1, 16, 7), torch.tensor([3]), torch.randn(1, 1, 32))
    assert not noise.any()


def test_a_run_leaves_a_policy_that_resumes_exactly_and_acts(folders, tmp_path, monkeypatch):
    straight, stopped = run_in(tmp_path / 'a', folders), run_in(tmp_path / 'b', folders)
    checkpoint = train(straight)
    optimise = Trainer._optimise

    def interrupted_in_step_3(trainer):
        if trainer.step == 2:
            signal.raise_signal(signal.SIGINT)
        return optimise(trainer)

    monkeypatch.setattr(Trainer, '_optimise', interrupted_in_step_3)
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    assert weights(stopped)['step'] == 3
    monkeypatch.setattr(Trainer, '_optimise', optimise)
    train(stopped)
    expected, found = weights(straight), weights(stopped)
    for kind in ('weights', 'average'):
        for name, tensor in expected[kind].items():
            assert torch.equal(tensor, found[kind][name]), name
    metrics = read_metrics(straight.out)
    assert metrics == read_metrics(stopped.out)
    assert {'noise', 'token', 'point', 'attend', 'readout'} <= metrics[0].keys()
    assert any('action_xyz' in line for line in metrics if line['kind'] == 'validation')

    document = json.loads((checkpoint / 'config.json').read_text())
    assert (document['head'], document['chunk_length']) == ('cogact', 16)
    policy = LocalPolicy.load(checkpoint, methods=['efficientvla_cache'])
    gray = np.full((56, 56, 3), 128, np.uint8)
    chunk = policy.infer(InferenceRequest(
        Observation(dict.fromkeys(CAMERAS, gray), np.zeros(8), 'pick it up')))
    assert chunk.actions.shape == (16, 7)
    assert policy.description.trained


def test_a_cogact_policy_goes_on_with_its_head(folders, tmp_path):
    first = train(run_in(tmp_path / 'a', folders, replace(COGACT, steps=1)))
    again = train(Run(replace(COGACT, steps=1, learning_rate=1e-9), first, folders[1], None,
                      tmp_path / 'b'))
    (before,), (after,) = (folder.glob('action_head--*') for folder in (first, again))
    for name, tensor in load_file(before).items():
        torch.testing.assert_close(load_file(after)[name], tensor, rtol=0, atol=1e-5)


HEAD = TrainingConfig(
    stage='cogact_head', steps=3, batch=16, learning_rate=1e-3, warmup_steps=1,
    losses={'noise': 1.0}, repeated_diffusion_steps=1, validate_every_steps=3,
    validation_frames=8)


@pytest.mark.parametrize('processes', [1, 2])
def test_the_head_learns_alone(folders, tmp_path, processes):
    first = train(run_in(tmp_path / 'a', folders, replace(COGACT, steps=1)))
    run = Run(HEAD, first, folders[1], None, tmp_path / 'b', processes=processes)
    second = train(run)
    for name in ('model.safetensors', '../grounding_heads.safetensors'):
        for key, tensor in load_file(first / name).items():
            assert torch.equal(load_file(second / name)[key], tensor), key
    before, after = (load_file(next(c.glob('action_head--*'))) for c in (first, second))
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())
    kinds = {line['kind']: line.keys() for line in read_metrics(run.out)}
    assert {'noise', 'action_xyz'} <= kinds['validation'] & kinds['first_frame']


@pytest.fixture
def head_data(folders, tmp_path, monkeypatch):
    """Makes what one of some processes learns from, in parts of four frames, in float32."""
    first = train(run_in(tmp_path / 'a', folders, replace(COGACT, steps=1)))
    config = read_model_config(first)
    model = loading.load_model(first, config, 'cpu', 'float32')
    monkeypatch.setattr(cognition, 'autocast', lambda device: contextlib.nullcontext())
    monkeypatch.setattr(cognition, '_FRAMES', 2)
    monkeypatch.setattr(cognition, '_PART', 2)
    data = make_data(Run(HEAD, first, folders[1], None, tmp_path), config, torch.device('cpu'), 0,
                     1)

    def make(source='this', rank=0, processes=1):
        return CognitionData(model, data, HEAD, tmp_path, source, rank, processes)

    return make, model, data.demonstrations


def test_a_frame_is_looked_at_as_the_policy_would(head_data):
    make, model, split = head_data
    batch = split.frames.batch(split.training[:2], np.random.default_rng(0), plain=True)
    rows = []
    model.action_head.z_embedder.register_forward_pre_hook(
        lambda module, inputs: rows.append(inputs[0][:2]))
    with torch.no_grad():
        model((batch.pixels, batch.proprio, batch.prompt_ids))
    looked = make()
    torch.testing.assert_close(looked._states[:2], rows[0], rtol=0, atol=1e-5)
    assert torch.equal(looked._actions[:2], batch.actions)


def test_a_frame_is_looked_at_once_and_an_interrupted_look_goes_on(
        head_data, tmp_path, monkeypatch):
    make, model, split = head_data
    looked = make()
    parts = sorted((tmp_path / cognition.FOLDER).iterdir())
    assert len(parts) == -(-len(split.training) // 4)
    parts[1].unlink()
    calls, visual = [], model.visual
    monkeypatch.setattr(model, 'visual', lambda *inputs: calls.append(0) or visual(*inputs))
    again = make()
    assert len(calls) == 2  # of two frames each
    assert torch.equal(again._states, looked._states)
    assert torch.equal(again.batch(5).states, looked.batch(5).states)
    for other in ({'source': 'other'}, {'processes': 2}):
        with pytest.raises(ValueError, match='is of another checkpoint, other demonstrations or'):
            make(**other)


def test_each_process_has_a_share_of_the_frames(head_data):
    make, _, split = head_data
    shares = [make(rank=rank, processes=2)._actions for rank in range(2)]
    batch = split.frames.batch(split.training, np.random.default_rng(0), plain=True)
    assert torch.equal(shares[0], batch.actions[0::2])
    assert torch.equal(shares[1], batch.actions[1::2])


def test_still_scenes_teach_a_head_nothing(folders, tmp_path):
    first = train(run_in(tmp_path / 'a', folders, replace(COGACT, steps=1)))
    scenes = make_demonstrations(tmp_path / 'scenes', layout='scattered')
    with pytest.raises(ValueError, match='still scenes have none'):
        train(Run(HEAD, first, scenes, None, tmp_path / 'b'))


def test_the_head_has_to_be_there(folders, tmp_path):
    with pytest.raises(ValueError, match='goes on from a checkpoint of `vla train cogact`'):
        train(run_in(tmp_path / 'run', folders, HEAD))
    for changes in ({'losses': {'noise': 1.0, 'token': 1.0}}, {'lora_rank': 2}):
        with pytest.raises(ValueError, match="loss 'noise' alone"):
            replace(HEAD, **changes)


@pytest.mark.parametrize('changes', [
    {'losses': {'noise': 1.0, 'action': 1.0}}, {'chunk_length': 0}])
def test_the_stage_says_what_it_needs(changes):
    with pytest.raises(ValueError, match="loss 'noise'"):
        replace(COGACT, **changes)


def test_one_camera_without_proprio_is_trained_as_well(folders, tmp_path):
    start = create_small_checkpoint(
        tmp_path / 'start', config={**small_config(), 'cameras': 1, 'proprio': False})
    checkpoint = train(Run(replace(COGACT, steps=1), start, folders[1], None, tmp_path / 'run'))
    policy = LocalPolicy.load(checkpoint, methods=())
    assert policy.description.spec.cameras == ('third_person',)
