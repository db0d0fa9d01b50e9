"""Parameters that are set while the arm moves: only what they concern is made anew.

Regressions pinned: any parameter stopped the arm and restarted the counters; the node's own dump
could not be loaded.
"""

# ruff: noqa: F401, F811 - fixtures are imported by name

from node_bench import bench, checkpoint, make_active, make_bench, script
from rcl_interfaces.msg import Parameter as ParameterMessage
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from ros_testing import ros

from vla_msgs.msg import HoldReason


def set_parameter(bench, name, value):
    (result,) = bench.node.set_parameters([Parameter(name, value=value)])
    assert result.successful, (name, result.reason)


def test_the_arm_moves_on_while_parameters_are_set_that_are_none_of_its_limits(bench):
    bench.run_a_little()
    pairs = bench.node._commander.parts.pairer.counts()['pairs']
    for name, value in (('default_duration_s', 5.0), ('max_age_s', 1), ('ensemble_decay', 0.5),
                        ('freeze_timeout_s', 3), ('input_timeout_s', 1.0)):
        set_parameter(bench, name, value)
        assert bench.advance().hold_reason.code == HoldReason.NONE, name
    assert bench.node._commander.parts.pairer.counts()['pairs'] == pairs


def test_other_limits_cost_one_period_and_neither_plan_nor_counts(bench):
    bench.run_a_little()
    set_parameter(bench, 'max_linear_velocity_m_s', 0.01)
    assert bench.advance().hold_reason.code == HoldReason.AWAITING_INFERENCE
    assert bench.advance().hold_reason.code == HoldReason.NONE
    counts = bench.counters()
    assert counts['executor.chunks'] == 1
    assert counts['limit.linear_velocity'] > 0
    assert counts['input.pairs'] == 1


def test_a_value_that_cannot_be_used_is_said_before_anybody_configures(make_bench, capfd):
    make_bench(autostart='maybe')
    assert 'configure will be refused: autostart is' in capfd.readouterr().err


def test_a_node_takes_its_own_dump_while_it_moves(bench):
    """As `ros2 param dump` and `ros2 param load` do it: one parameter after the other."""
    bench.run_a_little()
    client = AsyncParameterClient(bench.robot, 'policy')
    bench.robot.wait(client.services_are_ready, 'the services')
    names = bench.robot.finish(client.list_parameters([], 10)).result.names
    assert {'use_sim_time', 'methods', 'max_age_s'} <= set(names)
    values = bench.robot.finish(client.get_parameters(names)).values
    parameters = [ParameterMessage(name=name, value=value)
                  for name, value in zip(names, values, strict=True)]
    results = bench.robot.finish(client.set_parameters(parameters)).results
    assert [name for name, result in zip(names, results, strict=True)
            if not result.successful] == []
    assert bench.advance().hold_reason.code == HoldReason.NONE
