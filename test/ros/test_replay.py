"""A bag through the policy: deterministic, exact where it must be, and a gate."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from node_bench import create_tiny_checkpoint
from replay_bag import INSTRUCTION, PERIOD_NS, START_NS, make_bag

from vla_policy_node.control.hold import HoldReason
from vla_policy_node.outputs.listing import LIST
from vla_policy_node.replay.actions import Actions
from vla_policy_node.replay.evaluate import evaluate_bag, replay_bag
from vla_policy_node.replay.gate import GateLimits, parse_error_limit
from vla_policy_node.replay.metrics import gripper_agreement, sent_actions, smoothness
from vla_policy_node.replay.settings import ReplaySettings

# Files that hold wall times, or sums of them, so differ from run to run.
WALL_TIME = {'latency.json', 'latency.png', 'report.html', LIST}


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return str(create_tiny_checkpoint(tmp_path_factory.mktemp('tiny')))


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    return make_bag(tmp_path_factory.mktemp('bags') / 'bag')


@pytest.fixture
def run(checkpoint):
    """Replay a bag without writing anything."""
    def replay(bag, config='dense', **settings):
        settings = ReplaySettings(config, checkpoint=checkpoint, **settings)
        return replay_bag(bag, settings, lambda what, share: None)

    return replay


def test_two_runs_leave_the_same_bytes_but_for_wall_times(bag, checkpoint, tmp_path):
    settings = ReplaySettings('dense', 'random_tokens:count=8', checkpoint=checkpoint)
    for name in ('first', 'second'):
        evaluate_bag(bag, settings, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / 'first').iterdir())
    assert {'report.json', 'report.html', 'latency.json', 'overlay.mp4', 'commands.png',
            'different_01.jpg'} <= {*files}
    for name in set(files) - WALL_TIME:
        first, second = (tmp_path / run / name for run in ('first', 'second'))
        assert first.read_bytes() == second.read_bytes(), f'{name} differs'
    report = json.loads((tmp_path / 'first' / 'report.json').read_text())
    assert report['a']['inferences'] == report['b']['inferences'] == 20
    assert len(report['most_different']) == 10
    assert report['difference']['paired']['tokens_kept']['mean'] == -24.0
    assert report['difference']['paired']['gflops']['mean'] < 0.0
    assert report['difference']['paired']['camera_spread_s']['max'] == 0.0
    grown = report['difference']['error_to_bag'][0]['mean']
    assert grown == pytest.approx(
        report['b']['actions']['error'][0]['mean'] - report['a']['actions']['error'][0]['mean'])


def test_the_data_set_to_un_normalise_with_can_be_chosen(bag, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / 'two')
    path = tmp_path / 'two' / 'dataset_statistics.json'
    (entry,) = json.loads(path.read_text()).values()
    halved = {kind: {name: (np.array(values) / 2).tolist() if name[0] == 'q' else values
                     for name, values in part.items()} if isinstance(part, dict) else part
              for kind, part in entry.items()}
    path.write_text(json.dumps({'whole': entry, 'halved': halved}))
    settings = ReplaySettings('dense', checkpoint=str(tmp_path / 'two'))
    with pytest.raises(ValueError, match='choose one of whole, halved as statistics_key'):
        replay_bag(bag, settings, lambda what, share: None)
    whole, half = (
        replay_bag(bag, replace(settings, statistics_key=key), lambda what, share: None)
        for key in ('whole', 'halved'))
    first, second = (run.traces[0].inferences[0].actions[:, :6] for run in (whole, half))
    np.testing.assert_allclose(second, first / 2, atol=0.2)
    assert not np.allclose(second, first, atol=1e-4)


def test_too_long_an_instruction_is_one_sentence(bag, run):
    with pytest.raises(ValueError, match=r'instruction is too long: .* in fewer words[.]$'):
        run(bag, instruction='kwyjibo ' * 500)


def test_an_inference_takes_its_part_of_the_bag_s_time(bag, run):
    """Ten cameras frames a second, inferences of 0, 50 and 250 ms: newest wins meanwhile."""
    for periods, interval_ns in ((0, 100_000_000), (1, 100_000_000), (5, 300_000_000)):
        trace = run(bag, latency_periods=periods).traces[0]
        stamps = [i.stamp_ns for i in trace.inferences]
        assert set(np.diff(stamps)) <= {interval_ns, interval_ns - 100_000_000 or interval_ns}
        first = next(c for _, c in trace.commands if c.hold.code is HoldReason.NONE)
        assert first.target_time_ns >= START_NS + periods * PERIOD_NS


def test_what_the_policy_itself_sent_is_no_error(bag, run, tmp_path):
    """A bag whose commands are those of a first replay: the second one agrees in every digit."""
    sent = sent_actions(run(bag).traces[0])
    by_target = {int(t): i for i, t in enumerate(sent['target_ns'])}

    def as_sent(index, message):
        row = by_target.get(START_NS + (index + 1) * PERIOD_NS)
        if row is None:
            message.hold = True
            return message
        delta = [float(v) for v in sent['delta'][row]]
        (message.translation.x, message.translation.y, message.translation.z,
         message.rotation.x, message.rotation.y, message.rotation.z) = delta
        message.gripper = float(sent['gripper'][row])
        return message

    again = run(make_bag(tmp_path / 'again', alter={'/command': as_sent}))
    found = again.report['a']['actions']
    assert len(by_target) - 1 == found['periods'] > 30  # the last one is after the bag's end
    assert max(row['max'] for row in found['sent_error']) == 0.0
    assert found['gripper']['agreement'] == 1.0


def test_the_bag_says_what_was_asked_and_an_option_wins(bag, run):
    assert {i.instruction for i in run(bag).traces[0].inferences} == {INSTRUCTION}
    other = run(bag, instruction='open the drawer').traces[0]
    assert {i.instruction for i in other.inferences} == {'open the drawer'}


def test_one_instruction_after_the_other_and_nothing_in_between(run, tmp_path):
    def two_goals(index, status):
        status.goal_active = index in (0, 1, 2, 3, 6, 7, 8)
        status.epoch = 1 if index < 4 else 2 if index < 6 else 3
        status.instruction = 'open the drawer' if index < 4 else 'close the drawer'
        return status

    trace = run(make_bag(tmp_path / 'bag', alter={'/policy_status': two_goals})).traces[0]
    seconds = {}
    for inference in trace.inferences:
        seconds.setdefault(inference.instruction, []).append(
            (inference.stamp_ns - START_NS) / 1e9)
    assert list(seconds) == ['open the drawer', 'close the drawer']
    first, second = seconds.values()
    assert (first[0], first[-1]) == (0.0, 0.8)
    assert 1.1 <= second[0] <= 1.2
    assert second[-1] <= 1.8
    idle = [c for t, c in trace.commands if START_NS + 0.85e9 < t < START_NS + 1.2e9]
    assert {c.hold.code for c in idle} == {HoldReason.GOAL_FINISHED}


def test_a_gap_of_a_day_costs_neither_time_nor_memory(run, tmp_path):
    bag = make_bag(tmp_path / 'bag', late_from_s=1.0, late_by_ns=86_400 * 10**9)
    trace = run(bag).traces[0]
    assert len(trace.commands) < 400
    assert trace.counts['node.periods_skipped_in_silence'] > 1_700_000
    assert trace.inferences[-1].stamp_ns > START_NS + 86_400 * 10**9


def test_with_methods_off_both_policies_say_the_same(bag, run):
    evaluation = run(bag, against='dense')
    assert [trace.label for trace in evaluation.traces] == ['dense (A)', 'dense (B)']
    assert max(row['max'] for row in evaluation.report['difference']['error']) == 0.0
    assert evaluation.report['difference']['gripper']['agreement'] == 1.0


@pytest.mark.parametrize(('limits', 'passed'), [
    (GateLimits((parse_error_limit('1m'), parse_error_limit('3rad')), 1e6, 0.0), True),
    (GateLimits((parse_error_limit('1e-9mm'),)), False),
    (GateLimits(p95_ms=0.001), False),
])
def test_the_gate_passes_and_fails(bag, run, limits, passed):
    evaluation = run(bag, against='random_tokens:count=4', limits=limits)
    assert evaluation.passed is passed
    assert all(verdict.text for verdict in evaluation.verdicts)


def test_a_gate_with_nothing_to_compare_with_fails(run, tmp_path):
    bag = make_bag(tmp_path / 'bag', seconds=0.5, commands=False)
    evaluation = run(bag, limits=GateLimits((parse_error_limit('1m'),)))
    assert not evaluation.passed
    assert 'nothing to compare with' in evaluation.verdicts[0].text


@pytest.mark.parametrize('text', ['2', 'mm', '-1mm', '2 furlongs', ''])
def test_an_error_limit_without_a_unit_is_refused(text):
    with pytest.raises(ValueError, match=r'e\.g\. 2mm or 0\.5deg'):
        parse_error_limit(text)


# --- the figures themselves, against numbers worked out by hand ---


def test_gripper_switches_are_matched_by_direction_and_timed():
    time_ns = np.arange(8) * PERIOD_NS
    theirs = np.array([1, 1, 0, 0, 0, 1, 1, 1.0])
    ours = np.array([1, 1, 1, 0, 0, 1, 0, 1.0])  # closes 50 ms late, and once more
    found = gripper_agreement((time_ns, ours), (time_ns, theirs), np.zeros(8, int))
    assert found['agreement'] == 6 / 8
    assert (found['switches'], found['matched'], found['missed'], found['extra']) == (2, 2, 0, 2)
    assert found['timing_s']['mean_signed'] == pytest.approx(0.025)


def test_a_switch_between_two_goals_is_none():
    time_ns = np.arange(4) * PERIOD_NS
    found = gripper_agreement((time_ns, np.array([1, 1, 0, 0.0])),
                              (time_ns, np.array([1, 1, 0, 0.0])), np.array([1, 1, 3, 3]))
    assert found['switches'] == found['extra'] == 0


def test_the_nearest_action_is_found_within_half_a_period():
    actions = Actions(np.array([0, 50, 100], np.int64), np.zeros((3, 6)), np.zeros(3))
    index, near = actions.at(np.array([-30, 24, 26, 74, 130]), 25)
    assert index[near].tolist() == [0, 1, 1]
    assert near.tolist() == [False, True, True, True, False]


def test_seams_are_where_the_chunk_changes(bag, run):
    motion = smoothness(run(bag, latency_periods=0).traces[0])['translation']
    # 10 Hz cameras, 20 Hz commands: every second period begins another chunk.
    assert abs(motion['seam_jump']['count'] - motion['change_within_chunk']['count']) <= 1
    assert motion['jerk_rms'] > 0.0
