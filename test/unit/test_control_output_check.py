"""The last look at a command: every kind of breach is seen, and none that is none.

And behind a whole commander: whatever goes in, what comes out is finite and inside all limits.
"""

import contextlib
import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_node.control.action_spec import ActionSpec, EndEffectorDelta, GripperLatch
from vla_policy_node.control.cameras import CameraWatch
from vla_policy_node.control.commander import Commander, CommanderParts
from vla_policy_node.control.end_effector import EndEffectorMover
from vla_policy_node.control.ensemble import EnsembleSettings
from vla_policy_node.control.executors import create_executor
from vla_policy_node.control.hold import HoldError, HoldReason
from vla_policy_node.control.limits import Box, CommandLimiter, Limits
from vla_policy_node.control.output_check import find_breach
from vla_policy_node.control.pairing import ObservationPairer
from vla_policy_node.control.robot_state import MeasuredPose
from vla_policy_node.control.session import Session

PERIOD_S = 0.05
LIMITS = Limits(0.01, 0.02, 0.2, 0.4, 1.0, 2.0, (-0.3, -0.3, 0.0), (0.3, 0.3, 0.5))
WORKSPACE = Box(np.array([-0.3, -0.3, 0.0]), np.array([0.3, 0.3, 0.5]))
CENTRE = np.array([0.0, 0.0, 0.25])
FAST = np.array([0.01, 0.0, 0.0])
CHANGE_M = 1.0 * PERIOD_S**2


def delta(translation_m=(0.0, 0.0, 0.0), rotation_rad=(0.0, 0.0, 0.0), gripper=1.0):
    return EndEffectorDelta(np.array(translation_m), np.array(rotation_rad), gripper)


def breach(command, last=None, here=CENTRE):
    return find_breach(command, last or command, here, WORKSPACE, LIMITS, PERIOD_S)


@pytest.mark.parametrize(('command', 'last', 'words'), [
    (delta((math.nan, 0.0, 0.0)), None, 'is not finite'),
    (delta((0.0, -math.inf, 0.0)), None, 'is not finite'),
    (delta(rotation_rad=(0.0, 0.0, math.nan)), None, 'is not finite'),
    (delta(gripper=math.nan), None, 'is not finite'),
    (delta(gripper=0.5), None, 'gripper is told 0.5'),
    (delta((0.0, 0.010001, 0.0)), None, 'longer than 0.01 m'),
    (delta(rotation_rad=(0.015, 0.0, -0.015)), None, 'longer than 0.02 rad'),
    (delta((CHANGE_M * 1.001, 0.0, 0.0)), delta(), 'differs from the last one'),
    (delta((-CHANGE_M, 0.0, 0.0)), delta((CHANGE_M, 0.0, 0.0)), 'differs from the last one'),
    (delta(rotation_rad=(0.0, 0.006, 0.0)), delta(), 'differs from the last one'),
])
def test_a_command_that_breaks_a_limit_is_seen(command, last, words):
    assert words in breach(command, last)
    assert breach(command, last).endswith('.')


@pytest.mark.parametrize('sign', [-1.0, 1.0])
@pytest.mark.parametrize('axis', range(3))
def test_a_way_out_of_the_workspace_is_seen(axis, sign):
    wall = (WORKSPACE.high_m if sign > 0 else WORKSPACE.low_m)[axis]
    near, step = CENTRE.copy(), np.zeros(3)
    near[axis], step[axis] = wall - sign * 0.004, sign * 0.005
    assert 'leads out of the workspace' in breach(delta(step), None, near)
    assert breach(delta(-step), None, near) == ''
    assert breach(delta(0.7 * step), None, near) == ''


def test_what_the_limits_allow_is_no_breach():
    assert breach(delta(FAST, (0.0, 0.02, 0.0))) == ''
    assert breach(delta((CHANGE_M, 0.0, 0.0)), delta()) == ''
    assert breach(delta((0.001, 0.0, 0.0)), delta(FAST)) == '', 'braking is as harmless as a hold'
    outside = np.array([0.4, 0.0, 0.25])
    assert breach(delta((-0.001, 0.0, 0.0)), None, outside) == ''


MS = 1_000_000
PERIOD = 50 * MS
STREAMS = ('third_person', 'wrist', 'ee_pose', 'gripper_state')
floats = st.one_of(
    st.floats(),
    st.sampled_from([5e-324, -0.0, 1e306, -1e306, 1.7e308, -1.7e308, math.inf, math.nan, 1e-310]),
    st.floats(-1.5, 1.5),
)
bounds = st.one_of(st.floats(1e-6, 1e6), st.floats(1e-3, 1.0))
limits_sets = st.builds(
    Limits, bounds, bounds, bounds, bounds, bounds, bounds,
    st.tuples(*[st.floats(-1000.0, -1e-3)] * 3), st.tuples(*[st.floats(1e-3, 1000.0)] * 3))
executors = st.sampled_from([
    ('async', None),
    *(('temporal_ensemble', EnsembleSettings(w)) for w in ('act', 'adaptive', 'cogact')),
])
moments = st.tuples(
    st.lists(floats, min_size=7, max_size=7), st.lists(floats, min_size=6, max_size=6))


@settings(deadline=None, max_examples=150)
@given(st.one_of(st.just(LIMITS), limits_sets), executors,
       st.sampled_from([PERIOD, 5 * MS, 1000 * MS]), st.lists(moments, min_size=1, max_size=8))
def test_whatever_goes_in_no_command_is_unbounded_and_nothing_is_raised(
    limits, executor, period_ns, sequence
):
    session = Session()
    session.activate()
    commander = Commander(session, CommanderParts(
        ObservationPairer(STREAMS[:2], STREAMS[2:], 20 * MS, 2000 * MS, 20 * MS),
        CameraWatch(STREAMS[:2], 0), create_executor(executor[0], period_ns, executor[1]),
        EndEffectorMover(
            ActionSpec.libero(), CommandLimiter(limits, period_ns / 1e9), GripperLatch()), 0))
    goal = commander.begin('go', 10**18)
    now, last = 10**12, delta()
    for action, pose in sequence:
        now += period_ns
        with contextlib.suppress(ValueError):  # refused at the door: the worker reports it
            commander.parts.executor.push(np.array([action] * 4), now - period_ns, goal.epoch)
        for stream in STREAMS:
            commander.parts.pairer.file(stream, now, b'')
        try:
            commander.parts.mover.measured.observe(
                MeasuredPose(now, np.array(pose[:3]), np.array(pose[3:])))
        except HoldError as error:
            commander.parts.mover.measured.reject(error)
        commander.parts.mover.measured.begin()  # jumps are forgiven: something has to move here
        command = commander.tick(now, now + period_ns)
        check(command, last, np.array(pose[:3]), limits, period_ns / 1e9)
        last = command.motion
    assert 'Traceback' not in command.detail


def check(command, last, position_m, limits, period_s):
    sent = command.motion
    if command.hold.code is not HoldReason.NONE:
        assert not sent.translation_m.any() and not sent.rotation_rad.any()
        return
    assert np.isfinite([*sent.translation_m, *sent.rotation_rad]).all()
    assert sent.gripper in (0.0, 1.0)
    assert math.isnan(command.disagreement) or abs(command.disagreement) < 3e38, 'float32'
    slack = 1.0 + 1e-6
    assert np.linalg.norm(sent.translation_m) <= slack * min(
        limits.max_step_translation_m, limits.max_linear_velocity_m_s * period_s)
    assert np.linalg.norm(sent.rotation_rad) <= slack * min(
        limits.max_step_rotation_rad, limits.max_angular_velocity_rad_s * period_s)
    for now, before, most in (
        (sent.translation_m, last.translation_m, limits.max_linear_acceleration_m_s2),
        (sent.rotation_rad, last.rotation_rad, limits.max_angular_acceleration_rad_s2),
    ):
        brakes = (np.abs(now) <= np.abs(before)).all() and (now * before >= 0.0).all()
        assert brakes or np.linalg.norm(now - before) <= slack * most * period_s**2
    after_m = position_m + sent.translation_m
    assert (after_m <= np.maximum(limits.workspace_max_m, position_m) + 1e-9).all()
    assert (after_m >= np.minimum(limits.workspace_min_m, position_m) - 1e-9).all()


def test_a_breach_becomes_a_hold_that_is_counted(monkeypatch):
    """The limiter's arithmetic is taken away; what it lets through must not be sent."""
    session = Session()
    session.activate()
    limiter = CommandLimiter(LIMITS, PERIOD_S)
    monkeypatch.setattr(limiter, 'apply', lambda delta, *_: dataclasses.replace(
        CommandLimiter(LIMITS, PERIOD_S).apply(delta, CENTRE, WORKSPACE),
        delta=delta))
    commander = Commander(session, CommanderParts(
        ObservationPairer(STREAMS[:2], STREAMS[2:], 20 * MS, 200 * MS, 20 * MS),
        CameraWatch(STREAMS[:2], 0), create_executor('async', PERIOD),
        EndEffectorMover(ActionSpec.libero(), limiter, GripperLatch()), 0))
    goal = commander.begin('go', 10**18)
    now = 10**12
    commander.parts.executor.push(np.ones((4, 7)), now - PERIOD, goal.epoch)
    for stream in STREAMS:
        commander.parts.pairer.file(stream, now, b'')
    commander.parts.mover.measured.observe(MeasuredPose(now, CENTRE, np.zeros(3)))
    command = commander.tick(now, now + PERIOD)
    assert command.hold.code is HoldReason.ACTION_INVALID
    assert 'longer than' in command.detail
    assert math.isnan(command.motion.gripper), 'the hand was told something all the same'
    assert commander.counts() == {'action_invalid': 1}
