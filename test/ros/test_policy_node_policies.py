"""The node runs any policy, and tells it what became of its chunks."""

# ruff: noqa: F401, F811 - fixtures are imported by name

import numpy as np
import pytest
from node_bench import PERIOD_NS, Bench, checkpoint, make_active, make_bench, script
from policies import KINDS
from rclpy.parameter import Parameter
from ros_testing import ros

from vla_msgs.msg import HoldReason
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.runtime.small import create_small_checkpoint


@pytest.mark.parametrize('kind', KINDS)
def test_any_policy_moves_the_robot(kind, make_bench, checkpoint, monkeypatch):
    policy = KINDS[kind](checkpoint)
    monkeypatch.setattr(PolicyParameters, 'load_policy', lambda self, threads, **_: policy)
    bench = make_bench().activate()
    bench.run_a_little()


def test_a_policy_that_is_elsewhere_has_no_plain_one_beside_it(
    make_bench, checkpoint, monkeypatch
):
    monkeypatch.setattr(
        PolicyParameters, 'load_policy', lambda self, threads: KINDS['scripted'](checkpoint))
    bench = make_bench(shadow_every=1)
    bench.set_clock(bench.now_ns)
    bench.node.trigger_configure()
    assert bench.state == 'unconfigured'


def test_a_request_tells_what_was_executed_and_what_is_left(make_active, script):
    bench = make_active()
    bench.start()
    bench.infer()
    for _ in range(3):
        assert bench.advance().hold_reason.code == HoldReason.NONE
    bench.infer()
    first, second = script.executions
    assert first.mode == second.mode == 'async'
    assert len(first.executed) == len(first.leftover) == 0
    # Each tick commands the period behind it: of the first one nobody could, the last is to come.
    np.testing.assert_array_equal(second.executed, np.full((2, 7), 0.1))
    np.testing.assert_array_equal(second.committed, np.full((1, 7), 0.1))
    assert second.delay == 1
    assert bench.robot.call('cancel').success
    bench.set_clock(bench.now_ns + PERIOD_NS)  # an observation of its own, with a chunk of its own
    bench.start('another instruction')
    bench.infer()
    assert not len(script.executions[-1].executed), 'another goal is a fresh start'


def test_what_needs_sync_is_refused_in_other_modes_and_live(make_bench, tmp_path, capfd):
    small = create_small_checkpoint(tmp_path / 'small')
    bench = make_bench(methods=['flashvla'], checkpoint=str(small))
    bench.set_clock(bench.now_ns)
    bench.node.trigger_configure()
    assert bench.state == 'unconfigured'
    assert 'flashvla takes it that a chunk is executed to its end' in capfd.readouterr().err
    sync = Parameter('execution_mode', value='sync')
    assert bench.node.set_parameters([sync])[0].successful
    bench.configure()
    [result] = bench.node.set_parameters([Parameter('execution_mode', value='async')])
    assert not result.successful
    assert '(flashvla) takes it that chunks are executed as in' in result.reason
