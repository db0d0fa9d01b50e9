"""What status, diagnostics and log say when nothing moves: what exactly is wrong, at all times.

Regressions pinned: no diagnostics of a node that refuses its parameters; a simulation without
/clock is not named; a hold that does not say how old an input is.
"""

# ruff: noqa: F401, F811 - fixtures are imported by name

from diagnostic_msgs.msg import DiagnosticStatus
from node_bench import bench, checkpoint, make_active, make_bench, script
from rclpy.parameter import Parameter
from ros_testing import ros
from rosgraph_msgs.msg import Clock

from vla_msgs.msg import HoldReason
from vla_policy_node.nodes.messages import to_time


def wait_entry(bench, name, level):
    """The next entry of /diagnostics with this name and level."""
    bench.robot.diagnostics.clear()
    return bench.robot.wait(lambda: next((
        status for array in bench.robot.diagnostics for status in array.status
        if status.name == f'/policy: {name}' and status.level == level), None), name)


def test_a_refused_configure_is_an_error_in_diagnostics_until_it_is_mended(make_bench, checkpoint):
    bench = make_bench(checkpoint='/nowhere')
    assert 'unconfigured' in wait_entry(bench, 'commands', DiagnosticStatus.OK).message
    bench.node.trigger_configure()
    assert '/nowhere' in wait_entry(bench, 'commands', DiagnosticStatus.ERROR).message
    bench.node.set_parameters([Parameter('checkpoint', value=str(checkpoint))])
    bench.configure()
    assert wait_entry(bench, 'inference', DiagnosticStatus.OK)


def test_without_a_clock_status_diagnostics_and_log_say_so_and_go_on(make_bench, script, capfd):
    bench = make_bench(clock_timeout_s=0.0)
    bench.set_clock = lambda now_ns: None
    bench.activate()
    bench.wait_status(lambda status: 'no /clock' in status.hold.text)
    assert 'No /clock' in wait_entry(bench, 'clock', DiagnosticStatus.ERROR).message
    bench.robot.statuses.clear()
    bench.robot.wait(lambda: len(bench.robot.statuses) > 3, 'more statuses')
    assert capfd.readouterr().err.count('No /clock') == 1


def test_a_clock_slower_than_the_control_rate_is_said(make_active):
    bench = make_active(clock_timeout_s=0.0)
    for _ in range(8):
        bench.set_clock(bench.now_ns + 200_000_000)
    bench.robot.statuses.clear()
    status = bench.wait_status(lambda status: '/clock' in status.hold.text)
    assert 'every 0.2 s' in status.hold.text


def test_status_and_log_say_how_old_an_input_is(bench, capfd):
    bench.run_a_little()
    bench.robot.commands.clear()
    bench.advance(by_ns=1_250_000_000)
    bench.robot.statuses.clear()
    status = bench.wait_status(lambda status: status.hold.code == HoldReason.INPUT_STALE)
    assert '(1.3 s old, limit 0.3 s, see max_age_s)' in status.hold.text
    assert 's old, limit 0.3 s' in capfd.readouterr().err
