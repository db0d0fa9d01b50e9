"""Stopping works whatever else is busy, dead or late; silence never lasts. Over real DDS.

Regressions pinned: a step back of the system clock silenced the node with an action as its last
word; an acknowledged stop whose hold came later; a long instruction, tokenised where commands and
stops are served; a hung inference that `deactivate` waited for, for ever.
"""

# ruff: noqa: F401, F811 - fixtures are imported by name

import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from node_bench import (
    PERIOD_NS,
    Bench,
    bench,
    checkpoint,
    is_still,
    make_active,
    make_bench,
    script,
)
from rclpy.executors import await_or_execute
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from robot_double import TIMEOUT_S
from ros_testing import ros
from sensor_msgs.msg import JointState

from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import EndEffectorCommand, HoldReason
from vla_policy_node.nodes import commands, goals, qos
from vla_policy_node.policy.interface import MAX_INSTRUCTION_BYTES
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.wire.cdr import stamp_of

Result = ExecuteInstruction.Result


class WallBench(Bench):
    """On the system's clock, which the test may step."""

    def __init__(self, **parameters):
        super().__init__(use_sim_time=False, **parameters)
        self.shift_ns = 0
        read = self.node._now_ns
        self.node._now_ns = lambda: read() + self.shift_ns
        self.sent = []  # (steady time, command), as the node publishes

    def configure(self):
        super().configure()
        publish = self.node._outputs.commands.publish

        def record(message):
            publish(message)
            self.sent.append((time.monotonic(), message))

        self.node._outputs.commands.publish = record
        return self

    def set_clock(self, now_ns):
        pass

    def observe(self, offset_ns=0, **streams):
        self.now_ns = self.node._now_ns()
        super().observe(offset_ns, **streams)

    def move(self):
        """Start, and go on until an action was sent."""
        self.start()
        while not self.sent or self.sent[-1][1].hold:
            self.observe()

    def wait_sent(self, predicate):
        return self.robot.wait(
            lambda: next((c for _, c in reversed(self.sent) if predicate(c)), None), 'a command')


@pytest.fixture
def wall(ros, checkpoint, script):
    made = WallBench(checkpoint=str(checkpoint), max_age_s=5.0)
    made.activate()
    script.forget()
    yield made
    made.close()


def reason(code):
    return lambda command: command.hold_reason.code == code


@pytest.mark.parametrize('step_s', [-60, 60])
def test_a_step_of_the_system_clock_leaves_no_silence_and_ends_the_motion(wall, step_s):
    wall.move()
    wall.shift_ns = step_s * 1_000_000_000
    first = len(wall.sent)
    wall.robot.wait(lambda: len(wall.sent) > first + 10, 'commands after the step')
    after = [command for _, command in wall.sent[first + 1:]]
    assert all(is_still(command) for command in after)
    assert after[-1].hold_reason.code in (HoldReason.CLOCK_JUMP, HoldReason.INPUT_STALE)


def test_an_acknowledged_stop_has_its_hold_on_the_wire(wall):
    for name, code in (('cancel', HoldReason.GOAL_FINISHED), ('estop', HoldReason.ESTOP)):
        wall.move()
        answers = []
        answer = getattr(wall.node._goals, f'_{name}')

        async def acknowledge(request, response, answer=answer, answers=answers):
            answers.append((await await_or_execute(answer, request, response), wall.sent[-1][1]))
            return response

        (service,) = (s for s in wall.node._goals._node.services
                      if s.srv_name.endswith(f'/{name}'))
        service.callback = acknowledge
        wall.robot.call(name)
        ((response, last),) = answers
        assert response.success
        assert (last.hold, last.hold_reason.code) == (True, code)


def test_a_stop_is_served_and_commands_go_on_while_the_executor_is_stuck(wall):
    wall.move()
    stuck, free = threading.Event(), threading.Event()

    def hang():
        stuck.set()
        free.wait(3 * TIMEOUT_S)

    wall._executors[0].create_task(hang)
    assert stuck.wait(TIMEOUT_S)
    try:
        assert wall.robot.call('estop').success
        first = len(wall.sent)
        wall.robot.wait(lambda: len(wall.sent) > first + 5, 'commands')
        assert all(c.hold_reason.code == HoldReason.ESTOP for _, c in wall.sent[first:])
    finally:
        free.set()


def check_with(bench, check):
    goals = bench.node._goals
    goals.take_up(replace(goals._work, check=check), goals._record)


def test_an_instruction_of_a_megabyte_is_refused_unread(wall):
    check_with(wall, lambda text: pytest.fail('it was tokenised'))
    answer = wall.robot.call('start', instruction='bowl ' * 200_000)
    assert not answer.success
    assert str(MAX_INSTRUCTION_BYTES) in answer.message


def test_while_an_instruction_is_tokenised_stops_are_served_and_no_second_one_is_taken(
    wall
):
    begun, free = threading.Event(), threading.Event()

    def check(text):
        begun.set()
        free.wait(3 * TIMEOUT_S)

    check_with(wall, check)
    client = wall.robot._callers['start']
    assert client.wait_for_service(TIMEOUT_S)
    future = client.call_async(client.srv_type.Request(instruction='pick up the bowl'))
    assert begun.wait(TIMEOUT_S)
    second = wall.robot.call('start', instruction='pick up the bowl')
    assert not second.success
    assert 'being checked' in second.message
    assert wall.robot.call('estop').success
    free.set()
    first = wall.robot.finish(future)
    assert not first.success
    assert 'emergency stop' in first.message
    assert wall.robot.call('reset_estop').success
    assert wall.robot.call('start', instruction='pick up the bowl').success


def test_an_instruction_on_which_the_tokeniser_panics_is_refused(wall):
    class Panic(BaseException):
        pass

    def panic(text):
        raise Panic('index out of range')

    check_with(wall, panic)
    answer = wall.robot.call('start', instruction='pick up the bowl')
    assert not answer.success
    assert 'cannot be tokenised' in answer.message


@pytest.fixture
def hasty(make_active):
    return make_active(inference_timeout_s=0.2)


def test_a_hung_inference_ends_the_goal_and_says_so_and_the_next_one_waits_for_it(hasty, script):
    handle = hasty.send_goal()
    script.gate.clear()
    hasty.observe()
    script.wait_started()
    hasty.robot.wait(hasty.node._worker.trouble, 'the deadline')
    assert hasty.advance().hold_reason.code == HoldReason.INFERENCE_LATE
    answer = hasty.robot.finish(handle.get_result_async())
    assert answer.result.code == Result.INFERENCE_FAILED
    refused = hasty.robot.call('start', instruction='pick up the bowl')
    assert not refused.success
    assert 'late' in refused.message
    hasty.robot.diagnostics.clear()
    entries = hasty.robot.wait(lambda: hasty.robot.diagnostics, 'diagnostics')[-1].status
    assert [entry.level for entry in entries] == [DiagnosticStatus.ERROR] * 2
    script.gate.set()
    hasty.robot.wait(lambda: not hasty.node._worker.is_busy, 'the end of the inference')
    hasty.node._worker._inference_timeout_s = TIMEOUT_S  # of a busy machine
    hasty.run_a_little()


def test_a_hung_inference_does_not_keep_the_node_from_deactivating(
    hasty, script, monkeypatch, capfd
):
    hasty.start()
    script.gate.clear()
    hasty.observe()
    script.wait_started()
    assert hasty.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert hasty.wait_command(reason(HoldReason.INACTIVE))
    assert 'restart the process' in capfd.readouterr().err
    # The policy is in use: another worker beside it would be two threads in one policy.
    assert hasty.node.trigger_activate() == TransitionCallbackReturn.ERROR


@pytest.mark.parametrize('error', [SystemExit(1), MemoryError()])
def test_whatever_a_policy_raises_the_worker_lives(bench, script, error):
    handle = bench.send_goal()
    script.error = error
    bench.observe()
    answer = bench.robot.finish(handle.get_result_async())
    assert answer.result.code == Result.INFERENCE_FAILED
    bench.run_a_little()


def test_a_worker_that_is_gone_is_noticed(bench, monkeypatch):
    bench.run_a_little()
    monkeypatch.setattr(bench.node._worker._thread, 'is_alive', lambda: False)
    assert bench.advance().hold_reason.code == HoldReason.INFERENCE_LATE
    monkeypatch.undo()


# --- parameters ---


def test_limits_are_only_tightened_while_a_goal_runs_and_never_loosened_past_configure(bench):
    def set_velocity(value):
        (result,) = bench.node.set_parameters([
            Parameter('max_linear_velocity_m_s', value=value)])
        return result

    limit = bench.node.get_parameter('max_linear_velocity_m_s').value
    bench.start()
    assert set_velocity(limit / 2).successful
    refused = set_velocity(limit)
    assert not refused.successful
    assert 'end the goal first' in refused.reason
    bench.robot.call('cancel')
    assert set_velocity(limit).successful
    assert 'clean up' in set_velocity(limit * 1.1).reason


# --- simulated time ---


def test_simulated_time_that_stands_still_is_a_hold_and_no_silence(make_active, script):
    bench = make_active(clock_timeout_s=0.0)
    bench.start()
    bench.robot.commands.clear()
    bench.robot.wait(lambda: len(bench.robot.commands) > 5, 'commands')
    assert all(is_still(command) for command in bench.robot.commands)
    assert bench.robot.commands[-1].hold_reason.code == HoldReason.CLOCK_STOPPED
    assert bench.wait_status(lambda s: s.hold.code == HoldReason.CLOCK_STOPPED)


def test_without_a_clock_no_goal_is_accepted(make_bench, script):
    bench = make_bench(clock_timeout_s=0.0)
    bench.set_clock = lambda now_ns: None
    bench.activate()
    refused = bench.robot.call('start', instruction='pick up the bowl')
    assert not refused.success
    assert 'publish /clock' in refused.message


def test_the_clock_cannot_be_exchanged_while_the_node_is_configured(bench):
    bench.run_a_little()
    (result,) = bench.node.set_parameters([Parameter('use_sim_time', value=False)])
    assert not result.successful
    assert 'clean up first' in result.reason
    assert bench.node.get_clock().now().nanoseconds == bench.now_ns


def test_pacing_by_observations_is_for_simulated_time_alone(make_bench, capfd):
    bench = make_bench(pacing='observation', use_sim_time=False)
    assert bench.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert 'set use_sim_time' in capfd.readouterr().err


def test_in_lock_step_a_stop_is_sent_at_once_and_holds_come_while_cameras_are_silent(
    make_active, script, monkeypatch
):
    monkeypatch.setattr(commands, 'LOCK_STEP_SILENCE_S', 0.1)
    bench = make_active(pacing='observation')
    bench.start()
    bench.infer()
    assert bench.wait_command(lambda command: not command.hold)
    assert bench.robot.call('estop').success
    bench.wait_command(reason(HoldReason.ESTOP))
    bench.robot.commands.clear()
    bench.robot.wait(lambda: len(bench.robot.commands) > 3, 'holds without any observation')
    assert all(is_still(command) for command in bench.robot.commands)


# --- who else is there ---


@pytest.fixture
def peer(ros):
    made = Node('peer')
    yield made
    made.destroy_node()


def test_a_second_publisher_on_an_input_holds_and_is_named(bench, peer):
    bench.run_a_little()
    second = peer.create_publisher(JointState, 'gripper_state', qos.observation_output())
    bench.robot.wait(
        lambda: bench.advance().hold_reason.code == HoldReason.SOURCE_CONFLICT, 'the hold')
    assert bench.robot.commands[-1].hold_reason.stream == '/gripper_state'
    peer.destroy_publisher(second)

    def moves():
        bench.infer()
        return bench.advance().hold_reason.code == HoldReason.NONE

    assert bench.robot.wait(moves, 'a motion with one publisher again')


def test_two_nodes_that_command_one_robot_both_hold(bench, peer):
    bench.run_a_little()
    peer.create_publisher(EndEffectorCommand, 'command', qos.command_output(0.05))
    bench.robot.wait(
        lambda: bench.advance().hold_reason.code == HoldReason.SOURCE_CONFLICT, 'the hold')
    assert bench.robot.commands[-1].hold_reason.stream == '/command'


def test_a_goal_whose_client_is_gone_ends(bench, monkeypatch):
    """The graph's word for it; `test_running` kills a real client."""
    monkeypatch.setattr(goals, 'LEASE_S', 0.05)
    handle = bench.send_goal()
    server = bench.node._goals
    bench.robot.wait(lambda: server._node.count_subscribers(server._feedback_topic), 'the client')
    monkeypatch.setattr(server._node, 'count_subscribers', lambda topic: 0)
    answer = bench.robot.finish(handle.get_result_async())
    assert answer.result.code == Result.CLIENT_LOST
    assert bench.advance().hold_reason.code == HoldReason.GOAL_FINISHED


def test_a_goal_whose_client_is_never_seen_ends_too(bench, monkeypatch):
    monkeypatch.setattr(goals, 'LEASE_S', 0.05)
    monkeypatch.setattr(goals, 'DISCOVERY_S', 0.0)
    monkeypatch.setattr(bench.node._goals._node, 'count_subscribers', lambda topic: 0)
    handle = bench.send_goal()
    answer = bench.robot.finish(handle.get_result_async())
    assert answer.result.code == Result.CLIENT_LOST


def test_in_lock_step_a_hung_inference_ends_the_goal_too(make_active, script, monkeypatch):
    monkeypatch.setattr(commands, 'LOCK_STEP_SILENCE_S', 0.1)
    bench = make_active(pacing='observation', inference_timeout_s=0.2)
    bench.start()
    script.gate.clear()
    bench.observe()
    script.wait_started()
    bench.wait_command(reason(HoldReason.INFERENCE_LATE))
    assert bench.node._session.goal is None


def test_after_the_time_for_bad_inputs_a_stopped_clock_ends_the_goal(make_active, script):
    bench = make_active(clock_timeout_s=0.0, input_timeout_s=0.3)
    handle = bench.send_goal()
    answer = bench.robot.finish(handle.get_result_async())
    assert answer.result.code == Result.INPUT_LOST


def test_another_rate_is_promised_from_the_next_configure_on(make_bench, script):
    bench = make_bench()
    before = bench.node._outputs.commands.qos_profile.deadline
    (result,) = bench.node.set_parameters([Parameter('control_rate_hz', value=5.0)])
    assert result.successful
    bench.configure()
    assert bench.node._outputs.commands.qos_profile.deadline.nanoseconds == pytest.approx(
        4 * before.nanoseconds, rel=1e-6)


def test_a_report_that_fails_does_not_cost_the_acknowledgement_of_a_stop(bench, monkeypatch):
    bench.run_a_little()

    def explode():
        raise RuntimeError('no reports today')

    monkeypatch.setattr(bench.node._commands, '_hold_changed', explode)
    assert bench.robot.call('estop').success
    assert bench.wait_command(reason(HoldReason.ESTOP))


def test_a_process_that_was_told_to_end_does_not_activate(make_bench, script):
    bench = make_bench().configure()
    bench.node.stand_still()
    bench.node.trigger_activate()
    refused = bench.robot.call('start', instruction='pick up the bowl')
    assert not refused.success
    assert 'not active' in refused.message
