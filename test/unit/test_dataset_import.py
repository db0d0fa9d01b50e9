"""LeRobot datasets become demonstrations: by name, whole or not at all, for training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('pyarrow')
pytest.importorskip('av')
from safetensors.numpy import load_file
from training_data import make_demonstrations, small_config

from vla_policy_node import families
from vla_policy_node.checkpoints.layout import read_json
from vla_policy_node.checkpoints.statistics import read_statistics
from vla_policy_node.commands.dataset_import import chosen_episodes, import_dataset
from vla_policy_node.commands.train import stage_config
from vla_policy_node.common.terminal import make_console
from vla_policy_node.encoding.preprocess import ImagePreprocessor
from vla_policy_node.families import config_of
from vla_policy_node.lerobot.reader import LeRobotReader
from vla_policy_node.policy.interface import PolicySpec, Quantity
from vla_policy_node.runtime.small import create_small_checkpoint
from vla_policy_node.training import dataset_import
from vla_policy_node.training.batches import BatchMaker
from vla_policy_node.training.config import TrainingConfig
from vla_policy_node.training.data import TrainingData
from vla_policy_node.training.dataset_choice import choose
from vla_policy_node.training.dataset_import import DatasetImport
from vla_policy_node.training.demonstrations import Demonstrations, read_document
from vla_policy_node.training.fitting import check_fits
from vla_policy_node.training.state_only import train_state_only

PACK = Path(__file__).parents[1] / 'data' / 'lerobot_v3'
JOINTS = ('shoulder_pan', 'shoulder_lift', 'elbow_flex', 'wrist_flex', 'wrist_roll', 'gripper')
SPEC = PolicySpec(('top', 'wrist'), *[tuple(map(Quantity, JOINTS))] * 2)
JPEG_DB = 30  # of quality 95 against what was decoded; noise is the worst case
ROWS_READ_BACK = (0, 11, 12, 20)  # the ends of both episodes


def bring(kind, out, spec=None, **options):
    dataset = LeRobotReader(PACK / f'dataset_{kind}')
    work = DatasetImport(dataset, choose(dataset.info, spec, {}, **options), out, out.name)
    return dataset, [*work.run()]


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp('imported')
    for kind in ('video', 'image'):
        bring(kind, folder / kind)
    return folder


@pytest.mark.parametrize('kind', ['video', 'image'])
def test_numbers_and_pictures_are_those_of_the_dataset(imported, kind):
    source = np.load(PACK / f'source_{kind}.npz')
    dataset = LeRobotReader(PACK / f'dataset_{kind}')
    demos = Demonstrations(imported / kind)
    assert len(demos) == dataset.info.frames
    for episode in range(len(demos.episodes)):
        for tensor, key in (('proprio', 'observation.state'), ('action', 'action')):
            expected = source[f'ep{episode}__{key}']
            np.testing.assert_array_equal(demos.read(episode, tensor), expected)
    for camera in ('top', 'wrist'):
        pictures = dataset.pictures(0, f'observation.images.{camera}')
        for index, picture in enumerate(pictures):
            image = demos.load(index).images[camera]
            if kind == 'image':
                np.testing.assert_array_equal(image, picture)
            else:
                error = np.mean((image.astype(float) - picture) ** 2)
                assert 10 * np.log10(255**2 / error) > JPEG_DB


def test_chunks_beyond_the_end_are_padded_as_lerobot_pads_them(imported):
    back = np.load(PACK / 'readback.npz')
    demos = Demonstrations(imported / 'video', chunk_length=4)
    for row in ROWS_READ_BACK:
        np.testing.assert_array_equal(demos.load(row).actions, back[f'video__{row}__action'])


def test_where_the_task_changes_so_does_the_instruction(imported):
    demos = Demonstrations(imported / 'video')
    asked = json.loads((PACK / 'source_video_tasks.json').read_text())
    assert [demos.load(row).instruction for row in range(21)] == [*asked[0], *asked[1]]


def test_names_are_matched_and_put_in_the_order_of_the_policy():
    info = LeRobotReader(PACK / 'dataset_video').info
    spec = PolicySpec(('wrist',), (), tuple(map(Quantity, ('gripper', 'elbow_flex'))))
    choice = choose(info, spec, {})
    assert choice.cameras == {'wrist': 'observation.images.wrist'}
    assert choice.actions.places == (5, 2) and choice.actions.names == ('gripper', 'elbow_flex')
    assert choice.state.names == JOINTS and choice.after_end == 'hold'


def other(**changes):
    return PolicySpec(**{'cameras': SPEC.cameras, 'state': SPEC.state, 'actions': SPEC.actions,
                         **changes})


@pytest.mark.parametrize(('spec', 'options', 'sentence'), [
    (PolicySpec(), {}, "no camera called 'third_person'.*--camera third_person=KEY|takes 7"),
    (PolicySpec(('top',)), {}, 'the policy takes 7.*--action KEY'),
    (other(actions=tuple(map(Quantity, 'abcdef'))), {}, 'calls its own a, b.*--by-place'),
    (other(cameras=('left', 'wrist')), {}, r'--camera left=KEY, of observation\.images\.top'),
    (SPEC, {'action': 'next.reward'}, 'the 1 numbers of next.reward'),
    (SPEC, {'state': 'observation.images.top'}, 'no plain numbers in'),
    (SPEC, {'state': 'observation.force'}, 'has no feature observation.force.*--state KEY'),
])
def test_what_does_not_fit_is_refused_with_what_to_set(spec, options, sentence):
    info = LeRobotReader(PACK / 'dataset_video').info
    with pytest.raises(ValueError, match=sentence):
        choose(info, spec, {}, **options)


@pytest.mark.parametrize(('cameras', 'sentence'), [
    ({'top': 'front'}, 'has no camera front'), ({'front': 'top'}, "has no camera 'front'"),
    ({'top': 'wrist'}, 'two cameras of the policy are one')])
def test_cameras_that_there_are_not_are_refused(cameras, sentence):
    info = LeRobotReader(PACK / 'dataset_video').info
    with pytest.raises(ValueError, match=sentence):
        choose(info, SPEC, cameras)


def test_by_place_takes_as_many_numbers_under_other_names():
    info = LeRobotReader(PACK / 'dataset_video').info
    choice = choose(info, other(actions=tuple(map(Quantity, 'abcdef'))), {}, by_place=True)
    assert choice.actions.names == tuple('abcdef') and choice.actions.places == (0, 1, 2, 3, 4, 5)


def test_an_interrupted_import_is_no_set_and_goes_on(tmp_path, imported):
    dataset = LeRobotReader(PACK / 'dataset_image')
    out = tmp_path / 'image'

    def begin():
        return DatasetImport(dataset, choose(dataset.info, None, {}), out, 'image').run()

    episodes = begin()
    assert next(episodes).new
    episodes.close()
    assert not out.exists()
    (tmp_path / '.image.importing' / 'whole' / 'episode-0000001.99.tmp').write_bytes(b'half')
    assert [episode.new for episode in begin()] == [False, True, True]
    assert [*tmp_path.iterdir()] == [out]
    expected = Demonstrations(imported / 'image')
    assert read_document(out) == expected.document
    for number, path in enumerate(Demonstrations(out).episodes):
        tensors, others = load_file(path), load_file(expected.episodes[number])
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, others[name])


def test_other_options_do_not_go_on_with_what_was_begun(tmp_path):
    dataset = LeRobotReader(PACK / 'dataset_image')
    episodes = DatasetImport(
        dataset, choose(dataset.info, None, {}), tmp_path / 'a', 'a').run()
    next(episodes)
    episodes.close()
    with pytest.raises(ValueError, match='with other options'):
        next(DatasetImport(dataset, choose(dataset.info, None, {}), tmp_path / 'a', 'b').run())


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    with pytest.raises(ValueError, match='is there already'):
        bring('image', tmp_path)


def test_the_command_says_what_was_made_and_how_to_train(tmp_path, capsys):
    import_dataset(
        PACK / 'dataset_video', tmp_path / 'a', '', '', ['front=top'],
        ('observation.state', 'action'), False, '', make_console())
    assert '2 demonstrations of 21 steps at 10 Hz, 2 of them new' in capsys.readouterr().out
    assert read_document(tmp_path / 'a')['cameras'] == ['wrist', 'front']


@pytest.fixture(scope='module')
def maker(tmp_path_factory, imported):
    folder = tmp_path_factory.mktemp('policy')
    document = small_config() | {
        'cameras': [*SPEC.cameras], 'state': [*JOINTS], 'actions': [*JOINTS]}
    create_small_checkpoint(folder / 'checkpoint', config=document)
    config = config_of(document)
    return BatchMaker(
        config, families.of(config).load_prompt(folder / 'checkpoint', config),
        ImagePreprocessor(read_json(folder / 'checkpoint', 'preprocessor_config.json'),
                          config.image_px, config.center_crop),
        read_statistics(read_json(imported / 'video', 'dataset_statistics.json'), spec=SPEC),
        0.0, 0.0)


def test_of_chosen_episodes_only_their_files_are_needed(tmp_path):
    folder = shutil.copytree(PACK / 'dataset_image', tmp_path / 'dataset')
    (folder / 'data/chunk-001/file-000.parquet').unlink()
    dataset = LeRobotReader(folder)
    choice = choose(dataset.info, None, {})
    with pytest.raises(ValueError, match=r'file-000\.parquet is missing; it should hold the rows'):
        [*DatasetImport(dataset, choice, tmp_path / 'all', 'all').run()]
    [*DatasetImport(dataset, choice, tmp_path / 'part', 'part', range(1, 2)).run()]
    demos, source = Demonstrations(tmp_path / 'part'), np.load(PACK / 'source_image.npz')
    assert [path.name for path in demos.episodes] == ['episode-0000001.safetensors']
    np.testing.assert_array_equal(demos.read(0, 'action'), source['ep1__action'])
    statistics = json.loads((tmp_path / 'part' / 'dataset_statistics.json').read_text())
    assert statistics['part']['num_trajectories'] == 1


@pytest.mark.parametrize(('chosen', 'numbers'), [
    ('', range(3)), ('1:', range(1, 3)), (':2', range(2)), ('2:3', range(2, 3))])
def test_episodes_are_chosen_as_splits_are(chosen, numbers):
    assert chosen_episodes(chosen, 3) == numbers


@pytest.mark.parametrize('chosen', ['3', '2:2', '0:4', '-1:2', 'a:b', '5:'])
def test_episodes_that_are_not_there_are_refused(chosen):
    with pytest.raises(ValueError, match='within the 3 episodes'):
        chosen_episodes(chosen, 3)


def test_what_was_refused_leaves_nothing_and_can_be_mended(tmp_path):
    folder = shutil.copytree(PACK / 'dataset_image', tmp_path / 'dataset')
    info = folder / 'meta' / 'info.json'
    whole = info.read_text()
    info.write_text(whole.replace('"fps": 20', '"fps": 21'))
    for description, refused in ((info.read_text(), True), (whole, False)):
        info.write_text(description)
        dataset = LeRobotReader(folder)
        work = DatasetImport(dataset, choose(dataset.info, None, {}), tmp_path / 'out', 'out')
        if refused:
            with pytest.raises(ValueError, match='from its time'):
                next(work.run())
            assert [*tmp_path.iterdir()] == [folder]
        else:
            assert len([*work.run()]) == 3 and (tmp_path / 'out').is_dir()


def test_training_makes_batches_of_them(maker, imported):
    data = TrainingData(maker, Demonstrations(imported / 'video'), None,
                        TrainingConfig(stage='behavior_cloning', steps=1, batch=6))
    batch = data.batch(0)
    assert batch.actions.shape == (6, 8, 6) and batch.proprio.shape == (6, 6)
    assert batch.pixels.shape[:2] == (6, 2) and batch.coverage.shape[2] == 0
    assert batch.has_actions.all() and not batch.things.any()


def test_a_stage_that_learns_from_labels_refuses_a_set_without(imported):
    folder = imported / 'video'
    with pytest.raises(ValueError, match=r'losses token, point, attend, readout .*action: 1'):
        check_fits(folder, read_document(folder), Path('c'), SPEC,
                   stage_config('behavior_cloning', None, ()))
    check_fits(folder, read_document(folder), Path('c'), SPEC, stage_config(
        'behavior_cloning', None, ['losses={action: 1}', 'tokens_kept=0']))


@pytest.mark.parametrize(('spec', 'sentence'), [
    (other(cameras=('front',)), "no camera 'front'"),
    (other(state=SPEC.state[:5]), 'has the state shoulder_pan'),
    (other(actions=SPEC.actions[::-1]), 'has the actions shoulder_pan')])
def test_a_policy_that_they_are_not_for_is_refused_before_training(imported, spec, sentence):
    folder = imported / 'video'
    with pytest.raises(ValueError, match=f'{sentence}.*--checkpoint c'):
        check_fits(folder, read_document(folder), Path('c'), spec, stage_config(
            'behavior_cloning', None, ['losses={action: 1}']))


def test_the_blind_baseline_is_for_the_simulated_world(imported):
    with pytest.raises(ValueError, match='for demonstrations of the simulated world'):
        train_state_only(Demonstrations(imported / 'video'), steps=1)


def test_a_number_that_hardly_ever_moves_has_its_bounds_as_range(imported):
    from vla_policy_node.training.dataset_statistics import _widened

    values = np.zeros((1000, 2))
    values[0, 0], values[:, 1] = 5.0, np.linspace(0, 1, 1000)
    entry = _widened(values)
    assert entry['q99'][0] == 5.0 and entry['q99'][1] == pytest.approx(0.99)


def test_demonstrations_of_the_world_are_as_before(tmp_path):
    demos = Demonstrations(make_demonstrations(tmp_path, episodes=1))
    frame = demos.load(2)
    assert demos.has_labels and frame.labels and frame.objects
    assert (frame.actions[-1, :6] == 0).all()
    assert dataset_import.FRESH not in demos.document
