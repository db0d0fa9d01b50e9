"""Demonstrations exported and imported again: without loss, training sees the same."""

import json
import shutil
from dataclasses import fields

import numpy as np
import pytest
import torch

pytest.importorskip('pyarrow')
pytest.importorskip('av')
import training_data
from safetensors.numpy import load_file
from training_data import make_demonstrations, small_config

from vla_policy_node import families
from vla_policy_node.checkpoints.layout import read_json
from vla_policy_node.checkpoints.statistics import read_statistics
from vla_policy_node.commands.dataset_export import export_dataset
from vla_policy_node.common.terminal import make_console
from vla_policy_node.encoding.preprocess import ImagePreprocessor
from vla_policy_node.families import config_of
from vla_policy_node.lerobot.reader import LeRobotReader
from vla_policy_node.runtime.small import create_small_checkpoint
from vla_policy_node.training.batches import BatchMaker
from vla_policy_node.training.config import TrainingConfig
from vla_policy_node.training.data import TrainingData
from vla_policy_node.training.dataset_choice import choose
from vla_policy_node.training.dataset_export import DatasetExport
from vla_policy_node.training.dataset_extras import EXTRAS, extras_path
from vla_policy_node.training.dataset_import import FRESH, DatasetImport
from vla_policy_node.training.demonstrations import SCATTERED, Demonstrations


def export(demos, out, lossless=True):
    return [*DatasetExport(Demonstrations(demos), out, lossless).run()]


def bring(dataset, out, spec=None):
    reader = LeRobotReader(dataset)
    return [*DatasetImport(reader, choose(reader.info, spec, {}), out, out.name).run()]


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp('round')
    make_demonstrations(folder / 'demos', steps=6)
    export(folder / 'demos', folder / 'dataset')
    bring(folder / 'dataset', folder / 'back')
    return folder


@pytest.fixture
def dataset(folders, tmp_path):
    """Return a dataset of this test's own."""
    return shutil.copytree(folders / 'dataset', tmp_path / 'dataset')


def test_rows_are_control_steps_and_say_which_pictures_are_fresh(folders):
    dataset, demos = LeRobotReader(folders / 'dataset'), Demonstrations(folders / 'demos')
    assert (dataset.info.fps, dataset.info.robot) == (20, 'panda')
    for number in (0, 25):
        rows = dataset.rows(number, ('observation.state', 'action', FRESH))
        np.testing.assert_array_equal(rows['observation.state'], demos.read(number, 'proprio'))
        np.testing.assert_array_equal(rows['action'], demos.read(number, 'action'))
        np.testing.assert_array_equal(np.flatnonzero(rows[FRESH]), [0, 4])
        assert dataset.task_of(rows) == demos.header(number)['instruction']
    pictures = [*dataset.pictures(0, 'observation.images.wrist')]
    for row, picture in enumerate(pictures):
        np.testing.assert_array_equal(picture, demos.load(row // 4).images['wrist'])


def test_a_round_trip_loses_nothing_but_the_form_of_the_pictures(folders):
    before, after = (Demonstrations(folders / name) for name in ('demos', 'back'))
    assert after.document == {**before.document, 'pictures': 'png'}
    assert [path.name for path in after.episodes] == [path.name for path in before.episodes]
    assert [after.header(number) for number in range(26)] == [
        before.header(number) for number in range(26)]
    for one, other in zip(before.episodes, after.episodes, strict=True):
        tensors, others = load_file(one), load_file(other)
        for name in tensors:
            if '.jpeg' not in name:
                np.testing.assert_array_equal(others[name], tensors[name])
    statistics = [(folders / name / 'dataset_statistics.json').read_bytes()
                  for name in ('demos', 'back')]
    assert statistics[0] == statistics[1]


def test_training_on_what_was_imported_again_sees_the_same_bits(folders):
    document = small_config()
    create_small_checkpoint(folders / 'checkpoint', config=document)
    config = config_of(document)
    trainings = []
    for name in ('demos', 'back'):
        maker = BatchMaker(
            config, families.of(config).load_prompt(folders / 'checkpoint', config),
            ImagePreprocessor(read_json(folders / 'checkpoint', 'preprocessor_config.json'),
                              config.image_px, config.center_crop),
            read_statistics(read_json(folders / name, 'dataset_statistics.json')), 1.0, 1.0)
        trainings.append(TrainingData(
            maker, Demonstrations(folders / name), None,
            TrainingConfig(stage='behavior_cloning', steps=2, batch=8)))
    for step in range(2):
        before, after = (data.batch(step) for data in trainings)
        for field in fields(before):
            assert torch.equal(getattr(before, field.name), getattr(after, field.name)), field.name


def test_exported_again_it_is_the_same_dataset(folders, tmp_path):
    export(folders / 'back', tmp_path / 'again')
    for path in sorted((folders / 'dataset').rglob('*.parquet')):
        again = tmp_path / 'again' / path.relative_to(folders / 'dataset')
        assert again.read_bytes() == path.read_bytes()


def test_an_interrupted_export_is_no_dataset_and_goes_on_to_the_same(folders, tmp_path):
    out = tmp_path / 'dataset'
    work = DatasetExport(Demonstrations(folders / 'demos'), out, True).run()
    for _ in range(3):
        next(work)
    work.close()
    assert not out.exists()
    assert [episode.new for episode in export(folders / 'demos', out)] == [
        *[False] * 3, *[True] * 23]
    assert [*tmp_path.iterdir()] == [out]
    for path in sorted((folders / 'dataset').rglob('*.parquet')):
        assert (out / path.relative_to(folders / 'dataset')).read_bytes() == path.read_bytes()


def test_an_earlier_dataset_is_replaced_and_other_files_are_not(tmp_path):
    make_demonstrations(tmp_path / 'demos', episodes=2, steps=6)
    out = tmp_path / 'dataset'
    export(tmp_path / 'demos', out)
    made = (out / 'meta' / 'info.json').stat().st_ino
    export(tmp_path / 'demos', out)
    assert (out / 'meta' / 'info.json').stat().st_ino != made
    (out / 'notes.txt').write_text('mine')
    with pytest.raises(ValueError, match=r'notes\.txt'):
        export(tmp_path / 'demos', out)
    assert (out / 'notes.txt').read_text() == 'mine' and len(LeRobotReader(out).episodes) == 2


def test_without_its_extras_it_is_imported_as_anybodys(dataset, tmp_path):
    (dataset / EXTRAS / 'demonstrations.json').unlink()
    bring(dataset, tmp_path / 'back')
    demos = Demonstrations(tmp_path / 'back')
    assert not demos.has_labels and demos.document['after_end'] == 'still'
    np.testing.assert_array_equal(demos.read(0, 'frame_step'), [0, 4])


def test_extras_of_another_episode_are_refused(dataset, tmp_path):
    path = extras_path(dataset, 1)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match='does not belong to its episode'):
        bring(dataset, tmp_path / 'back')


@pytest.mark.parametrize('changes', [
    {'cameras': 7}, {'cameras': [1]}, {'suite': None}, {'layout': ['a']}])
def test_a_description_of_extras_that_is_none_is_refused(dataset, tmp_path, changes):
    path = dataset / EXTRAS / 'demonstrations.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match='does not name suite, layout and cameras'):
        bring(dataset, tmp_path / 'back')


def test_videos_are_lossy_and_said_to_be(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training_data, 'PX', 112)
    make_demonstrations(tmp_path / 'demos', episodes=2, steps=6)
    export_dataset(tmp_path / 'demos', tmp_path / 'dataset', False, 'arm', make_console())
    said = capsys.readouterr().out
    assert '2 episodes of 12 rows at 20 Hz, 2 of them new' in said and 'lossy' in said
    assert f'where {FRESH} is false' in said
    assert LeRobotReader(tmp_path / 'dataset').info.robot == 'arm'
    bring(tmp_path / 'dataset', tmp_path / 'back')
    before, after = (Demonstrations(tmp_path / name) for name in ('demos', 'back'))
    for camera, image in before.load(1).images.items():
        error = np.mean((after.load(1).images[camera].astype(float) - image) ** 2)
        assert 10 * np.log10(255**2 / error) > 25  # squares with hard edges
    assert (after.load(1).labels['wrist'] == before.load(1).labels['wrist']).all()


def test_still_scenes_and_pictures_of_no_video_are_refused_at_once(tmp_path):
    make_demonstrations(tmp_path / 'scenes', episodes=1, layout=SCATTERED)
    make_demonstrations(tmp_path / 'demos', episodes=1)
    for name, sentence in (('scenes', 'still pictures without actions'), ('demos', '--images')):
        with pytest.raises(ValueError, match=sentence):
            DatasetExport(Demonstrations(tmp_path / name), tmp_path / 'out', False)
    assert not [path for path in tmp_path.iterdir() if 'out' in path.name]
