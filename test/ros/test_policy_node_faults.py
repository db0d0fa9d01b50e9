"""Slow, late, broken and huge answers of the policy, and what is sent meanwhile.

Regressions pinned: D2 inference or decoding in a callback, D3 a halved rate, D9 an action after
the stop.
"""

# ruff: noqa: F401, F811 - fixtures are imported by name

import math
import threading

import pytest
from node_bench import PERIOD_NS, bench, checkpoint, is_still, make_active, make_bench, script
from robot_double import stamp
from ros_testing import ros

from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import EndEffectorCommand, HoldReason
from vla_policy_node.loop import observations
from vla_policy_node.nodes.messages import to_ns
from vla_policy_node.policy.interface import NonFiniteActionError

NAN = math.nan


def test_d2_decoding_and_inference_stay_off_the_executor_threads(bench, script, monkeypatch):
    decoders = set()
    decode = observations.decode_image

    def decode_image(message):
        decoders.add(threading.current_thread().name)
        return decode(message)

    monkeypatch.setattr(observations, 'decode_image', decode_image)
    bench.run_a_little()
    assert decoders == {'policy_worker'} == {name for name, _ in script.calls}


def test_d3_every_new_observation_is_inferred_while_the_inference_is_fast(bench, script):
    bench.start()
    for _ in range(10):
        bench.infer()
        bench.advance()
    assert len(script.calls) == 10


def test_d3_after_a_slow_inference_the_next_begins_at_once_with_the_newest_observation(
    bench, script
):
    bench.start()
    script.gate.clear()
    bench.observe()
    script.wait_started()
    for _ in range(4):
        bench.advance()
        bench.observe()
    newest_ns = bench.now_ns
    script.gate.set()
    script.wait_started()  # without another observation, and without another tick
    bench.robot.wait(lambda: len(bench.robot.chunks) == 2, 'two chunks')
    assert stamp(bench.robot.chunks[-1]) == newest_ns
    assert bench.counters()['input.third_person.superseded'] == 3


def test_without_a_goal_nothing_is_decoded_or_inferred(bench, script, monkeypatch):
    monkeypatch.setattr(observations, 'decode_image', pytest.fail)
    for _ in range(3):
        bench.observe()
        assert bench.advance().hold_reason.code == HoldReason.NO_INSTRUCTION
    assert not script.calls


def test_a_slow_inference_starts_at_the_element_whose_time_has_come(make_active, script):
    """300 ms at 20 Hz: six periods are over at the tick, which commands the seventh, element 6."""
    bench = make_active(max_age_s=1.0)
    bench.start()
    script.gate.clear()
    bench.observe()
    observed_ns = bench.now_ns
    script.wait_started()
    for _ in range(5):
        assert bench.advance().hold_reason.code == HoldReason.AWAITING_INFERENCE
    script.gate.set()
    bench.robot.wait(lambda: bench.robot.chunks, 'the chunk')
    steps = []
    while (command := bench.advance()).hold_reason.code == HoldReason.NONE:
        steps.append((command.chunk_step, to_ns(command.target_time) - observed_ns))
    assert steps == [(6, 7 * PERIOD_NS), (7, 8 * PERIOD_NS)]
    assert command.hold_reason.code == HoldReason.CHUNK_EXHAUSTED


def test_targets_increase_and_a_new_chunk_never_goes_back_in_time(bench, script):
    bench.start()
    moves = []
    for tick in range(24):
        if tick % 4 == 0:
            bench.infer()
        command = bench.advance()
        assert command.hold_reason.code == HoldReason.NONE
        moves.append(command)
    targets = [to_ns(command.target_time) for command in moves]
    assert targets == list(range(targets[0], targets[-1] + 1, PERIOD_NS))
    for command in moves:
        due = to_ns(command.target_time) - to_ns(command.observation_stamp)
        assert command.chunk_step == due // PERIOD_NS - 1


@pytest.mark.parametrize('stop', ['cancel', 'estop'])
def test_d2_d9_a_stop_during_an_inference_holds_at_once_and_its_result_is_discarded(
    bench, script, stop
):
    epoch = bench.run_a_little()
    script.gate.clear()
    bench.observe()
    script.wait_started()
    script.wait_started()
    assert bench.robot.call(stop).success
    assert is_still(bench.advance())
    bench.robot.call('reset_estop')
    new_epoch = bench.start()
    bench.robot.chunks.clear()
    script.gate.set()
    bench.robot.wait(lambda: len(bench.robot.chunks) == 2, 'the late result and the new one')
    assert [chunk.epoch for chunk in bench.robot.chunks] == [epoch, new_epoch]
    assert bench.advance().epoch == new_epoch
    assert bench.counters()['executor.chunks_of_other_epoch'] == 1


def test_an_exception_of_the_policy_ends_the_goal_and_the_next_goal_works(bench, script):
    handle = bench.send_goal()
    script.error = RuntimeError('the weights have evaporated')
    bench.observe()
    answer = bench.robot.finish(handle.get_result_async())
    assert answer.result.code == ExecuteInstruction.Result.INFERENCE_FAILED
    assert bench.advance().hold_reason.code == HoldReason.INFERENCE_FAILED
    bench.run_a_little()


def test_a_late_exception_of_an_old_goal_leaves_the_new_one_alone(bench, script):
    bench.start()
    script.gate.clear()
    bench.observe()
    script.wait_started()
    bench.robot.call('cancel')
    epoch = bench.start()
    script.error = RuntimeError('too late')
    script.gate.set()
    bench.robot.wait(
        lambda: bench.node._worker.counts().get('inference_failed'), 'the late exception'
    )
    bench.advance()
    bench.infer()
    command = bench.advance()
    assert (command.hold_reason.code, command.epoch) == (HoldReason.NONE, epoch)


def test_weights_that_answer_nan_hold_and_do_not_end_the_goal(bench, script):
    bench.run_a_little()
    script.error = NonFiniteActionError('nan')
    bench.observe()
    bench.robot.wait(lambda: bench.node._worker.counts().get('action_invalid'), 'the worker')
    assert bench.advance().hold_reason.code == HoldReason.ACTION_INVALID
    bench.infer()
    assert bench.advance().hold_reason.code == HoldReason.NONE


def test_a_chunk_with_nan_holds_and_the_next_good_one_moves(bench, script):
    bench.run_a_little()
    script.actions[3, 2] = NAN
    bench.observe()
    bench.robot.wait(lambda: bench.node._worker.counts().get('action_invalid'), 'the worker')
    command = bench.advance()
    assert is_still(command)
    assert command.hold_reason.code == HoldReason.ACTION_INVALID
    script.actions[3, 2] = 0.0
    bench.infer()
    assert bench.advance().hold_reason.code == HoldReason.NONE


def test_huge_actions_never_break_a_limit_and_every_rule_is_counted(make_active, script):
    bench = make_active(
        workspace_min_m=[-0.5, -0.5, 0.0],
        workspace_max_m=[0.02, 0.5, 2.0],
        max_linear_acceleration_m_s2=5.0,
    )
    script.actions[:, :6] = 1e6
    bench.start()
    for _ in range(6):
        bench.infer()
        command = bench.advance()
        assert command.limited
        moved = command.translation
        assert math.hypot(moved.x, moved.y, moved.z) <= 0.05
        assert moved.x <= 0.02
        turned = command.rotation
        assert math.hypot(turned.x, turned.y, turned.z) <= 0.25
    counters = bench.counters()
    for rule in ('step_translation', 'step_rotation', 'workspace', 'linear_acceleration'):
        assert counters[f'limit.{rule}'] >= 1
    for _ in range(21):
        bench.advance()
    bench.robot.diagnostics.clear()
    for _ in range(21):
        bench.advance()
    values = bench.robot.wait(lambda: bench.robot.diagnostics, 'diagnostics')[-1].status[0].values
    assert 'limit.workspace' in {value.key for value in values}


def test_commands_are_stamped_when_they_are_sent_and_carry_the_observation(bench):
    bench.run_a_little()
    command = bench.robot.commands[-1]
    assert stamp(command) == bench.now_ns
    assert to_ns(command.observation_stamp) == bench.now_ns - PERIOD_NS
    assert command.header.frame_id == 'base_link'


def test_twist_is_the_delta_per_second(make_active):
    bench = make_active(publish_twist=True)
    bench.run_a_little()
    command = bench.robot.commands[-1]
    twist = bench.robot.wait(
        lambda: next((t for t in bench.robot.twists if stamp(t) == stamp(command)), None),
        'the twist',
    )
    assert twist.twist.linear.x == pytest.approx(command.translation.x / 0.05)
    assert twist.twist.angular.z == pytest.approx(command.rotation.z / 0.05)
    assert twist.header.frame_id == command.header.frame_id


def test_d9_deactivation_ends_with_a_hold_even_with_an_inference_in_flight(bench, script):
    bench.run_a_little()
    script.gate.clear()
    bench.observe()
    script.wait_started()
    script.wait_started()
    deactivation = threading.Thread(target=bench.node.trigger_deactivate)
    deactivation.start()
    # The first hold does not wait for the inference.
    first = bench.wait_command(lambda c: c.hold_reason.code == HoldReason.INACTIVE)
    script.gate.set()
    deactivation.join()
    assert bench.state == 'inactive'
    bench.set_clock(bench.now_ns + 10 * PERIOD_NS)
    # A sentinel on the same topic: whatever the node had sent before would have come before it.
    sentinel = EndEffectorCommand(epoch=4_000_000_000)
    bench.node._outputs.commands.publish(sentinel)
    bench.wait_command(lambda c: c.epoch == sentinel.epoch)
    commands = bench.robot.commands
    after = commands[commands.index(first) : -1]
    assert all(command.hold_reason.code == HoldReason.INACTIVE for command in after)
    assert all(is_still(command) for command in after)


def test_lock_step_sends_one_command_per_observation(make_active, script):
    bench = make_active(pacing='observation')
    bench.start()
    bench.robot.commands.clear()
    for tick in range(5):
        script.actions[:, 0] = 0.1 * tick
        bench.infer()
        now_ns = bench.now_ns
        command = bench.wait_command(lambda c, now_ns=now_ns: to_ns(c.observation_stamp) == now_ns)
        assert command.chunk_step == 0
        assert to_ns(command.target_time) == now_ns + PERIOD_NS
        assert command.translation.x == pytest.approx(0.005 * tick, abs=1e-6)
        bench.set_clock(now_ns + PERIOD_NS)
    assert len(bench.robot.commands) == 5
