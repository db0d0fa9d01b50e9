"""Datasets that are written are laid out as LeRobot's own, file by file and value by value."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('pyarrow')
pytest.importorskip('av')
import pyarrow.parquet as pq
from lerobot_data import PACK, write_recording

from vla_policy_node.lerobot.info import Feature
from vla_policy_node.lerobot.parts import DatasetPlan, EpisodeParts
from vla_policy_node.lerobot.reader import LeRobotReader
from vla_policy_node.lerobot.videos import VideoWriter, check_encodable

FEATURES = ('observation.state', 'action', 'next.reward', 'next.done')
LOSSY_DB = 27
TABLES = ('data/chunk-000/file-000.parquet', 'meta/episodes/chunk-000/file-000.parquet',
          'meta/tasks.parquet')


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('written')
    return {kind: write_recording(folder / kind, kind) for kind in ('video', 'image')}


@pytest.mark.parametrize('kind', ['video', 'image'])
def test_what_is_written_is_read_back(written, kind):
    dataset, source = LeRobotReader(written[kind]), np.load(PACK / f'source_{kind}.npz')
    for number in range(len(dataset.episodes)):
        rows = dataset.rows(number, FEATURES)
        for key in FEATURES:
            np.testing.assert_array_equal(rows[key], source[f'ep{number}__{key}'].squeeze())
        for key in dataset.info.cameras:
            pictures, expected = [*dataset.pictures(number, key)], source[f'ep{number}__{key}']
            if kind == 'image':
                np.testing.assert_array_equal(np.stack(pictures), expected)
            else:
                error = np.mean((np.stack(pictures).astype(float) - expected) ** 2)
                assert 10 * np.log10(255**2 / error) >= LOSSY_DB


@pytest.mark.skipif(sys.platform != 'linux', reason='threads are listed in /proc')
def test_no_thread_of_an_encoder_gets_a_priority_of_its_own(tmp_path):
    """SVT-AV1 takes the highest one where the user is root, for its caller too."""
    def policies():
        threads = [int(path.name) for path in Path('/proc/self/task').iterdir()]
        return {os.sched_getscheduler(thread) for thread in threads}

    before = policies()
    feature = Feature('observation.images.top', 'video', (64, 64, 3))
    with VideoWriter(tmp_path / 'a.mp4', 10, feature) as video:
        video.add(np.zeros((64, 64, 3), np.uint8))
        assert policies() == before
    assert policies() == before


@pytest.mark.parametrize('kind', ['video', 'image'])
@pytest.mark.parametrize('name', TABLES)
def test_tables_have_lerobots_columns_and_types(written, kind, name):
    ours, theirs = (pq.read_schema(folder / name)
                    for folder in (written[kind], PACK / f'dataset_{kind}'))
    assert ours.equals(theirs)
    assert (b'huggingface' in (ours.metadata or {})) == (b'huggingface' in (theirs.metadata or {}))
    if b'huggingface' in (ours.metadata or {}):
        described = [json.loads(schema.metadata[b'huggingface'])['info']
                     for schema in (ours, theirs)]
        assert described[0] == described[1]


def test_the_text_of_tasks_is_the_index_of_a_pandas_table(written):
    ours, theirs = (json.loads(pq.read_schema(folder / 'meta/tasks.parquet').metadata[b'pandas'])
                    for folder in (written['video'], PACK / 'dataset_video'))
    assert {**ours, 'creator': 0} == {**theirs, 'creator': 0}


@pytest.mark.parametrize('kind', ['video', 'image'])
def test_the_description_is_lerobots(written, kind):
    ours, theirs = (json.loads((folder / 'meta/info.json').read_text())
                    for folder in (written[kind], PACK / f'dataset_{kind}'))
    assert ours.keys() == theirs.keys()
    for key in ours.keys() - {'chunks_size', 'features'}:  # the pack changed the first
        assert ours[key] == theirs[key], key
    for name, feature in theirs['features'].items():
        for entry in ('dtype', 'shape', 'names'):
            assert ours['features'][name][entry] == feature[entry], name
        if feature['dtype'] == 'video':
            said = ours['features'][name]['info']
            assert said.items() <= feature['info'].items() or said['video.codec'] != 'av1'


@pytest.mark.parametrize('kind', ['video', 'image'])
def test_statistics_are_lerobots_but_for_the_order_of_tasks(written, kind):
    ours, theirs = (json.loads((folder / 'meta/stats.json').read_text())
                    for folder in (written[kind], PACK / f'dataset_{kind}'))
    assert ours.keys() == theirs.keys()
    for key in ours.keys() - {'task_index'}:  # LeRobot numbers new tasks as a set has them
        for name, value in theirs[key].items():
            np.testing.assert_allclose(ours[key][name], value, rtol=2e-5, atol=1e-7)


def test_rows_of_an_episode_are_a_row_group_and_small_limits_make_files(tmp_path):
    folder = write_recording(tmp_path, 'image', limits_mb=(0, 0), chunks_size=2)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob('data/*/*'))
    assert names == ['data/chunk-000/file-000.parquet', 'data/chunk-000/file-001.parquet',
                     'data/chunk-001/file-000.parquet']
    assert pq.ParquetFile(folder / names[0]).num_row_groups == 1
    dataset = LeRobotReader(folder)
    assert [len(dataset.rows(number)['index']) for number in range(3)] == [5, 4, 6]


def test_videos_are_split_at_their_limit_and_found_again(tmp_path):
    folder = write_recording(tmp_path, 'video', limits_mb=(100, 0))
    assert len([*folder.glob('videos/observation.images.top/chunk-000/*.mp4')]) == 2
    dataset = LeRobotReader(folder)
    assert len([*dataset.pictures(1, 'observation.images.top')]) == 9
    assert dataset.episodes[1].videos['observation.images.top'] == (0, 1, 0.0)


def test_the_same_parts_make_the_same_bytes(tmp_path, written):
    again = write_recording(tmp_path, 'image')
    for path in sorted(written['image'].rglob('*.*')):
        assert path.read_bytes() == (again / path.relative_to(written['image'])).read_bytes()


def test_a_part_is_there_when_its_last_file_is(tmp_path):
    plan = DatasetPlan(10, (Feature('action', 'float32', (2,)),), '')
    parts = EpisodeParts(tmp_path, plan)
    assert not parts.has(0)
    parts.write(0, {'action': np.zeros((3, 2))}, ['a', 'b', 'a'], {})
    assert parts.has(0) and parts.read(0).tasks == ['a', 'b', 'a']
    (tmp_path / 'episode-000000.npz').unlink()
    assert not parts.has(0)


@pytest.mark.parametrize('pictures', [
    [np.zeros((4, 6, 3), np.uint8)] * 2, [np.zeros((6, 4, 3), np.uint8)] * 3])
def test_pictures_of_another_size_or_number_are_refused(tmp_path, pictures):
    plan = DatasetPlan(10, (Feature('observation.images.a', 'image', (4, 6, 3)),), '')
    with pytest.raises(ValueError, match=r'one size a camera|2 pictures for 3 rows'):
        EpisodeParts(tmp_path, plan).write(0, {}, ['a'] * 3, {'observation.images.a': pictures})
    assert not EpisodeParts(tmp_path, plan).has(0)


@pytest.mark.parametrize('shape', [(65, 64, 3), (64, 65, 3), (32, 64, 3)])
def test_sizes_that_no_video_has_are_refused_before_anything_is_written(shape):
    with pytest.raises(ValueError, match='--images'):
        check_encodable(Feature('observation.images.a', 'video', shape))
