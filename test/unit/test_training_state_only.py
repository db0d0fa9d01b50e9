"""The blind baseline learns from proprio and words, and is read back as it was written."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from training_data import make_demonstrations
from typer.testing import CliRunner

from vla_policy_node.cli import app
from vla_policy_node.policy.interface import InferenceRequest, Observation
from vla_policy_node.training.state_only import StateOnlyPolicy, train_state_only

WORDS = ('pick up the milk', 'pick up the butter')


class Recordings:
    """Ten short episodes: the milk is to the left, the butter to the right; then the hand closes.

    Stands in for `training.demonstrations.Demonstrations`.
    """

    episodes = tuple(range(10))

    def read(self, episode, tensor):
        rng = np.random.default_rng(episode)
        if tensor == 'proprio':
            return rng.uniform(-1, 1, (20, 8)).astype(np.float32)
        actions = np.zeros((20, 7), np.float32)
        actions[:, 0] = -0.5 if episode % 2 else 0.5
        actions[:10, 6] = 1
        return actions

    def header(self, episode):
        return {'instruction': WORDS[episode % 2]}


def observe(words):
    return InferenceRequest(Observation({}, np.zeros(8), words))


@pytest.fixture(scope='module')
def policy():
    return train_state_only(Recordings(), steps=150, seed=3, chunk_length=4)


def test_the_words_decide_where_to_go(policy):
    for words, x in zip(WORDS, (0.5, -0.5), strict=True):
        chunk = policy.infer(observe(words))
        assert chunk.actions.shape == (4, 7)
        np.testing.assert_allclose(chunk.actions[0, 0], x, atol=0.15)
        assert (chunk.tokens_kept, chunk.tokens_total, chunk.selections) == (0, 0, ())
        assert chunk.flops == 2 * (10 * 512 + 2 * 512**2 + 512 * 28)


def test_same_seed_same_weights(policy):
    again = train_state_only(Recordings(), steps=150, seed=3, chunk_length=4)
    other = train_state_only(Recordings(), steps=150, seed=4, chunk_length=4)
    first, second, third = (
        p.infer(observe(WORDS[0])).actions for p in (policy, again, other))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third)


def test_written_and_read_back(policy, tmp_path):
    policy.save(tmp_path / 'blind.safetensors')
    loaded = StateOnlyPolicy.load(tmp_path / 'blind.safetensors')
    assert loaded.instructions == WORDS
    # Where weights lie in memory, and so in which order they are added, is not the file's.
    np.testing.assert_allclose(
        loaded.infer(observe(WORDS[1])).actions, policy.infer(observe(WORDS[1])).actions,
        rtol=0, atol=1e-6)


def test_words_that_training_did_not_have_are_refused(policy):
    with pytest.raises(ValueError, match="does not know 'fly'"):
        policy.infer(observe('fly'))


@pytest.mark.parametrize('content', [b'', b'no tensors'])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / 'blind.safetensors'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='is no blind baseline'):
        StateOnlyPolicy.load(path)


def test_other_tensors_are_refused(tmp_path):
    path = tmp_path / 'blind.safetensors'
    save_file({'weight': np.zeros(3, np.float32)}, path)
    with pytest.raises(ValueError, match='is no blind baseline'):
        StateOnlyPolicy.load(path)


def test_either_seconds_or_steps():
    for options in ({}, {'seconds': 1.0, 'steps': 5}):
        with pytest.raises(ValueError, match='either seconds or steps'):
            train_state_only(Recordings(), **options)


def test_training_by_the_clock_ends():
    steps = []
    train_state_only(Recordings(), seconds=0.2, report=lambda step, loss: steps.append(loss))
    assert steps
    assert all(map(np.isfinite, steps))
    assert torch.is_grad_enabled()


def test_the_command_writes_what_an_evaluation_reads(tmp_path):
    demos = make_demonstrations(tmp_path / 'demos')
    out = tmp_path / 'runs' / 'blind.safetensors'
    result = CliRunner().invoke(
        app, ['train-blind', '--demos', str(demos), '--out', str(out), '--seconds', '1'])
    assert result.exit_code == 0, result.output
    assert StateOnlyPolicy.load(out).instructions
    refused = CliRunner().invoke(
        app, ['train-blind', '--demos', str(tmp_path), '--out', str(out)])
    assert refused.exit_code == 2
    assert 'no folder of demonstrations' in refused.output
