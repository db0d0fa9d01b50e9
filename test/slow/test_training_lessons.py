"""Stages deer, mole and foreground: from made-up demonstrations to a policy that runs them."""

from dataclasses import replace

import numpy as np
import pytest
from training_data import CAMERAS, make_demonstrations, small_config

from vla_policy_node.commands.train import stage_config
from vla_policy_node.policy.interface import InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime.small import create_small_checkpoint
from vla_policy_node.training.stage_run import Run, train

METHODS = {'deer': 'deer', 'mole': 'mole', 'foreground': 'fastdrivevla'}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('lessons')
    config = small_config()
    config['text_config']['num_hidden_layers'] = 5
    return create_small_checkpoint(root / 'start', config=config), make_demonstrations(
        root / 'demos')


@pytest.mark.parametrize('stage', METHODS)
def test_a_stage_leaves_a_checkpoint_that_its_method_runs(folders, tmp_path, stage):
    start, demonstrations = folders
    config = replace(
        stage_config(stage, None, ['steps=2', 'batch=4']), validate_every_steps=2,
        validation_frames=8)
    checkpoint = train(Run(config, start, demonstrations, None, tmp_path / stage))
    policy = LocalPolicy.load(checkpoint, methods=(METHODS[stage],))
    gray = np.full((56, 56, 3), 128, np.uint8)
    chunk = policy.infer(InferenceRequest(
        Observation(dict.fromkeys(CAMERAS, gray), np.zeros(8), 'pick it up')))
    if stage == 'foreground':
        assert chunk.tokens_kept == 16
        before, after = (LocalPolicy.load(path, methods=())._model.state_dict()
                         for path in (start, checkpoint))
        assert all((before[name] == after[name]).all() for name in before)
    elif stage == 'mole':
        assert chunk.layers_run == 3
    else:
        assert 2 <= chunk.layers_run <= 5
    assert chunk.flops > 0
