"""Demonstrations on disk: nothing is lost, damage is named, chunks end, ranges have floors."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vla_policy_node.checkpoints.statistics import read_statistics
from vla_policy_node.training.dataset_statistics import statistics_of, write_statistics
from vla_policy_node.training.demonstrations import (
    Demonstration,
    Demonstrations,
    episode_path,
    pad_chunk,
    write_demonstration,
    write_document,
)

STEPS, FRAME_STEP, PX = 10, (0, 3, 7), 32
CAMERAS = ('third_person', 'wrist')
DOCUMENT = {
    'format': 1, 'suite': 'libero_object', 'layout': 'shuffled', 'cameras': list(CAMERAS),
    'noise': 0.1, 'versions': {'mujoco': 'one'},
}


def demonstration(seed=7):
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 255, PX)
    smooth = np.stack([np.add.outer(x, x) / 2, np.outer(x, x) / 255, np.tile(x, (PX, 1))], -1)
    return Demonstration(
        proprio=rng.normal(size=(STEPS, 8)),
        action=rng.uniform(-1, 1, (STEPS, 7)),
        executed=rng.uniform(-1, 1, (STEPS, 7)),
        frame_step=FRAME_STEP,
        object_position=rng.normal(size=(len(FRAME_STEP), 2, 3)),
        images={
            c: [np.roll(smooth, 5 * i, 0).astype(np.uint8) for i in range(3)] for c in CAMERAS},
        labels={c: rng.integers(0, 5, (3, PX // 2, PX // 2), np.uint8) for c in CAMERAS},
        suite='libero_object', task_id=3, layout='shuffled', seed=seed, noise=0.05, success=True,
        instruction='pick up the milk and place it in the basket', target='milk_1',
        objects=('milk_1', 'basket_1'), segments=('milk_1', 'basket_1', 'gripper', 'arm'),
    )


@pytest.fixture
def folder(tmp_path):
    write_document(tmp_path, DOCUMENT)
    write_demonstration(tmp_path, demonstration())
    write_demonstration(tmp_path, demonstration(seed=12))
    return tmp_path


def test_a_frame_holds_what_was_recorded(folder):
    recorded, data = demonstration(), Demonstrations(folder, chunk_length=4)
    assert len(data) == 6
    frame = data.load(1)
    assert frame.instruction == recorded.instruction
    assert (frame.target, frame.objects) == (recorded.target, recorded.objects)
    assert frame.segments == recorded.segments
    assert frame.has_actions
    np.testing.assert_array_equal(frame.proprio, recorded.proprio[3].astype(np.float32))
    np.testing.assert_array_equal(frame.actions, recorded.action[3:7].astype(np.float32))
    np.testing.assert_array_equal(
        frame.object_position, recorded.object_position[1].astype(np.float32))
    for camera in CAMERAS:
        np.testing.assert_array_equal(frame.labels[camera], recorded.labels[camera][1])
        difference = frame.images[camera].astype(int) - recorded.images[camera][1]
        assert np.abs(difference).mean() < 4


def test_whole_tensors_and_headers_are_there_for_whoever_needs_all_steps(folder):
    data = Demonstrations(folder)
    np.testing.assert_array_equal(
        data.read(1, 'executed'), demonstration(12).executed.astype(np.float32))
    assert data.header(1)['seed'] == '12'
    assert data.header(1)['success'] == 'true'


def test_after_the_end_the_hand_stands_still_and_the_gripper_stays(folder):
    frame = Demonstrations(folder, chunk_length=8).load(2)
    last = demonstration().action[-1].astype(np.float32)
    assert frame.actions.shape == (8, 7)
    np.testing.assert_array_equal(frame.actions[2], last)
    np.testing.assert_array_equal(frame.actions[3:, :6], 0)
    np.testing.assert_array_equal(frame.actions[3:, 6], last[6])


def test_a_chunk_that_is_full_is_left_alone():
    actions = np.random.default_rng(0).normal(size=(4, 7))
    np.testing.assert_array_equal(pad_chunk(actions, 4), actions)


@pytest.mark.parametrize('keep', [5, 400, 0.9])
def test_a_file_cut_short_is_refused_in_one_sentence(folder, keep):
    path = episode_path(folder, 12)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if keep > 1 else int(keep * len(whole))])
    with pytest.raises(ValueError, match=r'episode-0000012.* cut short; delete it.*\.$'):
        data = Demonstrations(folder)
        data.load(len(data) - 1)


def test_a_folder_without_demonstrations_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match='make one with vla demos'):
        Demonstrations(tmp_path)
    write_document(tmp_path, DOCUMENT)
    with pytest.raises(ValueError, match='no demonstrations yet'):
        Demonstrations(tmp_path)


def test_a_folder_of_other_demonstrations_is_not_mixed(folder):
    write_document(folder, DOCUMENT | {'versions': {'mujoco': 'two'}})
    with pytest.raises(ValueError, match=r'noise 0\.1, not 0\.0'):
        write_document(folder, DOCUMENT | {'noise': 0.0})


def test_a_later_format_is_refused(folder):
    (folder / 'demonstrations.json').write_text(json.dumps(DOCUMENT | {'format': 2}))
    with pytest.raises(ValueError, match='format 2, this version reads 1'):
        Demonstrations(folder)


def test_a_disk_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match='cannot be written'):
        write_demonstration(tmp_path / 'gone', demonstration())


def test_statistics_are_those_of_the_policy(folder):
    document = json.loads(write_statistics(Demonstrations(folder)).read_text())
    statistics = read_statistics(document)
    assert statistics.key == 'libero_object_shuffled'
    assert statistics.action_mask.tolist() == [True] * 6 + [False]
    actions = np.concatenate([demonstration(seed).action for seed in (7, 12)])
    np.testing.assert_allclose(
        statistics.action_high[:3], np.quantile(actions[:, :3], 0.99, axis=0), rtol=1e-6)
    assert document[statistics.key]['num_transitions'] == 2 * STEPS
    assert document[statistics.key]['num_trajectories'] == 2


def test_what_hardly_moves_keeps_a_range():
    action = np.zeros((50, 7))
    action[:, 3] = np.linspace(-0.4, 0.1, 50)
    proprio = np.tile(np.arange(8.0), (50, 1))
    entry = statistics_of(action, proprio)
    low, high = (np.array(entry['action'][q]) for q in ('q01', 'q99'))
    assert low[3] < -0.38  # wider than the floor: as it is
    assert high[3] == 0.25
    np.testing.assert_array_equal(high[4:6] - low[4:6], 0.5)
    spread = np.subtract(entry['proprio']['q99'], entry['proprio']['q01'])
    assert (spread >= 0.01 - 1e-12).all()
    np.testing.assert_allclose(
        np.add(entry['proprio']['q99'], entry['proprio']['q01']) / 2, np.arange(8.0))


@pytest.mark.parametrize('kind', ['jpeg', 'segments'])
def test_a_garbled_picture_is_refused_by_the_name_of_its_file(kind, tmp_path):
    write_document(tmp_path, DOCUMENT)
    path = write_demonstration(tmp_path, demonstration())
    with safe_open(path, 'numpy') as file:
        tensors, header = load_file(path), file.metadata()
    tensors[f'wrist.{kind}'][:] = 7
    save_file(tensors, path, header)
    with pytest.raises(ValueError, match=rf'{path.name} is damaged or was cut short; delete it'):
        Demonstrations(tmp_path).load(1)
