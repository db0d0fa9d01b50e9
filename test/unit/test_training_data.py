"""Batches: decoded once or anew, they are the same."""

import os
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from training_data import make_demonstrations, small_config

from vla_policy_node import families
from vla_policy_node.checkpoints.layout import read_json
from vla_policy_node.checkpoints.statistics import read_statistics
from vla_policy_node.commands.train import stage_config
from vla_policy_node.encoding.preprocess import ImagePreprocessor, Normaliser
from vla_policy_node.families import config_of
from vla_policy_node.runtime.small import create_small_checkpoint
from vla_policy_node.training.batches import BatchMaker
from vla_policy_node.training.config import TrainingConfig
from vla_policy_node.training.data import FreshFrames, TrainingData
from vla_policy_node.training.decoded import DecodedFrames
from vla_policy_node.training.demonstrations import SCATTERED, Demonstrations

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def maker(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    make_demonstrations(folder / 'demos')
    make_demonstrations(folder / 'scenes', layout=SCATTERED)
    create_small_checkpoint(folder / 'checkpoint', config=small_config())
    config = config_of(small_config())
    document = read_json(folder / 'checkpoint', 'preprocessor_config.json')
    maker = BatchMaker(
        config,
        families.of(config).load_prompt(folder / 'checkpoint', config),
        ImagePreprocessor(document, config.image_px, config.center_crop),
        read_statistics(read_json(folder / 'demos', 'dataset_statistics.json')),
        0.0, 0.0)
    return maker, Normaliser(document), folder


def opened(folder):
    return Demonstrations(folder / 'demos'), Demonstrations(folder / 'scenes')


@pytest.mark.parametrize('kind', [0, 1], ids=['demonstrations', 'scenes'])
def test_decoded_frames_are_the_fresh_ones(maker, kind):
    maker, normaliser, folder = maker
    source = opened(folder)[kind]
    frames = np.array([3, 0, 17, 40])
    fresh, decoded = (
        kept.batch(frames, np.random.default_rng(5), plain=True)
        for kept in (FreshFrames(source, maker),
                     DecodedFrames(source, maker, normaliser, CPU)))
    for field in fields(fresh):
        expected, value = getattr(fresh, field.name), getattr(decoded, field.name)
        if field.name not in ('asked', 'prompt_ids') or kind == 0:
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-6, msg=field.name)
    assert (decoded.asked != decoded.goal).all()


@pytest.mark.parametrize('side_px', [56, 224])  # 4 and 16 patches a row
def test_what_fills_the_picture_covers_every_patch(maker, side_px):
    _, _, folder = maker
    document = small_config()
    for encoder in document['vision_tiny'].values():
        encoder['img_size'] = side_px
    config, checkpoint = config_of(document), folder / 'checkpoint'
    maker = BatchMaker(
        config, families.of(config).load_prompt(checkpoint, config), ImagePreprocessor(
            read_json(checkpoint, 'preprocessor_config.json'), side_px, config.center_crop),
        read_statistics(read_json(folder / 'demos', 'dataset_statistics.json')), 0.0, 0.0)
    frame = opened(folder)[0].load(0)
    thing = 1 + frame.segments.index(frame.objects[0])
    full = {name: np.full_like(picture, thing) for name, picture in frame.labels.items()}
    view = maker.look(replace(frame, labels=full), np.random.default_rng(0))
    np.testing.assert_array_equal(maker.coverage(view.counts)[:, 0], 1.0)


def test_a_second_run_finds_them_decoded_and_a_changed_folder_is_refused(maker, monkeypatch):
    maker, normaliser, folder = maker
    source = opened(folder)[0]
    DecodedFrames(source, maker, normaliser, CPU)
    monkeypatch.setattr('vla_policy_node.training.decoded._decode_all', pytest.fail)
    DecodedFrames(source, maker, normaliser, CPU)
    newest = source.episodes[-1].stat().st_mtime
    os.utime(source.episodes[-1], (newest + 1000, newest + 1000))
    with pytest.raises(ValueError, match='delete it'):
        DecodedFrames(source, maker, normaliser, CPU)
    os.utime(source.episodes[-1], (newest, newest))
    source.frames = source.frames[:-1]
    with pytest.raises(ValueError, match='delete it'):
        DecodedFrames(source, maker, normaliser, CPU)


def test_decoding_that_fails_leaves_nothing_behind(maker, monkeypatch, tmp_path):
    maker, normaliser, _ = maker
    source = Demonstrations(make_demonstrations(tmp_path / 'demos'))
    monkeypatch.setattr('vla_policy_node.training.decoded.track', lambda *_, **__: 1 / 0)
    before = sorted(source.directory.iterdir())
    with pytest.raises(ZeroDivisionError):
        DecodedFrames(source, maker, normaliser, CPU)
    assert sorted(source.directory.iterdir()) == before


def test_scenes_and_demonstrations_share_a_batch_in_the_asked_for_parts(maker):
    maker, _, folder = maker
    config = TrainingConfig(stage='clone', steps=1, batch=16, scenes_share=0.25)
    batch = TrainingData(maker, *opened(folder), config).batch(0)
    assert batch.has_actions.tolist() == [False] * 4 + [True] * 12
    assert batch.pixels.shape[0] == batch.prompt_ids.shape[0] == 16


@pytest.mark.parametrize(('former', 'stage'), [
    ('ground', 'grounding'), ('locate', 'localization'), ('clone', 'behavior_cloning')])
def test_what_a_stage_was_called_before_is_accepted(former, stage):
    assert stage_config(former, None, ['steps=3']) == stage_config(stage, None, ['steps=3'])
    assert TrainingConfig(stage=former, steps=3).stage == stage
