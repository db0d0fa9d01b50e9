"""Messages say what the core means: same numbers, same units, same shapes."""

from dataclasses import replace

import numpy as np
import pytest
from builtin_interfaces.msg import Duration
from hypothesis import given
from hypothesis import strategies as st
from std_msgs.msg import Header

from vla_msgs import msg as vla
from vla_msgs.action import ExecuteInstruction
from vla_policy_node.control.action_spec import EndEffectorDelta
from vla_policy_node.control.commander import Command
from vla_policy_node.control.hold import Hold, HoldReason
from vla_policy_node.control.session import Outcome
from vla_policy_node.nodes import messages
from vla_policy_node.policy import interface as core


def constants(message_type):
    every = {name: getattr(message_type, name) for name in dir(message_type) if name.isupper()}
    return {name: value for name, value in every.items() if isinstance(value, int)}


@pytest.mark.parametrize(
    ('codes', 'message_type'), [(HoldReason, vla.HoldReason), (Outcome, ExecuteInstruction.Result)]
)
def test_codes_are_those_of_the_interface(codes, message_type):
    assert constants(message_type) == {code.name: int(code) for code in codes}


def make_command(hold=HoldReason.NONE, **changes):
    fields = {
        'motion': EndEffectorDelta(np.array([0.01, 0.02, 0.03]), np.array([0.1, 0.2, 0.3]), 1.0),
        'hold': Hold(hold),
        'target_time_ns': 2_500_000_000,
        'observation_stamp_ns': 2_400_000_000,
        'chunk_step': 1,
        'epoch': 7,
        'disagreement': 0.25,
        'rules': (),
    }
    return Command(**{**fields, **changes})


def test_a_command_keeps_its_numbers_and_gets_the_time_of_publication():
    message = messages.to_command(make_command(), 2_450_000_001, 'base_link')
    assert messages.to_ns(message.header.stamp) == 2_450_000_001
    assert messages.to_ns(message.target_time) == 2_500_000_000
    assert messages.to_ns(message.observation_stamp) == 2_400_000_000
    assert (message.translation.x, message.rotation.z) == (0.01, 0.3)
    assert message.disagreement == 0.25
    assert not message.hold
    assert not message.limited
    assert messages.to_command(make_command(rules=('workspace',)), 0, 'base_link').limited


@pytest.mark.parametrize('reason', [reason for reason in HoldReason if reason])
def test_every_hold_says_so_and_why(reason):
    message = messages.to_command(make_command(reason), 0, 'base_link')
    assert message.hold
    assert message.hold_reason.code == reason
    assert message.hold_reason.text.endswith('.')


def test_a_twist_is_the_delta_divided_by_the_period():
    command = messages.to_command(make_command(), 0, 'base_link')
    twist = messages.to_twist(command, 0.05)
    assert twist.twist.linear.y == pytest.approx(0.4)
    assert twist.twist.angular.x == pytest.approx(2.0)


@given(st.integers(0, (2**31 - 1) * 10**9))
def test_times_survive_the_way_there_and_back(ns):
    assert messages.to_ns(messages.to_time(ns)) == ns


def test_a_negative_duration_stays_negative():
    assert messages.to_ns(Duration(sec=-1, nanosec=500_000_000)) == -500_000_000


def make_chunk():
    kept = np.zeros((4, 4), bool)
    kept[1, 2] = True
    selection = core.TokenSelection(
        'wrist', kept, np.arange(16, dtype=np.float32).reshape(4, 4), (0.1, 0.2, 0.7, 0.6), 'none'
    )
    stages = {'vision': 2.0, 'head': 1.0}
    return core.ActionChunk(np.arange(56.0).reshape(8, 7), (selection,), stages, 'x', 1, 32)


def test_chunk_and_selection_keep_shape_and_order():
    chunk = make_chunk()
    header = Header(frame_id='camera')
    message = messages.to_chunk(chunk, header, 'go', 3, 5, 50_000_000, 12_000_000, 4_000_000)
    shape = (message.chunk_length, message.action_dimension)
    np.testing.assert_array_equal(np.reshape(message.actions, shape), chunk.actions)
    assert (message.inference_ms, message.observation_age_ms) == (3.0, 12.0)
    assert message.period_s == 0.05
    assert message.reused_by == ''
    again = replace(chunk, reused_by='flashvla', layers_total=6)
    message = messages.to_chunk(again, header, 'go', 4, 5, 50_000_000, 12_000_000, 4_000_000)
    assert (message.reused_by, message.layers_run, message.layers_total) == ('flashvla', 0, 6)
    selection = messages.to_selection(chunk.selections[0], chunk, header, 'go')
    grid = np.reshape(selection.kept, (selection.grid_height, selection.grid_width))
    np.testing.assert_array_equal(grid, chunk.selections[0].kept)
    assert (selection.kept_count, selection.total_count) == (1, 16)
    assert selection.crop_x == pytest.approx(0.1)
    assert selection.crop_height == pytest.approx(0.6)
