"""Bags that are not as they should be: one sentence each, and nothing half-written."""

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import TwistStamped
from node_bench import create_tiny_checkpoint
from replay_bag import CAMERAS, PERIOD_NS, START_NS, make_bag
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from std_msgs.msg import Header

from vla_msgs.msg import PolicyInfo
from vla_policy_node.contract import find_contract, to_yaml
from vla_policy_node.control.action_spec import ActionSpec
from vla_policy_node.nodes.messages import to_info, to_time
from vla_policy_node.outputs.folder import OutputError
from vla_policy_node.outputs.whole import whole_folder
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.replay import run, write
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.bag_summary import summarise_bag
from vla_policy_node.replay.evaluate import evaluate_bag, replay_bag
from vla_policy_node.replay.repair import repair_bag
from vla_policy_node.replay.settings import ReplaySettings, read_info
from vla_policy_node.replay.topics import find_topics
from vla_policy_node.system.files import default_config

SHORT = {'seconds': 0.6}


@pytest.fixture(scope='module')
def settings(tmp_path_factory):
    checkpoint = str(create_tiny_checkpoint(tmp_path_factory.mktemp('tiny')))
    return ReplaySettings('dense', checkpoint=checkpoint, video=False)


def replay(bag, settings):
    return replay_bag(bag, settings, lambda what, share: None)


def refused(bag, settings, out):
    """The sentence with which a bag is refused; nothing must be left behind."""
    with pytest.raises(BagError) as caught:
        evaluate_bag(bag, settings, out)
    assert not out.exists()
    assert not list(out.parent.glob('.*'))
    sentence = str(caught.value)
    assert sentence.endswith('.')
    assert '\n' not in sentence
    return sentence


@pytest.mark.parametrize(('storage', 'compression'), [
    ('mcap', ''), ('mcap', 'storage'), ('sqlite3', ''), ('sqlite3', 'message'),
    ('sqlite3', 'file'),
])
def test_every_format_gives_the_same_actions(settings, tmp_path, storage, compression):
    plain = replay(make_bag(tmp_path / 'plain', **SHORT), settings).traces[0]
    other = replay(make_bag(tmp_path / 'other', **SHORT, storage=storage,
                            compression=compression), settings).traces[0]
    assert len(plain.inferences) == len(other.inferences) > 3
    for first, second in zip(plain.inferences, other.inferences, strict=True):
        assert (first.actions == second.actions).all()


def test_a_single_file_is_a_bag_too(settings, tmp_path):
    bag = make_bag(tmp_path / 'bag', **SHORT)
    assert replay(bag / 'bag.mcap', settings).traces[0].inferences


@pytest.mark.parametrize(('storage', 'name'), [('mcap', 'bag.mcap'), ('sqlite3', 'bag.db3')])
def test_a_truncated_bag_is_refused(settings, tmp_path, storage, name):
    bag = make_bag(tmp_path / 'bag', seconds=2.0, storage=storage)
    os.truncate(bag / name, (bag / name).stat().st_size // 2)
    assert 'damaged or cut off' in refused(bag, settings, tmp_path / 'out')


def test_a_recording_that_was_cut_off_says_how_to_repair_it(settings, tmp_path):
    bag = make_bag(tmp_path / 'bag', seconds=2.0, size=(120, 160))
    (bag / 'metadata.yaml').unlink()
    os.truncate(bag / 'bag.mcap', (bag / 'bag.mcap').stat().st_size * 2 // 3)
    assert 'vla record --repair' in refused(bag, settings, tmp_path / 'out')
    repaired, count = repair_bag(bag)
    with Bag(repaired) as whole:
        assert sum(whole.counts.values()) == count > 20
    assert replay(repaired, settings).traces[0].inferences


@pytest.mark.parametrize('topic', [
    '/third_person/image_raw', '/wrist/image_raw', '/ee_pose', '/gripper_state'])
def test_a_missing_topic_is_named(settings, tmp_path, topic):
    bag = make_bag(tmp_path / 'bag', **SHORT, omit=(topic,))
    sentence = refused(bag, settings, tmp_path / 'out')
    assert f"no messages on '{topic}'" in sentence


def test_a_topic_of_another_name_is_suggested(settings, tmp_path):
    bag = make_bag(tmp_path / 'bag', **SHORT, omit=('/third_person/image_raw',))
    sentence = refused(bag, settings, tmp_path / 'out')
    assert '--third-person-topic TOPIC: /wrist/image_raw' in sentence


def test_a_bag_that_does_not_say_what_was_asked_needs_the_option(settings, tmp_path):
    bag = make_bag(tmp_path / 'bag', **SHORT, omit=('/policy_status',))
    assert '--instruction' in refused(bag, settings, tmp_path / 'out')


def change(topic, **fields):
    """Alter every message of a topic."""
    def alter(index, message):
        for name, value in fields.items():
            setattr(message, name, value)
        return message

    return {topic: alter}


def shift(topic, seconds):
    """Alter the stamps of a topic."""
    def alter(index, message):
        stamp = message.header.stamp
        message.header.stamp = to_time(stamp.sec * 10**9 + stamp.nanosec + round(seconds * 1e9))
        return message

    return {topic: alter}


@pytest.mark.parametrize(('alter', 'cause'), [
    (change('/wrist/image_raw', encoding='32FC1'),
     "wrist (/wrist/image_raw): Image encoding '32FC1' is not supported"),
    (change('/gripper_state', position=[0.1], name=['a']),
     'gripper_state (/gripper_state): A message of gripper_state has 1 numbers of position'),
    (change('/ee_pose', header=Header(stamp=to_time(START_NS), frame_id='world')),
     "ee_pose (/ee_pose): The end-effector pose is in frame 'world'"),
    (shift('/wrist/image_raw', -0.15), 'wrist (/wrist/image_raw): No picture of wrist is near'),
    (shift('/wrist/image_raw', -2.0), 'its last stamp is 2 s before that of third_person; '
     '--config has a max_age_s of 0.3)'),
    (shift('/ee_pose', 3.0), 'went backwards or lie in the future'),
])
def test_why_a_bag_is_unusable_is_said_alone(settings, tmp_path, capfd, caplog, alter, cause):
    sentence = refused(make_bag(tmp_path / 'bag', **SHORT, alter=alter), settings,
                       tmp_path / 'out')
    assert 'could be used by dense: ' in sentence
    assert cause in sentence
    assert 'loosen' not in sentence and 'tick.' not in sentence
    assert capfd.readouterr() == ('', '') and not caplog.text


def test_a_policy_that_fails_on_everything_is_the_cause(settings, tmp_path, monkeypatch, capfd):
    def fail(*_):
        raise RuntimeError('the matrix is odd')

    monkeypatch.setattr(LocalPolicy, 'infer', fail)
    monkeypatch.setattr(run, 'warm_up', lambda *_: None)
    sentence = refused(make_bag(tmp_path / 'bag', **SHORT), settings, tmp_path / 'out')
    assert sentence.endswith('could be used by dense: RuntimeError: the matrix is odd.')
    assert 'Traceback' not in capfd.readouterr().err


def test_one_picture_of_an_unknown_encoding_costs_one_inference(settings, tmp_path):
    def depth_once(index, message):
        message.encoding = '32FC1' if index == 2 else message.encoding
        return message

    bag = make_bag(tmp_path / 'bag', **SHORT, alter={'/wrist/image_raw': depth_once})
    report = replay(bag, settings).report['a']
    assert report['counts']['node.wrist.unreadable'] == 1
    assert report['holds']['input_invalid'] > 0


def test_a_message_type_that_is_not_known_is_named(settings, tmp_path):
    path = tmp_path / 'bag'
    store = get_typestore(Stores.ROS2_KILTED)
    make_bag(path, **SHORT)
    foreign = tmp_path / 'foreign'
    with Writer(foreign, version=8, storage_plugin=StoragePlugin.MCAP) as writer, Bag(path) as bag:
        connections = {}
        for topic, time_ns, raw in bag.messages(bag.types):
            kind = 'std_msgs/msg/String' if topic == '/ee_pose' else bag.types[topic]
            if kind not in store.types:
                continue
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            writer.write(connections[topic], time_ns, raw)
    sentence = refused(foreign, settings, tmp_path / 'out')
    assert "'/ee_pose'" in sentence
    assert 'std_msgs/msg/String, and geometry_msgs/msg/PoseStamped is needed' in sentence


def test_bytes_of_another_version_of_a_message_are_refused(settings, tmp_path):
    bag = make_bag(tmp_path / 'bag', **SHORT, rewrite={'/command': lambda raw: raw[:20]})
    assert 'replay with the version of the messages' in refused(bag, settings, tmp_path / 'out')


def test_a_policy_info_from_before_it_was_lengthened_is_read(settings, tmp_path):
    policy = LocalPolicy.load(settings.checkpoint, methods=(), optimisation='fused')
    spec = ActionSpec('base_link', 'axis_angle', 0.05, 0.5, 1.0, -1.0)
    info = to_info(policy.description, spec, 'sync', dict.fromkeys(CAMERAS, 'none'),
                   find_contract(''), PERIOD_NS, START_NS)
    # Each string is its length, its letters and a zero; lengths lie at multiples of four.
    strings = struct.calcsize('I6sI6s')
    since = struct.calcsize(f'I6sI6sII13sI6sI{len(info.contract) + 1}s')
    new = make_bag(tmp_path / 'new', **SHORT, info=info)
    middle = make_bag(tmp_path / 'middle', **SHORT, info=info,
                      rewrite={'/policy_info': lambda raw: raw[:strings - since]})
    old = make_bag(tmp_path / 'old', **SHORT, info=info,
                   rewrite={'/policy_info': lambda raw: raw[:-since]})
    for bag, optimisation in ((new, 'fused'), (middle, 'fused'), (old, 'none')):
        trace = replay(bag, settings).traces[0]
        assert (trace.execution_mode, trace.description.optimisation) == ('sync', optimisation)
    with Bag(old) as opened:
        recorded = read_info(opened)
    assert (recorded.optimisation, recorded.preprocessing, recorded.cameras) == ('', '', [])
    for name in info.action.get_fields_and_field_types():
        assert getattr(recorded.action, name) == getattr(info.action, name), name


def test_a_recording_of_before_gives_the_report_of_one_of_today(settings, tmp_path):
    """As written by vla_msgs 0.1.0: see the README beside it."""
    old = Path(__file__).parents[1] / 'data' / 'recording_two_cameras'
    with Bag(old) as opened:
        recorded = read_info(opened)
    info = PolicyInfo(cameras=CAMERAS, contract=to_yaml(find_contract('')))
    for name in info.get_fields_and_field_types():
        if name not in ('header', 'action', 'cameras', 'contract'):
            setattr(info, name, getattr(recorded, name))
    for name in info.action.get_fields_and_field_types():
        setattr(info.action, name, getattr(recorded.action, name))
    new = make_bag(tmp_path / 'data' / old.name, **SHORT, info=info)
    assert (json.dumps(replay(old, settings).report, sort_keys=True)
            == json.dumps(replay(new, settings).report, sort_keys=True))


def test_a_policy_that_was_run_otherwise_is_remarked(settings, tmp_path):
    info = PolicyInfo(optimisation='graphs', preprocessing='exact')
    bag = make_bag(tmp_path / 'bag', **SHORT, info=info)
    notes = replay(bag, replace(settings, config=str(default_config()))).report['notes']
    assert [note for note in notes if note.startswith('Recorded with')] == [
        'Recorded with optimisation graphs, replayed with none: the actions may differ a little '
        'for that alone.']


def test_a_public_checkpoint_turns_pictures_and_the_report_says_so(settings, tmp_path):
    public = tmp_path / 'openvla-7b-oft-finetuned-libero-10'
    shutil.copytree(settings.checkpoint, public)
    bag = make_bag(tmp_path / 'bag', **SHORT)
    plain, turned = (
        replay(bag, replace(settings, config=str(default_config()), checkpoint=str(checkpoint)))
        for checkpoint in (settings.checkpoint, public))
    remark = 'pictures are turned as in training, third_person mirror_horizontal, wrist mirror'
    assert remark in ' '.join(turned.report['notes'])
    assert 'pictures are turned' not in ' '.join(plain.report['notes'])


def test_stamps_that_go_backwards_hold_are_counted_and_said(settings, tmp_path):
    def back(index, message):
        if index >= 6:
            message.header.stamp = to_time(START_NS + index * 100_000_000 - 300_000_000)
        return message

    bag = make_bag(tmp_path / 'bag', seconds=1.5, alter={'/third_person/image_raw': back})
    report = replay(bag, settings).report
    assert report['a']['counts']['input.third_person.backward'] == 1
    assert report['a']['holds']['clock_jump'] == 1
    assert any('stamps of third_person went backwards 1 times' in n for n in report['notes'])


def unstamped(index, message):
    message.header.stamp = to_time(0)
    return message


def test_stamps_that_are_all_zero_are_refused_by_topic_or_replaced_on_request(settings, tmp_path):
    inputs = ('/third_person/image_raw', '/wrist/image_raw', '/ee_pose', '/gripper_state')
    bag = make_bag(tmp_path / 'zero', **SHORT, alter=dict.fromkeys(
        (*inputs, '/policy_status'), unstamped))
    sentence = refused(bag, settings, tmp_path / 'out')
    assert f"has no stamps on {', '.join(inputs)}: all are zero" in sentence
    assert '--stamps log' in sentence
    by_log = replay(bag, replace(settings, stamps='log'))
    plain = replay(make_bag(tmp_path / 'plain', **SHORT), settings)
    for first, second in zip(by_log.traces[0].inferences, plain.traces[0].inferences, strict=True):
        assert first.stamp_ns == second.stamp_ns
        assert (first.actions == second.actions).all()
    assert by_log.report['bag']['goals'] == plain.report['bag']['goals']
    assert any('--stamps log' in note for note in by_log.report['notes'])
    assert not any('--stamps' in note for note in plain.report['notes'])
    evaluate_bag(bag, replace(settings, stamps='log', against='random_tokens:count=8'),
                 tmp_path / 'out')
    assert (tmp_path / 'out' / 'different_01.jpg').is_file()


def test_one_source_without_stamps_is_named_alone(settings, tmp_path):
    bag = make_bag(tmp_path / 'bag', **SHORT, alter={'/gripper_state': unstamped})
    assert 'no stamps on /gripper_state: all' in refused(bag, settings, tmp_path / 'out')


@pytest.mark.parametrize(('seconds', 'delay_ns'), [(0, 0), (5, 0), (10**9, 0), (None, 10**18)])
def test_no_stamp_of_another_clock_stretches_the_goal(settings, tmp_path, seconds, delay_ns):
    """Neither that of the first picture alone, nor those of a simulation."""
    def alter(index, message):
        if index == 0 and seconds is not None:
            message.header.stamp = to_time(seconds * 10**9)
        return message

    bag = make_bag(tmp_path / 'bag', **SHORT, omit=('/policy_status',), arrival_delay_ns=delay_ns,
                   alter={'/third_person/image_raw': alter})
    (goal,) = replay(bag, replace(settings, instruction='go')).report['bag']['goals']
    assert goal['duration_s'] < 1.0


@pytest.mark.parametrize(('topic', 'named'), [
    ('/wrist/image_raw', '/wrist/image_raw'),
    ('/third_person/image_raw', '/wrist/image_raw, /ee_pose, /gripper_state')])
def test_inputs_by_different_clocks_are_said_by_topic(settings, tmp_path, topic, named):
    def alter(index, message):
        message.header.stamp.sec += 10**9
        return message

    bag = make_bag(tmp_path / 'bag', **SHORT, alter={topic: alter})
    sentence = refused(bag, settings, tmp_path / 'out')
    assert f'the stamps of {named} are more than 10 s from those of third_person' in sentence
    assert replay(bag, replace(settings, stamps='log')).traces[0].inferences


def test_recording_times_of_another_clock_are_noticed(settings, tmp_path):
    """A bag recorded without simulated time: stamps are the simulation's, times are not."""
    bag = make_bag(tmp_path / 'bag', **SHORT, arrival_delay_ns=10**18)
    report = replay(bag, settings).report
    assert report['a']['actions_sent'] > 5
    assert any('different clocks' in note for note in report['notes'])


@pytest.mark.parametrize('wrist_hz', [30.0, 7.0])
def test_cameras_of_different_rate_are_paired_as_the_node_does(settings, tmp_path, wrist_hz):
    bag = make_bag(tmp_path / 'bag', seconds=1.0, camera_hz=10.0, wrist_hz=wrist_hz)
    trace = replay(bag, settings).traces[0]
    assert len(trace.inferences) >= 3
    assert all(i.spread_ns <= 40_000_000 for i in trace.inferences)


def test_the_twists_of_an_expert_are_displacements_per_period(tmp_path):
    def twist(index, command):
        message = TwistStamped(header=command.header)
        message.twist.linear.x, message.twist.angular.z = 0.1, -0.2
        return message

    with Bag(make_bag(tmp_path / 'bag', **SHORT, alter={'/command': twist})) as bag:
        topics = find_topics(bag, {}, '/command')
        actions = summarise_bag(bag, topics, '', PERIOD_NS).actions
    assert actions.target_ns[0] == START_NS + PERIOD_NS
    np.testing.assert_allclose(actions.delta[0], [0.005, 0, 0, 0, 0, -0.01])
    assert np.isnan(actions.gripper).all()


# --- the folder ---


def test_a_full_disk_leaves_nothing_under_the_final_name(settings, tmp_path, monkeypatch):
    bag = make_bag(tmp_path / 'bag', **SHORT)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(write, 'render', full)
    with pytest.raises(OutputError, match=r'^The disk is full, so nothing was written to'):
        evaluate_bag(bag, settings, tmp_path / 'out')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bag']


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which('mount'),
                    reason='only root can mount a disk of 1 MB')
def test_a_really_full_disk_is_one_sentence(settings, tmp_path):
    bag, disk = make_bag(tmp_path / 'bag', **SHORT), tmp_path / 'disk'
    disk.mkdir()
    mounted = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=100k', 'tmpfs', str(disk)], check=False)
    if mounted.returncode:
        pytest.skip('this machine lets nobody mount')
    try:
        with pytest.raises(OutputError, match=r'^The disk is full'):
            evaluate_bag(bag, settings, disk / 'out')
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(['umount', str(disk)], check=True)


def test_a_folder_of_somebody_else_is_not_replaced(settings, tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('years of work')
    with pytest.raises(OutputError, match='holds other files'):
        evaluate_bag(tmp_path / 'no bag', settings, tmp_path / 'mine')
    assert (tmp_path / 'mine' / 'thesis.txt').read_text() == 'years of work'


def test_an_interrupted_report_leaves_the_earlier_one(tmp_path):
    out = tmp_path / 'out'
    with whole_folder(out, 'vla test') as folder:
        (folder / 'report.json').write_text('1')
    with pytest.raises(KeyboardInterrupt), whole_folder(out, 'vla test') as folder:
        (folder / 'report.json').write_text('2')
        raise KeyboardInterrupt
    assert (out / 'report.json').read_text() == '1'
    assert [path.name for path in tmp_path.iterdir()] == ['out']


# --- memory ---

_MEASURE = '''
import sys
from pathlib import Path
from vla_policy_node.replay.evaluate import evaluate_bag
from vla_policy_node.replay.settings import ReplaySettings
from vla_policy_node.replay.bag_summary import summarise_bag

def resident_mb():
    return int(Path('/proc/self/statm').read_text().split()[1]) * 4096 / 2**20

seen = []
evaluate_bag(Path(sys.argv[1]), ReplaySettings('dense', checkpoint=sys.argv[2], video=False),
             Path(sys.argv[3]), lambda what, share: seen.append((what, share, resident_mb())))
half = [mb for what, share, mb in seen if what != 'drawing' and 0.2 < share < 0.4]
end = [mb for what, share, mb in seen if what != 'drawing' and share > 0.9]
print(sum(half) / len(half), sum(end) / len(end))
'''


def test_memory_stays_flat_on_a_long_bag(settings, tmp_path):
    """150 MB of pictures go by; keeping a sixth of the last two thirds would be seen."""
    bag = make_bag(tmp_path / 'long', seconds=40.0, size=(240, 320), commands=False)
    size_mb = sum(f.stat().st_size for f in Path(bag).iterdir()) / 2**20
    assert size_mb > 150
    done = subprocess.run(
        [sys.executable, '-c', _MEASURE, str(bag), settings.checkpoint, str(tmp_path / 'out')],
        capture_output=True, text=True, check=False, timeout=290)
    assert done.returncode == 0, done.stderr
    early_mb, late_mb = map(float, done.stdout.split())
    assert late_mb - early_mb < 15.0
