"""The emergency stop outlives the process: a restarted node is latched until it is released."""

# ruff: noqa: F401, F811 - fixtures are imported by name

from types import SimpleNamespace

import pytest
from node_bench import bench, checkpoint, make_active, make_bench, script
from ros_testing import ros

from vla_msgs.msg import HoldReason
from vla_policy_node.nodes import policy_node


@pytest.fixture
def restart(make_active):
    """Make an active node of the same name as the last one, which ends first."""
    running = []

    def make(**parameters):
        for former in running:
            former.close()
            former.close = lambda: None
        running[:] = [make_active(**parameters)]
        return running[0]

    return make


def test_a_restarted_node_is_latched_says_how_to_release_it_and_then_stays_free(restart, capfd):
    bench = restart()
    bench.run_a_little()
    assert bench.robot.call('estop').success
    bench = restart()
    log = capfd.readouterr().err
    assert 'latched since before this start' in log
    assert '/policy/reset_estop' in log
    assert bench.advance().hold_reason.code == HoldReason.ESTOP
    refused = bench.robot.call('start', instruction='go on')
    assert not refused.success
    assert bench.robot.call('reset_estop').success
    bench.run_a_little()
    restart().run_a_little()


def test_commands_of_a_restarted_node_are_newer_than_all_before(restart, monkeypatch):
    epochs = []
    for now_s in (1_000.5, 1_010.5):
        monkeypatch.setattr(policy_node, 'time', SimpleNamespace(time=lambda s=now_s: s))
        bench = restart()
        bench.run_a_little()
        bench.robot.call('cancel')
        epochs.append([bench.wait_command(lambda c: not c.hold).epoch, bench.advance().epoch])
    assert epochs == [[1_001, 1_002], [1_011, 1_012]]


def test_another_robot_is_not_latched(restart):
    assert restart().robot.call('estop').success
    restart(namespace='r1').run_a_little()


def test_a_place_that_cannot_be_written_is_said_at_configure_and_with_the_stop(
    make_active, tmp_path, capfd
):
    (tmp_path / 'file').touch()
    bench = make_active(state_directory=str(tmp_path / 'file'))
    assert 'would not survive a restart' in capfd.readouterr().err
    bench.robot.wait(lambda: any(
        'would not survive' in status.message
        for array in bench.robot.diagnostics for status in array.status), 'diagnostics')
    bench.run_a_little()
    answer = bench.robot.call('estop')
    assert answer.success
    assert 'will not survive' in answer.message
    assert bench.advance().hold_reason.code == HoldReason.ESTOP


def test_a_stop_that_comes_while_the_release_waits_for_the_disk_stays_latched(bench, monkeypatch):
    record = bench.node._goals._record
    bench.robot.call('estop')
    release, latch = record.release, bench.node._goals._session.estop
    monkeypatch.setattr(record, 'release', lambda: (latch(), release()))
    assert bench.robot.call('reset_estop').success
    assert bench.advance().hold_reason.code == HoldReason.ESTOP
