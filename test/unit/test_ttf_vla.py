"""TTF-VLA: which features are the last frame's."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from tiny_model import CONFIG, PREPROCESSOR, prepared, shared_inputs, step_of

from vla_policy_node.acceleration.ttf_vla import TtfVla

DINO = CONFIG.dino.width
WIDTH = DINO + CONFIG.siglip.width
FEATURES = torch.arange(2.0 * 32 * WIDTH).view(2, 1, 32, WIDTH)


def second_frame(frames=(0, 1), relevance=None, **settings):
    method = prepared('ttf_vla', **settings)
    for number, frame in enumerate(frames):
        method.begin_step(step_of(shared_inputs(frame)))
        method._relevance = relevance
        method.begin_pass()
        features = method.visual_features(FEATURES[number])
    return features, method


def test_all_anew_if_everything_counts_as_changed_or_as_relevant_or_as_key_frame():
    for settings in ({'threshold': -1.0}, {'keyframe': 1}, {'threshold': 9.0, 'count': 16}):
        assert torch.equal(second_frame(relevance=torch.rand(32), **settings)[0], FEATURES[1])


def test_the_last_frame_if_nothing_does():
    assert torch.equal(second_frame(threshold=9.0, count=0)[0], FEATURES[0])


def test_of_each_camera_the_most_relevant_are_anew():
    features, _ = second_frame(relevance=torch.arange(32.0), threshold=9.0, count=3)
    anew = (features == FEATURES[1]).all(dim=2)[0].nonzero().flatten().tolist()
    assert anew == [13, 14, 15, 29, 30, 31]


def test_a_picture_that_stands_still_changes_nothing():
    features, method = second_frame(frames=(0, 0), count=0)
    assert torch.equal(features, FEATURES[0])
    assert (method.report().scores == 0).all()


def test_fused_features_are_what_the_next_step_goes_on_from_until_a_key_frame():
    method = prepared('ttf_vla', threshold=9.0, count=0, keyframe=3)
    seen = []
    for number in range(4):
        method.begin_step(step_of(shared_inputs(number % 2)))
        method.begin_pass()
        features = method.visual_features(torch.full((1, 32, WIDTH), float(number)))
        seen.append(features[0, 0, 0].item())
    assert seen == [0, 0, 0, 3]


def test_what_changed_while_another_method_answered_is_taken_anew():
    method = prepared('ttf_vla', count=0)
    for number, frame in enumerate((0, 1, 1)):
        method.begin_step(step_of(shared_inputs(frame)))
        if number != 1:  # in which the network did not run
            method.begin_pass()
            features = method.visual_features(FEATURES[min(number, 1)])
    changed = torch.from_numpy(method.report().scores) > method.threshold
    assert changed.any()
    assert torch.equal(features[0, changed, :DINO], FEATURES[1][0, changed, :DINO])


def test_each_encoder_decides_by_its_own_normalised_pixels():
    """As the code: gray of the normalised picture, mean difference of a patch above 0.1."""
    pixels = [shared_inputs(index)[0][0] for index in range(2)]
    normaliser, side = PREPROCESSOR.normaliser, CONFIG.grid[0]
    level = torch.linspace(0, 0.1, 2 * side * side).view(2, 1, side, 1, side, 1)
    grays = torch.tensor((0.299, 0.587, 0.114))[:, None, None]
    first = torch.full_like(pixels[0][:, :3], 0.4)
    change = level.expand(2, 3, side, 14, side, 14).reshape(first.shape)
    normalised = [
        (torch.cat([rgb, rgb], dim=1) - normaliser._mean) / normaliser._std
        for rgb in (first, first + change)]
    method = prepared('ttf_vla', count=0)
    for number, frame in enumerate(normalised):
        method.begin_step(step_of((frame[None],)))
        method.begin_pass()
        features = method.visual_features(FEATURES[number])
    fresh = (features == FEATURES[1])[0]
    for encoder, columns in ((slice(0, 3), slice(0, DINO)), (slice(3, 6), slice(DINO, None))):
        gray = [(frame[:, encoder] * grays).sum(dim=1) for frame in normalised]
        apart = (gray[1] - gray[0]).abs().unfold(1, 14, 14).unfold(2, 14, 14).mean(dim=(3, 4))
        expected = apart.flatten() > 0.1
        assert 0 < expected.sum() < 32
        assert torch.equal(fresh[:, columns].all(dim=1), expected)
        assert torch.equal(fresh[:, columns].any(dim=1), expected)
    assert fresh[:, :DINO].sum() / DINO > 1.4 * fresh[:, DINO:].sum() / (WIDTH - DINO)


def test_of_equally_relevant_tokens_the_first_of_each_camera_are_anew():
    features, _ = second_frame(relevance=torch.zeros(32), threshold=9.0, count=3)
    anew = (features == FEATURES[1]).all(dim=2)[0].nonzero().flatten().tolist()
    assert anew == [0, 1, 2, 16, 17, 18]


def test_more_vision_encoders_than_thresholds_are_refused():
    class Three(type(CONFIG)):
        feature_widths = (8, 8, 8)

    config = Three(**{field.name: getattr(CONFIG, field.name) for field in fields(CONFIG)})
    with pytest.raises(ValueError, match=r'two vision encoders, and this policy has 3; .*\.$'):
        TtfVla().prepare(Path(), config)
