"""OpenVLA-OFT on two arms: other sizes of action, state and cameras, told by the files alone."""

import json
import logging

import checkpoint_variants as variants
import numpy as np
import pytest

from vla_policy_node.checks.findings import FAIL
from vla_policy_node.checks.report import check_checkpoint
from vla_policy_node.contract.fit import check_fits
from vla_policy_node.contract.shipped import find_contract
from vla_policy_node.families import read_model_config
from vla_policy_node.loop.loading import load_ready
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.policy.interface import InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy

LOW, HIGH = np.linspace(-1, -0.5, 14), np.linspace(0.5, 1, 14)
SPREAD = {'min': LOW.tolist(), 'max': HIGH.tolist(),
          'q01': (LOW / 2).tolist(), 'q99': (HIGH / 2).tolist()}
STATISTICS = {'aloha': {'action': {**SPREAD, 'mask': [True] * 14}, 'proprio': SPREAD}}
ENTRIES = {'actions': 14, 'state': 14}


def make(directory, head='l1', film=True):
    """As published: config.json does not say how many numbers there are, the weights do."""
    variants.make(directory, head, film, **ENTRIES)
    (directory / 'config.json').write_text(json.dumps(variants.CONFIG))
    (directory / 'dataset_statistics.json').write_text(json.dumps(STATISTICS))
    return directory


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return make(tmp_path_factory.mktemp('aloha'))


@pytest.fixture(scope='module')
def policy(checkpoint):
    return LocalPolicy.load(checkpoint, methods=('lightvla',))


def observe(policy, proprio):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 56, 56, 3), np.uint8)
    images = dict(zip(policy.description.spec.cameras, pictures, strict=True))
    return Observation(images, proprio, 'fold the shirt')


def test_what_it_wants_is_what_the_robot_with_two_arms_has(policy):
    check_fits(policy.description.spec, find_contract('two_arms'))
    assert policy.description.spec.cameras == ('high', 'left_wrist', 'right_wrist')
    assert policy.description.chunk_length == 25


def test_a_robot_with_one_arm_is_told_what_the_policy_looks_at(checkpoint):
    parameters = PolicyParameters(checkpoint=str(checkpoint), methods=())
    for told in (parameters.read_spec, lambda: parameters.load_policy(1)):
        with pytest.raises(ValueError, match="looks at the camera 'high', which the contract of"):
            told()


def test_the_parameters_of_that_robot_load_it_and_warm_it_up(checkpoint):
    robot = PolicyParameters.of('two_arms')
    parameters = robot(contract='two_arms', checkpoint=str(checkpoint), warmup_inferences=1)
    ready, _ = load_ready(parameters, logging.getLogger(__name__))
    assert ready.description.spec.cameras == parameters.robot.camera_names


def test_a_chunk_has_an_action_of_fourteen_numbers_for_each_of_25_steps(policy):
    chunk = policy.infer(InferenceRequest(observe(policy, np.zeros(14))))
    assert chunk.actions.shape == chunk.normalised.shape == (25, 14)
    assert [s.camera for s in chunk.selections] == [*policy.description.spec.cameras]
    assert chunk.tokens_total == 3 * 16


def test_numbers_lie_between_the_least_and_the_largest_of_the_data(policy):
    chunk = policy.infer(InferenceRequest(observe(policy, np.zeros(14))))
    middle, half = (HIGH + LOW) / 2, (HIGH - LOW) / 2
    np.testing.assert_allclose(chunk.actions, middle + half * chunk.normalised, atol=1e-7)


def test_every_number_of_the_state_counts(policy):
    chunks = []
    for index in (None, 0, 13):
        proprio = np.zeros(14)
        if index is not None:
            proprio[index] = 1.0
        chunks.append(policy.infer(InferenceRequest(observe(policy, proprio))).normalised)
    assert not np.array_equal(chunks[0], chunks[1])
    assert not np.array_equal(chunks[0], chunks[2])


def test_a_state_of_another_length_is_refused_by_name(policy):
    with pytest.raises(ValueError, match=r'shape \(14,\): left_waist, .*, not \(8,\)'):
        policy.infer(InferenceRequest(observe(policy, np.zeros(8))))


def test_a_transform_of_a_camera_that_is_not_there_is_refused(checkpoint):
    with pytest.raises(ValueError, match="no camera 'wrist'; choose from high, left_wrist"):
        LocalPolicy.load(checkpoint, camera_transforms={'wrist': 'rotate_180'})


def test_its_own_checks_pass(checkpoint):
    findings = [*check_checkpoint(checkpoint, '', '', 'cpu', 'float32', lambda share: None)]
    assert not [finding for finding in findings if finding.verdict == FAIL]


def test_statistics_of_another_robot_are_refused_with_one_sentence(tmp_path):
    directory = variants.copy(make(tmp_path / 'made', film=False), tmp_path / 'copy')
    short = {'min': [0.0] * 7, 'max': [1.0] * 7}
    (directory / 'dataset_statistics.json').write_text(
        json.dumps({'aloha': {'action': short, 'proprio': short}}))
    with pytest.raises(ValueError, match=r'action\.min must be a list of 14 numbers as this'):
        LocalPolicy.load(directory)


@pytest.mark.parametrize('head', ['discrete', 'diffusion'])
def test_other_heads_answer_with_as_many_numbers(head, tmp_path):
    policy = LocalPolicy.load(make(tmp_path, head, film=False), methods=(), chunk_length=3)
    chunk = policy.infer(InferenceRequest(observe(policy, np.zeros(14))))
    assert chunk.actions.shape == (3, 14)


def test_names_in_the_file_have_the_last_word(tmp_path):
    directory = make(tmp_path, film=False)
    names = {'cameras': ['front'], 'state': [f'j{i}' for i in range(14)],
             'actions': [f'a{i}' for i in range(14)], 'normalisation': 'q99', 'chunk_length': 4}
    (directory / 'config.json').write_text(json.dumps({**variants.CONFIG, **names}))
    config = read_model_config(directory)
    assert config.spec.cameras == ('front',)
    assert [q.name for q in config.spec.state] == names['state']
    assert [q.name for q in config.spec.actions] == names['actions']
    assert (config.ranges, config.chunk_length) == (('q01', 'q99'), 4)


@pytest.mark.parametrize(('entry', 'value'), [
    ('cameras', []), ('cameras', ['a', 'a']), ('cameras', ['a', 'b', 'c', 'd', 'e']),
    ('cameras', ['not a name']), ('cameras', 4), ('actions', 0), ('actions', 65),
    ('actions', [1, 2]), ('state', 'x'), ('normalisation', 'mean'),
])
def test_entries_that_say_nothing_usable_are_refused(entry, value, tmp_path):
    directory = make(tmp_path, film=False)
    (directory / 'config.json').write_text(json.dumps({**variants.CONFIG, entry: value}))
    with pytest.raises(ValueError, match=rf'config\.json has {entry} .*; it must be'):
        read_model_config(directory)
