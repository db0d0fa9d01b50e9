"""Parameters that are set while the arm moves: only what they concern is made anew.

Regressions pinned: any parameter stopped the arm and restarted the counters; the node's own dump
could not be loaded.
"""

# ruff: noqa: F401, F811 - fixtures are imported by name

from node_bench import bench, checkpoint, make_active, make_bench, script
from rclpy.parameter import Parameter
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
    assert not any(name.startswith('tick.input') for name in counts)


def test_what_a_node_says_of_its_parameters_can_be_set_again_and_moves_on(bench):
    bench.run_a_little()
    for name in bench.node._store._fields.keys() | {'use_sim_time'}:
        set_parameter(bench, name, bench.node.get_parameter(name).value)
    assert bench.advance().hold_reason.code == HoldReason.NONE
