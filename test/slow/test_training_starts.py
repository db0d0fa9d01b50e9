"""What a stage can start from, by what a policy offers; the rest is refused before it begins."""

import json
import re

import checkpoint_variants as variants
import numpy as np
import pytest
from training_data import make_demonstrations

from vla_policy_node.commands.train import stage_config
from vla_policy_node.families import read_model_config
from vla_policy_node.policy.interface import InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.training import stage_run
from vla_policy_node.training.stage_run import Run, train

HEADS = ('l1', 'discrete', 'diffusion', 'autoregressive', 'cogact')
SMALL = ('steps=1', 'batch=4', 'validate_every_steps=1', 'validation_frames=4')
ACTION = "learns by the loss 'action', which needs a policy whose actions come at once"
NOISE = "learns by the loss 'noise', which needs a policy whose action head denoises"
# Stage -> heads that it cannot start from -> why.
REFUSED = {
    'grounding': {},
    'localization': dict.fromkeys(
        ('diffusion', 'autoregressive'),
        "learns by the loss 'attend', which needs a policy whose decoder runs once"),
    'behavior_cloning': {
        **dict.fromkeys(('discrete', 'cogact'), ACTION),
        **dict.fromkeys(('diffusion', 'autoregressive'), ACTION)},
    'cogact': {},
    'cogact_head': dict.fromkeys(
        HEADS[:-1], 'goes on from a checkpoint of `vla train cogact`, and takes --demos'),
    'deer': dict.fromkeys(
        HEADS[1:], 'needs a policy whose actions come at once, from the rows of their slots'),
    'foreground': {},
    'lightvla': {
        **dict.fromkeys(('discrete', 'autoregressive', 'cogact'), ACTION),
        'diffusion': 'needs a policy whose visual tokens are rows that may be dropped'},
    'mole': {
        **dict.fromkeys(('discrete', 'cogact'), ACTION),
        **dict.fromkeys(('diffusion', 'autoregressive'), 'needs a policy whose decoder runs once'),
    },
}


@pytest.fixture(scope='module')
def starts(tmp_path_factory):
    """One checkpoint of every family, and demonstrations."""
    root = tmp_path_factory.mktemp('starts')
    entries = {'cogact': variants.COGACT}
    made = {head: variants.make(root / head, head, **entries.get(head, {})) for head in HEADS}
    for folder in made.values():
        config = json.loads((folder / 'config.json').read_text())
        (folder / 'config.json').write_text(json.dumps({**config, 'trained': False}))
    return made, make_demonstrations(root / 'demos')


def run_of(stage, head, starts, out, *changes):
    folders, demonstrations = starts
    return Run(stage_config(stage, None, [*SMALL, *changes]), folders[head], demonstrations, None,
               out)


@pytest.mark.parametrize(('stage', 'head'), [
    (stage, head) for stage, heads in REFUSED.items() for head in heads])
def test_a_stage_refuses_what_it_cannot_train_before_anything_is_read_or_written(
        stage, head, starts, tmp_path, monkeypatch):
    monkeypatch.setattr(stage_run, 'load_model', None)
    run = run_of(stage, head, starts, tmp_path / 'run')
    policy = read_model_config(run.start).architecture
    ending = '' if stage == 'cogact_head' else re.escape(f'; {run.start} is {policy}.') + '$'
    with pytest.raises(ValueError, match=f'^Stage {stage} {REFUSED[stage][head]}.*{ending}'):
        train(run)
    assert not run.out.exists()


@pytest.mark.parametrize(('stage', 'head'), [  # from 'l1' all do, in the other files
    ('grounding', 'diffusion'), ('localization', 'discrete'), ('foreground', 'autoregressive'),
    *(('cogact', head) for head in HEADS[1:-1])])
def test_a_stage_trains_what_it_does_not_refuse(stage, head, starts, tmp_path):
    assert head not in REFUSED[stage]
    changes = ['tokens_kept=0']
    if stage == 'cogact':
        changes += ['head_blocks=1', 'head_width=24', 'head_heads=2']
    checkpoint = train(run_of(stage, head, starts, tmp_path / 'run', *changes))
    policy = LocalPolicy.load(checkpoint, methods=())
    assert policy.config.family.name == ('cogact' if stage.startswith('cogact') else head)
    start = read_model_config(starts[0][head])
    assert (policy.config.cameras, policy.config.proprio) == (start.cameras, start.proprio)
    gray = np.full((56, 56, 3), 128, np.uint8)
    chunk = policy.infer(InferenceRequest(Observation(
        dict.fromkeys(policy.description.spec.cameras, gray), np.zeros(8), 'pick it up')))
    assert chunk.actions.shape == (policy.config.chunk_length, 7)
