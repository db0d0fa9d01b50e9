"""The door between robot and model: observations in, chunks out, nonsense refused."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vla_policy_node import acceleration
from vla_policy_node.encoding.prompt import PromptEncoder, end_with_empty, prompt_text
from vla_policy_node.policy import load_policy
from vla_policy_node.policy.interface import (
    CAMERAS,
    InferenceRequest,
    NonFiniteActionError,
    Observation,
)
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.policy.options import choose_action_rows
from vla_policy_node.runtime.small import create_small_checkpoint

DATA = Path(__file__).parents[1] / 'data'
PROPRIO = np.array([-0.1, 0.0, 0.9, 2.6, 0.0, 0.0, 0.02, -0.02])
STAGES = {'preprocess', 'upload', 'vision', 'select', 'language_model', 'head'}


def picture(name):
    with Image.open(DATA / 'preprocess' / f'{name}.png') as image:
        return np.array(image.convert('RGB'))


def observe(third_person='shapes_256', wrist='shapes_480x640', **changes):
    observation = Observation(
        images={'third_person': picture(third_person), 'wrist': picture(wrist)},
        proprio=PROPRIO,
        instruction='pick up the black bowl and place it on the plate',
    )
    return InferenceRequest(dataclasses.replace(observation, **changes))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return create_small_checkpoint(tmp_path_factory.mktemp('small'))


@pytest.fixture(scope='module')
def policy(checkpoint):
    return LocalPolicy.load(checkpoint, methods=('lightvla',))


@pytest.fixture(scope='module')
def dense(checkpoint):
    return LocalPolicy.load(checkpoint, methods=())


@pytest.mark.parametrize(('pack', 'methods'), [('oft_tiny', ()), ('lightvla_tiny', ('lightvla',))])
def test_whole_pipeline_agrees_with_the_reference(pack, methods, monkeypatch):
    golden = np.load(DATA / pack / 'end_to_end.npz')

    class GoldenPrompt(PromptEncoder):
        text = staticmethod(prompt_text)

        def __init__(self):
            pass

        def encode(self, instruction):
            return end_with_empty(golden['prompt_ids'].tolist(), 191)

    monkeypatch.setattr(PromptEncoder, 'load', lambda *arguments: GoldenPrompt())
    policy = LocalPolicy.load(DATA / 'oft_tiny' / 'checkpoint', methods=methods)
    chunk = policy.infer(
        InferenceRequest(Observation(
            images={'third_person': golden['full_image'], 'wrist': golden['wrist_image']},
            proprio=golden['state_raw'],
            instruction='as in the file',
        ))
    )
    # The resize may differ by one step in 1 % of the pixels, the arithmetic adds 1e-5.
    np.testing.assert_allclose(chunk.actions, golden['actions'], rtol=0, atol=5e-3)
    if methods:
        kept = np.concatenate([selection.kept.ravel() for selection in chunk.selections])
        np.testing.assert_array_equal(kept.nonzero()[0], golden['kept_indices'])


def test_chunk_is_complete(policy):
    chunk = policy.infer(observe())
    assert chunk.actions.shape == (8, 7)
    assert chunk.actions.dtype == np.float64
    assert np.abs(chunk.actions).max() < 1.5
    assert set(chunk.stage_ms) == STAGES
    assert min(chunk.stage_ms.values()) > 0
    assert chunk.method == 'lightvla'
    assert [selection.camera for selection in chunk.selections] == list(CAMERAS)
    assert chunk.tokens_kept == sum(selection.kept.sum() for selection in chunk.selections)
    assert chunk.tokens_total == 512
    for selection in chunk.selections:
        assert selection.kept.shape == selection.scores.shape == (16, 16)
        np.testing.assert_array_equal(selection.kept, selection.scores > 0)
        assert selection.crop[2] ** 2 == pytest.approx(0.9)
    assert sum(selection.scores.sum() for selection in chunk.selections) == 512


def test_dense_keeps_everything_and_scores_nothing(dense):
    chunk = dense.infer(observe())
    assert chunk.method == 'dense'
    assert chunk.tokens_kept == chunk.tokens_total == 512
    assert all(selection.scores.size == 0 for selection in chunk.selections)


@pytest.mark.parametrize('third_person', ['shapes_256', 'gradient_480x640', 'shapes_224'])
def test_lightvla_keeps_a_part_of_the_tokens_of_the_small_policy(policy, third_person):
    chunk = policy.infer(observe(third_person))
    assert 0.02 < chunk.tokens_kept / chunk.tokens_total < 0.8


@pytest.mark.parametrize('camera', CAMERAS)
def test_the_small_policy_responds_to_what_each_camera_sees(policy, dense, camera):
    for each in (policy, dense):
        before, after = each.infer(observe()), each.infer(observe(**{camera: 'noise_256'}))
        assert np.abs(after.actions - before.actions)[:, :6].max() > 0.05


def test_the_same_observation_gives_the_same_chunk(policy):
    first = policy.infer(observe())
    policy.infer(observe('noise_256'))
    policy.reset()
    again = policy.infer(observe())
    np.testing.assert_array_equal(first.actions, again.actions)
    np.testing.assert_array_equal(first.selections[0].kept, again.selections[0].kept)


def test_a_transformed_camera_sees_the_transformed_image(checkpoint, policy):
    mirrored = LocalPolicy.load(
        checkpoint, methods=('lightvla',),
        camera_transforms={'third_person': 'mirror_horizontal'})
    image = picture('shapes_256')
    images = {'third_person': image[:, ::-1], 'wrist': image}
    chunk = mirrored.infer(observe(images=images))
    assert chunk.selections[0].camera_transform == 'mirror_horizontal'
    assert chunk.selections[1].camera_transform == 'none'
    plain = policy.infer(observe(images={'third_person': image, 'wrist': image}))
    np.testing.assert_array_equal(chunk.actions, plain.actions)


def test_action_rows_follow_user_then_checkpoint_then_method(policy):
    choose = choose_action_rows
    assert choose('', '', []) == 'oft'
    assert choose('', '', policy._methods) == 'last56'
    assert choose('', 'oft', policy._methods) == 'oft'
    assert choose('last56', 'oft', []) == 'last56'
    assert policy._action_rows == 'oft'


def test_description(policy):
    description = policy.description
    assert not description.trained
    assert len(description.sha256) == 64
    assert 4e6 < description.parameters < 15e6
    assert (description.visual_tokens, description.grid) == (512, (16, 16))
    assert description.statistics_key == 'libero_small'
    assert description.methods == ('lightvla',)
    assert description.method_settings == {'lightvla': acceleration.settings('lightvla')}
    assert 'OpenVLA-OFT' in description.architecture
    assert '{instruction}' in description.prompt_template


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'instruction': '  '}, 'instruction is empty'),
        ({'instruction': 'pick up ' * 1000}, 'instruction is too long'),
        ({'proprio': np.zeros(7)}, r'shape \(8,\).*not \(7,\)'),
        ({'proprio': np.where(np.arange(8) == 3, np.nan, PROPRIO)}, 'Proprio must be finite'),
        ({'images': {'third_person': picture('shapes_224')}}, "no image of the camera 'wrist'"),
        ({'images': dict.fromkeys(CAMERAS, np.zeros((9, 9, 3)))}, 'must be uint8.*not float64'),
        ({'images': dict.fromkeys(CAMERAS, np.zeros((9, 9), np.uint8))}, r'shape \(9, 9\)'),
        ({'images': dict.fromkeys(CAMERAS, np.zeros((0, 9, 3), np.uint8))}, r'shape \(0, 9, 3\)'),
    ],
)
def test_an_unusable_observation_is_refused_with_a_sentence(policy, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        policy.infer(observe(**changes))


def test_an_instruction_can_be_checked_before_use(policy):
    policy.check_instruction('pick up the black bowl')
    for unusable, sentence in (
            ('', 'is empty'), ('\n \u2028', 'is empty'), ('pick up ' * 1000, 'is too long'),
            ('kwyjibo ' * 500, r'is too long: .* in fewer words[.]$')):
        with pytest.raises(ValueError, match=sentence):
            policy.check_instruction(unusable)


def test_unknown_settings_are_refused_with_a_sentence(checkpoint):
    with pytest.raises(ValueError, match="'lightvla' has no setting 'ratio'"):
        LocalPolicy.load(
            checkpoint, methods=('lightvla',), method_settings={'lightvla': {'ratio': 0.5}})


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ({'methods': ['fastest']}, "no acceleration method 'fastest'"),
        ({'methods': [], 'method_settings': {'lightvla': {}}}, "'lightvla', which is not in use"),
        ({'statistics_key': 'bridge'}, "no statistics 'bridge'; choose one of libero_small"),
        ({'camera_transforms': {'left': 'none'}}, "no camera 'left'; choose from third_person"),
        ({'camera_transforms': {'wrist': 'flip'}}, "transformed by 'flip'; choose from none"),
        ({'action_rows': 'first56'}, "must be one of oft, last56, not 'first56'"),
    ],
)
def test_unusable_arguments_are_refused_with_a_sentence(checkpoint, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        LocalPolicy.load(checkpoint, **arguments)


@pytest.mark.parametrize('methods', [(), ('lightvla',)])
def test_an_unknown_execution_mode_is_refused_before_anything_is_read(methods):
    with pytest.raises(ValueError, match=r"'asynch' is unknown; use one of sync, async, temporal"):
        load_policy('/nowhere', 'asynch', methods=methods)


def test_weights_that_give_no_number_give_no_action(checkpoint):
    policy = LocalPolicy.load(checkpoint)
    with torch.inference_mode():
        policy._model.action_head.fc2.bias[0] = torch.nan
    with pytest.raises(NonFiniteActionError, match='not finite'):
        policy.infer(observe())


def test_models_import_neither_ros_nor_the_control_layer():
    code = (
        'import sys, vla_policy_node.policy, vla_policy_node.runtime.small;'
        "bad = {'rclpy', 'vla_policy_node.control', 'vla_policy_node.world'} & set(sys.modules);"
        'sys.exit(str(bad) if bad else 0)'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('optimisation', ['fused', 'graphs'])
def test_an_optimised_policy_acts_like_the_plain_one(checkpoint, policy, optimisation):
    optimised = LocalPolicy.load(
        checkpoint, methods=('lightvla',), optimisation=optimisation)
    expected, chunk = policy.infer(observe()), optimised.infer(observe())
    np.testing.assert_allclose(chunk.actions, expected.actions, atol=1e-4)
    assert chunk.tokens_kept == expected.tokens_kept
    assert chunk.layers_run == expected.layers_run == chunk.layers_total
    assert chunk.flops >= expected.flops  # rows that fill up a bucket are paid for
    assert set(chunk.stage_ms) == STAGES


def test_fast_preprocessing_reaches_the_policy(checkpoint, policy):
    fast = LocalPolicy.load(checkpoint, methods=('lightvla',), preprocessing='fast')
    assert fast.description.preprocessing == 'fast'
    assert 0 < np.abs(fast.infer(observe()).actions - policy.infer(observe()).actions).max() < 0.2
