"""The judge of the fault campaign: a good record passes, and each broken promise is named."""

import ast
import dataclasses
import math
from math import inf, nan
from pathlib import Path

import pytest

from vla_policy_node.bench.faults import oracle
from vla_policy_node.bench.faults.oracle import judge, stop_latencies
from vla_policy_node.bench.faults.oracle_findings import CRASH, HANG, UNSAFE
from vla_policy_node.bench.faults.records import (
    STREAMS,
    Promise,
    Sample,
    SampleVerdict,
    Sent,
    ServiceAnswer,
    Stop,
    TimeSpan,
    Trial,
    TrialGoal,
)

PERIOD_S = 0.05
CLOCK_S = 1000.0  # what the node's clock shows when the steady one shows 0
EPOCH = 3
END_S = 2.0


def action(tick, **changes):
    """The command of a tick: 5 mm along x, from the observation of half a period ago."""
    at_s = tick * PERIOD_S
    step = (tick - 1) % 4
    observed_s = at_s - step * PERIOD_S
    return dataclasses.replace(Sent(
        at_s, CLOCK_S + at_s, False, 0, (0.005, 0.0, 0.0), (0.0, 0.0, 0.02), 1.0,
        CLOCK_S + observed_s, CLOCK_S + at_s + PERIOD_S, step, EPOCH), **changes)


def hold(tick, **changes):
    at_s = tick * PERIOD_S
    return dataclasses.replace(Sent(
        at_s, CLOCK_S + at_s, True, 4, (0.0,) * 3, (0.0,) * 3, 1.0, 0.0,
        CLOCK_S + at_s + PERIOD_S, -1, EPOCH), **changes)


def samples(until_s=END_S, **changes):
    """Every stream at the control rate, arriving as it is captured."""
    return [dataclasses.replace(Sample(stream, i * PERIOD_S, CLOCK_S + i * PERIOD_S,
                                       CLOCK_S + i * PERIOD_S), **changes)
            for i in range(round(until_s / PERIOD_S) + 1) for stream in STREAMS]


def good():
    """A trial that keeps every promise: a hold, then actions, an e-stop, then holds."""
    moving = range(1, 30)
    return Trial(
        sent=[hold(0), *(action(i) for i in moving),
              *(hold(i, epoch=EPOCH + 1) for i in range(30, 41))],
        samples=samples(),
        goals=[TrialGoal(EPOCH, 0.0, 1.47)],
        stops=[Stop('estop', 1.46, 1.47)],
        answers=[ServiceAnswer('estop', 1.46, 1.47, 0.5)],
        active=[TimeSpan(0.0, END_S)],
        promises=[Promise(
            TimeSpan(0.0), PERIOD_S, 0.3, 0.04, 0.05, 0.1, 0.2, 0.05, 0.25, 0.25, 0.5, 2.0, 9.0,
            (-0.2, -0.2, 0.0), (0.2, 0.2, 1.0), allowance_s={'frozen': 0.6},
            tolerated=frozenset({'frozen'}))],
        start_m=(0.0, 0.0, 0.5),
        recovers_from_s=0.5,
    )


def change(trial, tick, **changes):
    trial.sent[tick] = dataclasses.replace(trial.sent[tick], **changes)


def promise(trial, **changes):
    trial.promises = [p.but(**changes) for p in trial.promises]


def lose(trial, stream, from_s):
    trial.samples = [s for s in trial.samples if s.stream != stream or s.arrived_s < from_s]


def spoil(trial, stream, from_s, fault, verdict=SampleVerdict.BAD):
    trial.samples = [dataclasses.replace(s, fault=fault, verdict=verdict)
                     if s.stream == stream and s.arrived_s >= from_s else s
                     for s in trial.samples]


def shift_stamps(trial, stream, by_s):
    trial.samples = [dataclasses.replace(s, stamp_s=s.stamp_s + by_s) if s.stream == stream else s
                     for s in trial.samples]


# What is done to a good trial -> what must be found, and nothing else where `alone`.
BROKEN = {
    'an action without a goal': (lambda t: t.goals.clear(), 'no_goal'),
    'an action before its goal': (
        lambda t: t.goals.__setitem__(0, TrialGoal(EPOCH, 0.2, 1.47)), 'no_goal'),
    'an action after an acknowledged stop': (
        lambda t: t.goals.__setitem__(0, TrialGoal(EPOCH, 0.0, 1.3)), 'stopped'),
    'an action of an ended goal that overtook the hold': (
        lambda t: t.sent.__setitem__(31, action(29, at_s=1.46)), 'stopped'),
    'an action of another goal': (lambda t: change(t, 9, epoch=EPOCH + 7), 'no_goal'),
    'a translation that is no number': (
        lambda t: change(t, 9, translation_m=(nan, 0.0, 0.0)), 'finite'),
    'an infinite rotation': (lambda t: change(t, 9, rotation_rad=(0.0, inf, 0.0)), 'finite'),
    'a gripper that is no number': (lambda t: change(t, 9, gripper=nan), 'finite'),
    'a gripper beyond open': (lambda t: change(t, 9, gripper=1.5), 'gripper'),
    'another frame': (lambda t: change(t, 9, frame_id='world'), 'frame'),
    'a hold that moves': (lambda t: change(t, 35, translation_m=(0.0, 1e-9, 0.0)), 'hold_moves'),
    'a hold that is no number': (
        lambda t: change(t, 35, rotation_rad=(nan, 0.0, 0.0)), 'hold_moves'),
    'a step too long': (lambda t: promise(t, max_step_m=0.004), 'limits'),
    'too fast': (lambda t: promise(t, max_velocity_m_s=0.09), 'limits'),
    'too sudden': (lambda t: change(t, 9, translation_m=(0.012, 0.0, 0.0)), 'limits'),
    'too sudden after a hold': (
        lambda t: [change(t, 9, hold=True, translation_m=(0.0,) * 3, rotation_rad=(0.0,) * 3),
                   promise(t, max_acceleration_m_s2=1.9)], 'limits'),
    'a turn too far': (lambda t: promise(t, max_step_rad=0.01), 'limits'),
    'turning too fast': (lambda t: promise(t, max_velocity_rad_s=0.3), 'limits'),
    'turning too suddenly': (lambda t: promise(t, max_acceleration_rad_s2=7.0), 'limits'),
    'outside the workspace': (
        lambda t: promise(t, workspace_max_m=(0.1, 0.2, 1.0)), 'workspace'),
    'starting outside and leaving further': (
        lambda t: setattr(t, 'start_m', (0.5, 0.0, 0.5)), 'workspace'),
    'one element twice': (
        lambda t: change(t, 9, observation_stamp_s=t.sent[8].observation_stamp_s,
                         chunk_step=t.sent[8].chunk_step), 'twice'),
    'an old observation': (lambda t: promise(t, chunk_s=0.05), 'old_observation'),
    'an element at another time': (lambda t: change(t, 9, chunk_step=3), 'wrong_element'),
    'for a time far away': (
        lambda t: change(t, 9, target_time_s=CLOCK_S + 60.0, chunk_step=1190), 'wrong_target'),
    'a stream that ended': (lambda t: lose(t, 'ee_pose', 0.6), 'input'),
    'a stream that never came': (lambda t: lose(t, 'wrist', 0.0), 'input'),
    'a stream of garbage': (lambda t: spoil(t, 'gripper_state', 0.6, 'garbage'), 'input'),
    'a camera frozen for long': (lambda t: spoil(t, 'wrist', 0.6, 'frozen'), 'input'),
    'stamps of long ago': (lambda t: shift_stamps(t, 'ee_pose', -0.5), 'input'),
    'stamps of the future': (lambda t: shift_stamps(t, 'wrist', 5.0), 'input'),
    'an observation that was never there': (
        lambda t: [change(t, i, observation_stamp_s=t.sent[i].observation_stamp_s + 0.011,
                          target_time_s=t.sent[i].target_time_s + 0.011) for i in range(1, 30)],
        'observation'),
    'an observation that cannot be used': (
        lambda t: spoil(t, 'third_person', 0.9, 'unreadable'), 'observation'),
    'a partner that cannot be used': (
        lambda t: spoil(t, 'ee_pose', 0.9, 'pose_numbers'), 'observation'),
    'silence while active': (lambda t: t.sent.__delitem__(slice(32, 35)), 'gap'),
    'silence at the beginning': (lambda t: t.sent.__delitem__(slice(0, 3)), 'gap'),
    'silence at the end': (lambda t: t.sent.__delitem__(slice(37, 41)), 'gap'),
    'a service that never answers': (
        lambda t: t.answers.append(ServiceAnswer('estop', 1.0, None, 0.5)), 'no_answer'),
    'a service that answers late': (
        lambda t: t.answers.append(ServiceAnswer('estop', 1.0, 1.6, 0.5)), 'late_answer'),
    'a robot that never moves again': (
        lambda t: setattr(t, 'recovers_from_s', 1.5), 'never_recovers'),
    'a process that ended': (lambda t: t.ends.append('exit code 139'), 'ended'),
    'a guard that said nothing': (lambda t: t.silences.append('no command'), 'gap'),
    'a call that never returned': (lambda t: t.stuck.append('deactivate'), 'stuck'),
}
CATEGORIES = {'no_answer': HANG, 'late_answer': HANG, 'never_recovers': HANG, 'stuck': HANG,
              'ended': CRASH}


def test_a_good_record_passes():
    assert judge(good()) == []


@pytest.mark.parametrize('name', BROKEN)
def test_a_broken_promise_is_named(name):
    spoil_it, rule = BROKEN[name]
    trial = good()
    spoil_it(trial)
    found = {(finding.category, finding.rule) for finding in judge(trial)}
    assert (CATEGORIES.get(rule, UNSAFE), rule) in found


OF_THE_JUDGE = sorted(Path(oracle.__file__).parent.glob('oracle*.py'))


def test_every_rule_of_the_judge_is_broken_above():
    named = {call.args[0].value if call.func.id == 'unsafe' else call.args[1].value
             for path in OF_THE_JUDGE for call in ast.walk(ast.parse(path.read_text()))
             if isinstance(call, ast.Call)
             and isinstance(call.func, ast.Name) and call.func.id in ('unsafe', 'BrokenPromise')
             and isinstance(call.args[0 if call.func.id == 'unsafe' else 1], ast.Constant)}
    assert named == {rule for _, rule in BROKEN.values()}


def test_the_judge_knows_nothing_of_how_promises_are_kept():
    assert len(OF_THE_JUDGE) == 3
    for path in (*OF_THE_JUDGE, Path(oracle.__file__).with_name('records.py')):
        source = ast.parse(path.read_text())
        for node in ast.walk(source):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [
                alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name.split('.')[0] in ('math', 'bisect', 'collections', 'dataclasses',
                                              'enum') or name.startswith(
                    ('vla_policy_node.bench.faults.records',
                     'vla_policy_node.bench.faults.oracle_')), name


@pytest.mark.parametrize('fault', ['frozen', ''])
def test_what_is_allowed_for_a_while_is_no_finding(fault):
    trial = good()
    trial.sent = [hold(i) if i > 20 else sent for i, sent in enumerate(trial.sent)]
    if fault:
        spoil(trial, 'wrist', 0.6, fault)
    else:
        lose(trial, 'wrist', 0.86)
    trial.recovers_from_s = None
    assert judge(trial) == []


def test_braking_hard_is_forgiven_where_the_pose_moved_the_walls():
    trial = good()
    for tick in range(1, 30):
        change(trial, tick, translation_m=(0.0, 0.004 if tick < 20 else 0.0, 0.0))
    promise(trial, max_acceleration_m_s2=1.6)  # 4 mm in one period
    assert judge(trial) == []
    promise(trial, max_acceleration_m_s2=1.5)
    assert {f.rule for f in judge(trial)} == {'limits'}
    change(trial, 1, translation_m=(0.0, 0.003, 0.0))
    promise(trial, brakes_hard=True)
    assert judge(trial) == []
    change(trial, 21, translation_m=(0.0, -0.0041, 0.0))  # not to a halt: backwards
    assert {f.rule for f in judge(trial)} == {'limits'}


def test_a_machine_that_lets_a_node_wait_is_not_the_fault_of_the_node():
    trial = good()
    del trial.sent[32:35]  # 0.2 s of silence, twice what is promised
    trial.starved = [(1.5, 3.0), (1.58, 3.0), (1.6, 3.09), (1.9, 3.09)]
    assert {f.rule for f in judge(trial)} == {'gap'}
    trial.starved = [(1.5, 3.0), (1.58, 3.0), (1.6, 3.11), (1.9, 3.11)]
    assert judge(trial) == []
    trial.starved = [(0.0, 3.0), (1.4, 4.0), (1.5, 4.0), (1.9, 4.0)]  # another time
    assert {f.rule for f in judge(trial)} == {'gap'}


@pytest.mark.parametrize('simulated', [False, True])
def test_in_simulated_time_only_what_the_clock_counts_makes_inputs_old(simulated):
    trial = good()
    trial.simulated = simulated
    lose(trial, 'ee_pose', 0.6)
    assert 'input' in {f.rule for f in judge(trial)}
    for tick in range(13, 30):  # from then on the clock of the node stands still
        change(trial, tick, stamp_s=CLOCK_S + 0.6)
    assert ('input' in {f.rule for f in judge(trial)}) == (not simulated)


def test_where_promises_overlap_a_command_may_keep_either():
    trial = good()
    tight = trial.promises[0].but(span=TimeSpan(0.5), max_velocity_m_s=0.05)
    trial.promises = [trial.promises[0].but(span=TimeSpan(0.0, 1.0)), tight]
    found = {round(finding.at_s, 6) for finding in judge(trial)}
    assert found and min(found) > 1.0


def test_the_way_back_into_the_workspace_is_open():
    trial = good()
    trial.start_m = (-0.5, 0.0, 0.5)
    assert judge(trial) == []


def test_the_latency_of_a_stop_is_the_time_to_the_first_hold():
    (stop,) = stop_latencies(good())
    assert stop.kind == 'estop'
    assert stop.latency_s == pytest.approx(0.04)
    assert stop.excused_s == 0.0
    trial = good()
    trial.sent = trial.sent[:30]
    assert [math.isinf(stop.latency_s) for stop in stop_latencies(trial)] == [True]


def test_a_stop_of_a_robot_that_stands_still_has_no_latency():
    trial = good()
    trial.stops = [Stop('estop', 0.02, 0.03)]
    assert stop_latencies(trial) == ()
