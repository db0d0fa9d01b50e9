"""LeRobot datasets v3 of anybody: read as they were written, and refused in one sentence."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('pyarrow')
pytest.importorskip('av')
import pyarrow as pa
import pyarrow.parquet as pq

from vla_policy_node.commands.dataset_info import dataset_info
from vla_policy_node.common.terminal import make_console
from vla_policy_node.lerobot import reader, tables, videos
from vla_policy_node.lerobot.info import VIDEO_PATH, fill
from vla_policy_node.lerobot.reader import LeRobotReader, decode_picture

PACK = Path(__file__).parents[1] / 'data' / 'lerobot_v3'
LOSSY_DB = 27  # what the pack's README asks of the video
FEATURES = ('observation.state', 'action', 'next.reward', 'next.done')
DATA = 'data/chunk-000/file-000.parquet'
EPISODES = 'meta/episodes/chunk-000/file-000.parquet'
VIDEO = 'videos/observation.images.top/chunk-000/file-000.mp4'


def decibels(picture, source):
    return 10 * np.log10(255**2 / np.mean((picture.astype(float) - source) ** 2))


@pytest.fixture(params=['video', 'image'])
def recorded(request):
    source = np.load(PACK / f'source_{request.param}.npz')
    tasks = json.loads((PACK / f'source_{request.param}_tasks.json').read_text())
    return request.param, LeRobotReader(PACK / f'dataset_{request.param}'), source, tasks


def test_numbers_and_tasks_are_those_that_were_recorded(recorded):
    _, dataset, source, tasks = recorded
    for number, asked in enumerate(tasks):
        rows = dataset.rows(number, FEATURES)
        for key in FEATURES:
            np.testing.assert_array_equal(rows[key], source[f'ep{number}__{key}'].squeeze())
        assert [dataset.tasks[task] for task in rows['task_index']] == asked
    assert not dataset.remarks


def test_pictures_are_those_that_were_recorded(recorded):
    kind, dataset, source, tasks = recorded
    for number in range(len(tasks)):
        for key in dataset.info.cameras:
            pictures = np.stack([*dataset.pictures(number, key)])
            expected = source[f'ep{number}__{key}']
            assert pictures.shape == expected.shape
            if kind == 'image':
                np.testing.assert_array_equal(pictures, expected)
            else:
                assert decibels(pictures, expected) >= LOSSY_DB


def test_pictures_of_a_video_are_those_that_lerobot_reads():
    dataset, back = LeRobotReader(PACK / 'dataset_video'), np.load(PACK / 'readback.npz')
    pictures = [picture for number in range(2)
                for picture in dataset.pictures(number, 'observation.images.top')]
    for row in (0, 12, 20):
        expected = back[f'video__{row}__observation.images.top'].transpose(1, 2, 0)
        # One step is what decoders may differ in where they round colours.
        assert np.abs(pictures[row].astype(int) - expected).max() <= 1


def test_what_it_holds_is_printed(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')  # where no cell is broken
    dataset_info(PACK / 'dataset_video', make_console())
    said = capsys.readouterr().out
    for word in ('2 episodes', '10 rows per second', 'so101_follower', 'gripper.pos',
                 'pictures 64 x 96 x 3, video', 'Place it in the bin.'):
        assert word in said


@pytest.fixture
def copy(tmp_path):
    def make(kind='image'):
        target = tmp_path / kind
        shutil.copytree(PACK / f'dataset_{kind}', target)
        return target
    return make


def change_info(folder, **changes):
    path = folder / 'meta' / 'info.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_table(path, **columns):
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(place).type))
    pq.write_table(table, path)


def replace_column(path, name, values):
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, values), path)


def read_all(folder):
    dataset = LeRobotReader(folder)
    for number in range(len(dataset.episodes)):
        dataset.rows(number, ('observation.state', 'action'))
        for key in dataset.info.cameras:
            assert all(picture.ndim == 3 for picture in dataset.pictures(number, key))
    return dataset


@pytest.mark.parametrize(('changes', 'sentence'), [
    ({'codebase_version': 'v2.1'}, r'convert_dataset_v21_to_v30.*--push-to-hub=false'),
    ({'codebase_version': 7}, 'codebase_version 7'),
    ({'features': {}}, "no feature 'timestamp'"),
    ({'fps': 0}, 'fps must be'),
    ({'fps': 20.5}, 'from its time'),
    ({'total_episodes': 4}, 'describes 3'),
    ({'total_frames': 14}, '14 rows by meta/info.json and 15 by meta/episodes'),
    ({'data_path': '../{chunk_index}{file_index}'}, 'not inside of the dataset'),
    ({'data_path': '{0.__class__}'}, 'data_path must be like'),
    ({'data_path': 'd' * 5000}, 'data_path must be like'),
    ({'features': {'a\nb': {'dtype': 'float32', 'shape': [1]}}}, r"feature 'a\\nb'"),
    ({'total_frames': None}, "no entry 'total_frames'"),
    ({'features': [1]}, 'must hold an object'),
])
def test_a_wrong_description_is_refused(copy, changes, sentence):
    folder = copy()
    change_info(folder, **changes)
    with pytest.raises(ValueError, match=sentence):
        read_all(folder)


def change_feature(folder, key, **changes):
    info = json.loads((folder / 'meta' / 'info.json').read_text())
    change_info(folder, features={**info['features'], key: info['features'][key] | changes})


@pytest.mark.parametrize('changes', [
    {'info': {'is_depth_map': True}}, {'info': {'video.is_depth_map': True}},
    {'shape': [64, 64, 1]}])
def test_distances_are_no_pictures(copy, changes):
    folder = copy('video')
    change_feature(folder, 'observation.images.wrist', **changes)
    dataset = read_all(folder)
    assert [*dataset.info.cameras] == ['observation.images.top']
    with pytest.raises(ValueError, match='has no camera'):
        next(dataset.pictures(0, 'observation.images.wrist'))


@pytest.mark.parametrize('name', [DATA, EPISODES, VIDEO, 'meta/info.json'])
def test_a_link_to_nowhere_is_said_to_be_one(copy, name):
    folder = copy('video')
    (folder / name).unlink()
    (folder / name).symlink_to('blob')
    with pytest.raises(ValueError, match='link to a file that is not there'):
        read_all(folder)


@pytest.mark.parametrize('names', [
    {'motors': ['a', 'b', 'c', 'd', 'e', 'f']}, list('abcdef'),
    {name: place for place, name in enumerate('abcdef')}])
def test_names_are_read_in_each_form_that_there_is(copy, names):
    folder = copy()
    change_feature(folder, 'action', names=names)
    assert LeRobotReader(folder).info.features['action'].names == tuple('abcdef')


def test_a_column_of_lists_of_any_length_is_read_if_all_are_as_declared(copy):
    folder = copy()
    values = [[float(row)] * 6 for row in range(9)]
    for column in (values, [*values[:8], [1.0] * 5]):
        replace_column(folder / DATA, 'action', pa.array(column, pa.list_(pa.float32())))
        if len(column[8]) == 6:
            rows = LeRobotReader(folder).rows(1, ('action',))
            np.testing.assert_array_equal(rows['action'][:, 0], [5, 6, 7, 8])
        else:
            with pytest.raises(ValueError, match='column action does not hold 6'):
                LeRobotReader(folder).rows(1, ('action',))


def test_a_folder_without_a_description_is_no_dataset(tmp_path):
    with pytest.raises(ValueError, match='no whole dataset'):
        LeRobotReader(tmp_path)


@pytest.mark.parametrize('name', [DATA, EPISODES, 'meta/tasks.parquet', VIDEO])
@pytest.mark.parametrize('damage', ['gone', 'empty', 'cut', 'zeros', 'text'])
def test_a_damaged_file_is_named_in_one_sentence(copy, name, damage):
    folder = copy('video')
    path = folder / name
    whole = path.read_bytes()
    if damage == 'gone':
        path.unlink()
    else:
        half = len(whole) // 2
        path.write_bytes({'empty': b'', 'cut': whole[:half], 'text': b'ffconcat version 1.0\n',
                          'zeros': whole[:half] + bytes(len(whole) - half)}[damage])
    with pytest.raises(ValueError, match=re.escape(str(folder))) as refused:
        read_all(folder)
    assert '\n' not in str(refused.value)


def test_a_video_of_a_codec_that_nobody_knows_is_refused(copy):
    folder = copy('video')
    (folder / VIDEO).write_bytes((folder / VIDEO).read_bytes().replace(b'av01', b'zz01'))
    with pytest.raises(ValueError, match='of a codec that this PyAV does not decode'):
        read_all(folder)


@pytest.mark.parametrize('name', [DATA, EPISODES, VIDEO])
def test_no_byte_that_is_changed_ends_the_process(copy, name):
    folder = copy('video')
    whole = (folder / name).read_bytes()
    places = np.random.default_rng(0).integers(len(whole), size=25)
    for place in places:
        (folder / name).write_bytes(
            whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1:])
        try:
            read_all(folder)
        except ValueError as error:
            assert str(folder) in str(error) and '\n' not in str(error)


def test_a_missing_shard_of_the_metadata_is_noticed(copy):
    folder = copy()
    (folder / 'meta/episodes/chunk-001/file-000.parquet').unlink()
    with pytest.raises(ValueError, match='with all files of meta/episodes'):
        LeRobotReader(folder)


@pytest.mark.parametrize(('columns', 'sentence'), [
    ({'dataset_to_index': [0, 9]}, 'meta/episodes is damaged'),
    ({'dataset_from_index': [0, 4]}, 'meta/episodes is damaged'),
    ({'episode_index': [0, 0]}, 'once more'),
    ({'episode_index': [0, -1]}, 'negative'),
    ({'dataset_to_index': [4, 9], 'dataset_from_index': [0, 4]}, 'episode 0|episode 1'),
])
def test_episodes_that_do_not_fit_together_are_refused(copy, columns, sentence):
    folder = copy()
    change_table(folder / EPISODES, **columns)
    with pytest.raises(ValueError, match=sentence):
        read_all(folder)


def test_rows_in_another_file_than_named_are_found_with_a_remark(copy):
    folder = copy()
    change_table(folder / EPISODES, **{'data/chunk_index': [0, 1]})
    dataset = read_all(folder)
    remark, = dataset.remarks
    assert 'names file-000.parquet of chunk-001' in remark


def test_rows_that_no_file_has_are_refused(copy):
    folder = copy()
    change_table(folder / DATA, index=[0, 1, 2, 3, 4, 5, 6, 7, 99])
    with pytest.raises(ValueError, match='does not hold the rows 5 to 8 of episode 1'):
        read_all(folder)


def test_an_empty_cell_is_refused(copy):
    folder = copy()
    change_table(folder / DATA, action=[None] * 9)
    with pytest.raises(ValueError, match='column action does not hold'):
        read_all(folder)


def test_a_video_that_is_too_short_is_refused(copy):
    folder = copy('video')
    change_table(folder / EPISODES,
                 **{'videos/observation.images.top/from_timestamp': [0.0, 1.3]})
    with pytest.raises(ValueError, match=r'no picture at 2\.1'):
        read_all(folder)


@pytest.mark.parametrize(('module', 'bound', 'kind', 'sentence'), [
    (tables, '_MOST_TABLE_BYTES', 'image', 'do not fit into memory'),
    (tables, 'MOST_CELL_BYTES', 'image', 'bytes; at most 1 are read'),
    (tables, '_MOST_FILE_BYTES', 'image', 'never has more than'),
    (videos, '_MOST_PIXELS', 'video', 'pixels are decoded'),
    (videos, '_MOST_BYTES', 'video', 'never has more than'),
    (reader, '_MOST_TASKS', 'image', 'at most 1 are read')])
def test_what_is_too_large_is_refused_before_memory_is_taken(
        monkeypatch, module, bound, kind, sentence):
    monkeypatch.setattr(module, bound, 1)
    with pytest.raises(ValueError, match=sentence):
        read_all(PACK / f'dataset_{kind}')


@pytest.mark.parametrize(('numbered', 'sentence'), [
    ([0, None], 'does not number its 2 tasks'), ([0.0, float('nan')], 'does not number'),
    ([1, 1], 'does not number'), ([[0], [1]], 'is damaged')])
def test_tasks_without_a_number_of_their_own_are_refused(copy, numbered, sentence):
    folder = copy()
    pq.write_table(pa.table({'task_index': pa.array(numbered), 'task': ['a', 'b']}),
                   folder / 'meta/tasks.parquet')
    with pytest.raises(ValueError, match=sentence):
        LeRobotReader(folder)


def test_a_long_task_is_refused(copy):
    folder = copy()
    change_table(folder / 'meta/tasks.parquet', task=['x' * 4097, 'y'])
    with pytest.raises(ValueError, match='no text of at most 4096 bytes'):
        LeRobotReader(folder)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize(('key', 'sentence'), [
    ('index', 'does not hold the rows'), ('frame_index', 'does not count from 0'),
    ('task_index', 'is not in meta/tasks.parquet'), ('timestamp', 'row 0 is nan s')])
def test_numbers_that_are_none_are_refused_without_a_warning(copy, key, sentence):
    folder = copy()
    replace_column(folder / DATA, key, pa.array([float('nan')] * 9))
    with pytest.raises(ValueError, match=sentence):
        read_all(folder)


def test_a_path_instead_of_a_picture_is_refused(copy):
    folder = copy()
    cells = [{'bytes': None, 'path': 'images/a.png'}] * 9
    change_table(folder / DATA, **{'observation.images.top': cells})
    with pytest.raises(ValueError, match='embed them'):
        read_all(folder)


@pytest.mark.parametrize('data', [b'', b'\x89PNG\r\n\x1a\n', b'GIF89a' + bytes(50)])
def test_what_is_no_picture_is_a_sentence(data):
    with pytest.raises(ValueError, match='row 3: a picture cannot be decoded'):
        decode_picture(data, 'row 3')


def test_a_template_is_filled_as_format_does():
    assert fill(VIDEO_PATH, 'a.b', 1, 23) == 'videos/a.b/chunk-001/file-023.mp4'
    assert fill('{chunk_index}/{file_index:05d}', '', 2, 3) == '2/00003'
