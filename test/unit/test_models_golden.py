"""The networks reproduce the public OpenVLA-OFT implementation, stage by stage.

Reference data: test/data/oft_tiny/README.md.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from vla_policy_node.checkpoints import layout
from vla_policy_node.checkpoints.statistics import read_statistics
from vla_policy_node.encoding.preprocess import ImagePreprocessor
from vla_policy_node.encoding.prompt import end_with_empty
from vla_policy_node.families import config_of
from vla_policy_node.families.prismatic import PrismaticVla
from vla_policy_node.runtime import loading

DATA = Path(__file__).parents[1] / 'data' / 'oft_tiny'
CHECKPOINT = DATA / 'checkpoint'


def assert_close(value, reference):
    value = value.detach().numpy() if isinstance(value, torch.Tensor) else value
    tolerance = 5e-5 * np.abs(reference).max()
    np.testing.assert_allclose(value.reshape(reference.shape), reference, rtol=0, atol=tolerance)


@pytest.fixture(scope='module')
def model() -> PrismaticVla:
    config = config_of(layout.read_json(CHECKPOINT, 'config.json'))
    return loading.load_model(CHECKPOINT, config, 'cpu', 'float32')


@pytest.fixture(scope='module')
def statistics():
    return read_statistics(layout.read_json(CHECKPOINT, 'dataset_statistics.json'))


@pytest.fixture(scope='module')
def preprocessor() -> ImagePreprocessor:
    document = layout.read_json(CHECKPOINT, 'preprocessor_config.json')
    return ImagePreprocessor(document, image_px=56, center_crop=False)


@pytest.fixture(params=['case0', 'case1', 'case2'])
def case(request):
    return np.load(DATA / f'{request.param}.npz')


@pytest.fixture
def inputs(case, model, statistics, preprocessor):
    return inputs_of(case, model, statistics, preprocessor)


def inputs_of(case, model, statistics, preprocessor):
    pixels = torch.stack([preprocessor(image) for image in case['images_u8']])[None]
    proprio = statistics.normalise_proprio(case['proprio_raw'])
    ids = end_with_empty(case['prompt_ids'].tolist(), model.config.token_ids.empty)
    return pixels, torch.from_numpy(proprio)[None].float(), torch.tensor(ids)[None]


def test_preprocessing_of_images_that_have_the_right_size(model, statistics, preprocessor):
    case = np.load(DATA / 'case0.npz')
    pixels, _, _ = inputs_of(case, model, statistics, preprocessor)
    np.testing.assert_allclose(pixels.flatten(1, 2), case['pixel_values'], rtol=0, atol=1e-6)


def test_encoder_features(case, model, inputs):
    dino, siglip = inputs[0][0].split(3, dim=1)
    assert_close(model.vision_backbone.featurizer(dino), case['dino_features'])
    assert_close(model.vision_backbone.fused_featurizer(siglip), case['siglip_features'])


def test_input_of_the_language_model(case, model, inputs):
    pixels, proprio, ids = inputs
    visual = model.projector(model.visual_features(pixels))
    assert_close(visual, case['projected'])
    np.testing.assert_allclose(proprio[0], case['proprio_norm'], rtol=0, atol=1e-6)
    assert_close(model.proprio_projector(proprio), case['proprio_token'])
    assert_close(model.assemble(visual, proprio, ids).states, case['input_embeds'])


def test_hidden_states_of_every_layer(model, statistics, preprocessor):
    case = np.load(DATA / 'case0.npz')
    seen = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        for layer in model.language_model.layers
    ]
    pixels, proprio, ids = inputs_of(case, model, statistics, preprocessor)
    visual = model.projector(model.visual_features(pixels))
    seen.append(model.language_model(model.assemble(visual, proprio, ids)))
    for hook in hooks:
        hook.remove()
    for states, reference in zip(seen, case['all_hidden'], strict=True):
        assert_close(states, reference)


def test_action_rows_begin_with_the_last_prompt_row(case, model, inputs):
    rows = model.action_rows('oft').indices(len(case['input_embeds']))
    assert rows == (case['action_row_start'], case['action_row_start'] + 56, 1)


def test_actions(case, model, inputs, statistics):
    head_input = []
    hook = model.action_head.register_forward_pre_hook(
        lambda _, arguments: head_input.append(arguments[0])
    )
    normalised = model(inputs)[0]
    hook.remove()
    assert_close(head_input[0], case['action_hidden'])
    assert_close(normalised, case['normalized_actions'])
    assert_close(statistics.unnormalise_actions(normalised.double().numpy()), case['actions'])


def test_bfloat16_stays_near_float32(case, inputs):
    config = config_of(layout.read_json(CHECKPOINT, 'config.json'))
    model = loading.load_model(CHECKPOINT, config, 'cpu', 'bfloat16')
    pixels, proprio, ids = inputs
    normalised = model((pixels.bfloat16(), proprio.bfloat16(), ids))[0].float()
    assert np.abs(normalised.numpy() - case['normalized_actions']).max() < 0.03


def test_every_row_attends_to_every_row(case, model, inputs):
    pixels, proprio, ids = inputs
    sequence = model.assemble(model.projector(model.visual_features(pixels)), proprio, ids)
    before = model.language_model(sequence)[0, 0]
    sequence.states[:, -1] += 1
    after = model.language_model(sequence)[0, 0]
    assert (after - before).abs().max() > 1e-3


def test_the_image_changes_the_actions(case, model, inputs):
    pixels, proprio, ids = inputs
    for camera in range(2):
        changed = pixels.clone()
        changed[:, camera] = changed[:, camera].flip(-1)
        assert (model((changed, proprio, ids)) - model(inputs)).abs().max() > 1e-3
