"""What a training step is made of: crops, labels, token samples, grounding losses, merges."""

from types import SimpleNamespace

import checkpoint_variants as variants
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training_data import OBJECTS, PX, SEGMENTS, episode, small_config

from vla_policy_node.commands.train import stage_config
from vla_policy_node.encoding.preprocess import center_crop
from vla_policy_node.families import config_of, create_network
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.training import augmentation
from vla_policy_node.training.grounding import attend_loss, similarity
from vla_policy_node.training.lora import add_lora, merge_lora
from vla_policy_node.training.stage_run import Run, export
from vla_policy_node.training.token_sampling import sample_tokens


def small_model():
    torch.manual_seed(0)
    model = create_network(config_of(small_config()))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.double().eval()


def test_the_central_crop_is_the_one_of_run_time():
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    corner = augmentation.draw_crop(0.0, np.random.default_rng(0))
    mine = augmentation.cut(image, corner, 224, labels=False).astype(int)
    error = np.abs(mine - center_crop(image))
    # warpAffine's weights have 5 bits in OpenCV 4: a place is off by up to 1/64 px on each axis.
    assert error.max() <= 2 * 255 / 64 and error.mean() < 1


def test_labels_are_cut_where_the_image_is():
    image = np.zeros((224, 224, 3), np.uint8)
    image[60:130, 90:170] = 255
    labels = (image[::2, ::2, 0] > 0).astype(np.uint8)
    for seed in range(5):
        corner = augmentation.draw_crop(1.0, np.random.default_rng(seed))
        seen = augmentation.cut(image, corner, 224, labels=False)[::2, ::2, 0] > 127
        cut = augmentation.cut(labels, corner, 112, labels=True) > 0
        assert (seen != cut).mean() < 0.02


def test_no_colour_strength_is_no_change():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    same = augmentation.jitter_colours(image, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(image, same)
    other = augmentation.jitter_colours(image, 1.0, np.random.default_rng(0))
    assert (image != other).mean() > 0.5


@given(seed=st.integers(0, 10**6), things=st.integers(0, 64), kept=st.integers(4, 64))
def test_token_samples_are_unique_and_speak_for_all(seed, things, kept):
    rng = np.random.default_rng(seed)
    foreground = torch.zeros((2, 1, 64), dtype=torch.bool)
    for row in foreground:
        row[0, rng.choice(64, things, replace=False)] = True
    sample = sample_tokens(foreground, kept, rng)
    for row in range(2):
        patches = sample.patches[row, 0].numpy()
        assert len(set(patches)) == kept
        assert (np.diff(patches) > 0).all()
        weights = np.exp(sample.key_bias[row, 0].numpy())
        on_things = foreground[row, 0, patches].numpy()
        for group, total in ((on_things, things), (~on_things, 64 - things)):
            if group.any():
                assert weights[group].sum() == pytest.approx(total, rel=1e-5)


def test_a_sample_of_all_tokens_is_the_whole_network():
    model = small_model()
    pixels = torch.rand(2, 2, 6, PX, PX, dtype=torch.float64)
    proprio = torch.rand(2, 8, dtype=torch.float64)
    ids = torch.randint(4, 500, (2, 5))
    whole = model((pixels, proprio, ids))
    foreground = torch.from_numpy(np.random.default_rng(0).random((2, 2, 16)) < 0.3)
    sample = sample_tokens(foreground, 16, np.random.default_rng(1))
    visual = model.projector(model.visual_features(pixels, sample=sample.by_image))
    sequence = sample.place(model.assemble(visual, proprio, ids))
    states = model.language_model(sequence, model.action_rows('oft'))
    torch.testing.assert_close(model.action_head(states), whole)


def test_sampled_tokens_keep_their_positions():
    model = small_model()
    visual = torch.rand(1, 2 * 4, 32, dtype=torch.float64)
    sample = sample_tokens(torch.zeros((1, 2, 16), dtype=torch.bool), 4, np.random.default_rng(0))
    proprio, ids = torch.rand(1, 8, dtype=torch.float64), torch.randint(4, 500, (1, 5))
    sequence = sample.place(model.assemble(visual, proprio, ids))
    patches = sample.patches[0]
    wanted = torch.cat([1 + patches[0], 17 + patches[1]])
    assert torch.equal(sequence.positions[0, 1:9], wanted)
    assert sequence.positions[0, 9] == 33, 'proprio stays where it is in the full sequence'


def test_similarity_is_highest_where_the_token_is_the_word():
    names = torch.nn.functional.rms_norm(torch.randn(1, 3, 32), (32,))
    visual = torch.randn(1, 1, 10, 32)
    visual[0, 0, [4, 7, 2]] = 3 * names[0]
    assert similarity(visual, names)[0, 0].argmax(-1).tolist() == [4, 7, 2]


def test_attention_on_the_thing_costs_nothing_and_elsewhere_much():
    batch = SimpleNamespace(asked=torch.tensor([1]), goal=torch.tensor([0]))
    coverage = torch.zeros(1, 2, 2, 4)
    coverage[0, 0, 1, 2] = 0.5  # the thing asked for: camera 0, token 2
    coverage[0, 1, 0, 3] = 0.5  # where it belongs: camera 1, token 3
    attention = torch.zeros(1, 2, 3, 8)
    attention[0, 0, :, 2] = 1.0
    attention[0, 1, :, 4 + 3] = 1.0
    assert attend_loss(attention, coverage, batch) < 1e-3
    assert attend_loss(attention.flip(1), coverage, batch) > 5


def test_what_is_out_of_view_is_not_to_be_attended_to():
    batch = SimpleNamespace(asked=torch.tensor([1]), goal=torch.tensor([0]))
    assert attend_loss(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 2, 4), batch) == 0


def test_a_merge_changes_no_output_and_happens_once():
    model = small_model()
    add_lora(model, 4)
    model.double()
    for name, parameter in model.named_parameters():
        if 'lora_' in name:
            nn.init.normal_(parameter, std=0.1)
    inputs = (
        torch.rand(1, 2, 6, PX, PX, dtype=torch.float64),
        torch.rand(1, 8, dtype=torch.float64), torch.randint(4, 500, (1, 5)),
    )
    before = model(inputs)
    merge_lora(model)
    torch.testing.assert_close(model(inputs), before)
    assert not [name for name in model.state_dict() if 'lora' in name or 'base_layer' in name]
    with pytest.raises(ValueError, match='merged before'):
        merge_lora(model)


def test_the_made_up_scenes_name_what_they_show():
    made = episode(0, 10, 'shuffled')
    assert made.objects == OBJECTS
    assert made.segments == SEGMENTS
    assert set(np.unique(made.labels['wrist'][0])) == {0, 1, 2, 3}


# --- what comes out ---


def test_a_policy_is_shown_pictures_as_it_saw_them_in_training(tmp_path):
    start = variants.make(tmp_path / 'start', camera_transforms={'wrist': 'rotate_180'})
    (tmp_path / 'made').mkdir()
    run = Run(stage_config('clone', None, {}), start, None, None, tmp_path)
    export(run, variants.load(start), tmp_path / 'made', {})
    turned = LocalPolicy.load(tmp_path / 'made').description.camera_transforms
    assert {*turned.values()} == {'none'}
