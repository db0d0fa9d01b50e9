"""Goals over real DDS: claimed once, ended once, and their clients told how.

Regressions pinned: D10 two goals accepted; a cancel that reads as an abort; a stop that forgets.
"""

# ruff: noqa: F401, F811 - fixtures are imported by name


import pytest
from action_msgs.msg import GoalStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from node_bench import bench, checkpoint, is_still, make_active, make_bench, script
from rclpy.executors import MultiThreadedExecutor, SingleThreadedExecutor
from ros_testing import ros

from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import HoldReason
from vla_policy_node.nodes.lifecycle import shut_down

Result = ExecuteInstruction.Result


def test_d10_of_two_goals_at_once_exactly_one_is_accepted(bench):
    action = bench.robot.action
    assert action.wait_for_server(20.0)
    goals = [ExecuteInstruction.Goal(instruction=f'goal {number}') for number in range(2)]
    futures = [action.send_goal_async(goal) for goal in goals]
    handles = [bench.robot.finish(future) for future in futures]
    assert sorted(handle.accepted for handle in handles) == [False, True]
    refused = bench.robot.call('start', instruction='and a third')
    assert not refused.success
    assert 'cancel it' in refused.message


def test_cancel_ends_the_goal_as_cancelled_for_its_client(bench):
    feedback = []
    handle = bench.send_goal(feedback=feedback.append)
    bench.infer()
    bench.advance()
    bench.robot.wait(lambda: feedback, 'feedback')
    assert bench.robot.finish(handle.cancel_goal_async()).goals_canceling
    answer = bench.robot.finish(handle.get_result_async())
    assert answer.status == GoalStatus.STATUS_CANCELED
    assert answer.result.code == Result.CANCELLED
    assert answer.result.steps == 1
    assert answer.result.inferences == 1
    assert bench.advance().hold_reason.code == HoldReason.GOAL_FINISHED


def test_a_cancelled_goal_ends_as_cancelled(bench):
    handle = bench.send_goal()
    assert bench.robot.finish(handle.cancel_goal_async()).goals_canceling
    answer = bench.robot.finish(handle.get_result_async())
    assert answer.status == GoalStatus.STATUS_CANCELED


def test_cancelling_a_goal_that_has_ended_leaves_the_next_one_alone(bench):
    old = bench.send_goal()
    bench.robot.call('cancel')
    bench.robot.finish(old.get_result_async())
    epoch = bench.start()
    assert not bench.robot.finish(old.cancel_goal_async()).goals_canceling
    assert bench.node._session.goal.epoch == epoch


@pytest.mark.parametrize(
    ('stop', 'code'), [('cancel', Result.CANCELLED), ('estop', Result.ESTOPPED)]
)
def test_a_goal_that_a_service_stops_is_aborted_with_the_reason(bench, stop, code):
    handle = bench.send_goal()
    assert bench.robot.call(stop).success
    answer = bench.robot.finish(handle.get_result_async())
    assert (answer.status, answer.result.code) == (GoalStatus.STATUS_ABORTED, code)
    assert answer.result.text


def test_deactivation_aborts_the_goal_with_the_reason(bench):
    handle = bench.send_goal()
    bench.node.trigger_deactivate()
    answer = bench.robot.finish(handle.get_result_async())
    assert answer.status == GoalStatus.STATUS_ABORTED
    assert answer.result.code == Result.DEACTIVATED


ENDS = {
    'shutdown': [Transition.TRANSITION_ACTIVE_SHUTDOWN],
    'cleanup': [Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP],
    'inactive_shutdown': [
        Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_INACTIVE_SHUTDOWN],
    'everything': [
        Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP,
        Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE],
}


@pytest.mark.parametrize('executor', [SingleThreadedExecutor, MultiThreadedExecutor])
@pytest.mark.parametrize('end', ENDS)
def test_a_client_learns_how_its_goal_ended_whichever_transitions_are_queued(
    make_active, end, executor
):
    bench = make_active(executor=executor)
    handle = bench.send_goal()
    if end != 'cleanup':
        answer = handle.get_result_async()
    change = bench.robot.create_client(ChangeState, 'policy/change_state')
    bench.robot.wait(change.service_is_ready, 'the lifecycle')
    changes = [change.call_async(ChangeState.Request(transition=Transition(id=number)))
               for number in ENDS[end]]
    assert all(bench.robot.finish(future).success for future in changes)
    if end == 'cleanup':  # a client that asks late
        answer = handle.get_result_async()
    assert bench.robot.finish(answer).result.code == Result.DEACTIVATED
    if end != 'everything':
        refused = bench.robot.call('start', instruction='go on')
        assert not refused.success
        assert 'configure' in refused.message


def test_a_client_learns_how_its_goal_ended_when_the_node_is_destroyed(bench):
    answer = bench.send_goal().get_result_async()
    bench._executors[0].shutdown()
    shut_down(bench.node)
    bench.node.destroy_node()
    assert bench.robot.finish(answer).result.code == Result.DEACTIVATED


def test_a_result_counts_its_own_goal_though_the_next_one_began_at_once(bench):
    handle = bench.send_goal()
    bench.infer()
    bench.advance()
    bench.robot.call('cancel')
    bench.start()
    result = bench.robot.finish(handle.get_result_async()).result
    assert (result.steps, result.inferences) == (1, 1)


def test_a_result_survives_that_the_node_is_activated_again_at_once(bench):
    bench.run_a_little()
    bench.robot.call('cancel')
    handle = bench.send_goal()
    bench.node.trigger_deactivate()
    bench.node.trigger_activate()
    result = bench.robot.finish(handle.get_result_async()).result
    assert result.code == Result.DEACTIVATED
    assert result.inferences <= 1


def test_a_goal_ends_after_its_duration(bench):
    handle = bench.send_goal(duration_s=1)
    for _ in range(20):
        bench.infer()
        assert bench.advance().hold_reason.code == HoldReason.NONE
    bench.advance()
    answer = bench.robot.finish(handle.get_result_async())
    assert answer.status == GoalStatus.STATUS_SUCCEEDED
    assert answer.result.code == Result.SUCCEEDED_DURATION
    assert answer.result.steps == 20


def test_the_emergency_stop_is_latched_and_its_reset_starts_nothing(bench, script):
    bench.run_a_little()
    bench.robot.call('estop')
    assert bench.advance().hold_reason.code == HoldReason.ESTOP
    assert not bench.robot.call('start', instruction='go on').success
    bench.node.trigger_deactivate()
    bench.node.trigger_activate()
    assert bench.advance().hold_reason.code == HoldReason.ESTOP
    bench.robot.call('reset_estop')
    script.forget()
    bench.observe()
    assert is_still(bench.advance())
    assert not script.calls
    bench.run_a_little()
