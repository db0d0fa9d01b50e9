"""The policy node from configure to cleanup, with a real, tiny checkpoint.

Regressions pinned: a bad parameter crashes the node or is ignored; the model stays in memory
after cleanup; a traceback lost in a transition; D8 the warm-up in the statistics.
"""

# ruff: noqa: F401, F811 - fixtures are imported by name

import gc
import json
import os
import shutil
import threading
import weakref

import cv2
import numpy as np
import pytest
from node_bench import INSTRUCTION, checkpoint, make_bench, script
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from robot_double import TIMEOUT_S, stamp
from ros_testing import ros, spin_until

from vla_msgs.msg import HoldReason, PolicyInfo, TokenSelection
from vla_policy_node.nodes import commands, qos
from vla_policy_node.nodes.lifecycle import shut_down, state_label
from vla_policy_node.nodes.policy_node import PolicyNode
from vla_policy_node.policy.interface import CAMERAS
from vla_policy_node.policy.local import LocalPolicy

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


@pytest.fixture
def bench(make_bench):
    return make_bench().activate()


def set_parameter(bench, name, value):
    return bench.node.set_parameters([Parameter(name, value=value)])[0]


def record(bench, message_type, topic, profile):
    messages = []
    bench.robot.create_subscription(message_type, topic, messages.append, profile)
    return messages


# --- configure ---

BAD_PARAMETERS = {
    'no_checkpoint': ({'checkpoint': ''}, 'checkpoint is empty'),
    'missing_checkpoint': ({'checkpoint': '/nowhere'}, '/nowhere has no config.json'),
    'statistics': ({'statistics_key': 'moon'}, 'moon'),
    'method': ({'methods': ['lightwla']}, 'lightwla'),
    'together': ({'methods': ['lightvla', 'vla_cache']}, 'vla_cache reuses keys and values'),
    'setting': ({'method_settings': ['lightvla']}, 'method.setting=value'),
    'setting_yaml': ({'method_settings': ['lightvla.x=[']}, 'method_settings is not YAML'),
    'reference': ({'third_person_reference': '/nowhere.png'}, '/nowhere.png'),
    'device': ({'device': 'toaster'}, 'toaster'),
    'type': ({'control_rate_hz': 'fast'}, 'control_rate_hz'),
    'bounds': ({'max_age_s': 1000.0}, 'between 0.001 and 10 s'),
    'choice': ({'execution_mode': 'psychic'}, 'temporal_ensemble'),
    'workspace': ({'workspace_min_m': [1.0, 1.0, 1.0]}, 'The workspace is empty in x'),
    'gripper_rule': ({'gripper_closed': -1.0}, 'whose gripper actions go from 0 to 1'),
    'warmup': ({'warmup_instructions': ['word ' * 999]}, 'instruction is too long'),
}


@pytest.mark.parametrize('case', BAD_PARAMETERS)
def test_a_bad_value_fails_configure_with_a_sentence_and_can_be_set_right(make_bench, capfd, case):
    bad, words = BAD_PARAMETERS[case]
    right = make_bench()
    wrong = {name: right.node.get_parameter(name).value for name in bad}
    bench = make_bench(**bad)
    assert bench.node.trigger_configure() == FAILURE
    assert bench.state == 'unconfigured'
    log = capfd.readouterr().err
    assert words in log
    assert 'Traceback' not in log
    for name, value in wrong.items():
        assert set_parameter(bench, name, value).successful
    assert bench.node.trigger_configure() == SUCCESS


@pytest.mark.parametrize('damage', ['size', 'tokenizer', 'pipe', 'weights'])
def test_a_malformed_checkpoint_fails_configure_with_a_sentence(
    make_bench, capfd, tmp_path, damage
):
    right = make_bench()
    name, good = right.node.get_parameter('checkpoint').value, tmp_path / 'policy'
    shutil.copytree(name, good)
    if damage == 'size':
        (good / 'config.json').write_text('{"vision_tiny": {"featurizer": {"embed_dim": -1}}}')
    elif damage == 'tokenizer':
        document = json.loads((good / 'tokenizer.json').read_text())
        document['post_processor']['special_tokens'] = {}  # at which the library panics
        (good / 'tokenizer.json').write_text(json.dumps(document))
    elif damage == 'pipe':
        (good / 'config.json').unlink()
        os.mkfifo(good / 'config.json')
    else:
        (good / 'model.safetensors').write_bytes(b'\xff' * 16)
    bench = make_bench(checkpoint=str(good))
    assert bench.node.trigger_configure() == FAILURE
    assert bench.state == 'unconfigured'
    (line,) = [line for line in capfd.readouterr().err.splitlines() if 'refused' in line]
    assert line.endswith('.')
    assert set_parameter(bench, 'checkpoint', name).successful
    assert bench.node.trigger_configure() == SUCCESS


@pytest.mark.parametrize('after', ['vanishes', 'is no picture any more'])
def test_limits_are_tightened_whatever_became_of_the_reference_picture(
    make_bench, tmp_path, after
):
    view = tmp_path / 'view.png'
    cv2.imwrite(str(view), np.eye(64, dtype=np.uint8) * 255)
    bench = make_bench(third_person_reference=str(view))
    assert bench.node.trigger_configure() == SUCCESS
    view.unlink()
    if after != 'vanishes':
        view.write_bytes(b'no picture')
    assert set_parameter(bench, 'max_linear_velocity_m_s', 0.1).successful
    assert bench.node.trigger_cleanup() == SUCCESS
    assert bench.node.trigger_configure() == FAILURE


def test_an_unknown_parameter_is_refused_with_the_nearest_name(make_bench, capfd):
    bench = make_bench(control_rate=10.0)
    assert bench.node.trigger_configure() == FAILURE
    assert 'did you mean control_rate_hz?' in capfd.readouterr().err


def test_an_exception_in_a_transition_is_logged_whole_and_the_node_recovers(
    make_bench, capfd, monkeypatch
):
    def explode(*arguments, **keywords):
        raise RuntimeError('out of memory')

    bench = make_bench()
    with monkeypatch.context() as patch:
        patch.setattr(LocalPolicy, 'load', explode)
        assert bench.node.trigger_configure() == TransitionCallbackReturn.ERROR
    log = capfd.readouterr().err
    assert 'out of memory' in log
    assert 'Traceback' in log
    assert bench.state == 'unconfigured'
    bench.activate()


def test_an_activation_that_fails_halfway_leaves_nothing_running(make_bench, monkeypatch):
    def explode(*arguments, **keywords):
        raise RuntimeError('no threads left')

    bench = make_bench().configure()
    worker = bench.node._worker
    with monkeypatch.context() as patch:
        patch.setattr(commands, 'CommandLoop', explode)
        assert bench.node.trigger_activate() == TransitionCallbackReturn.ERROR
    assert bench.state == 'unconfigured'
    assert worker._thread is None
    assert bench.wait_command(lambda c: c.hold_reason.code == HoldReason.INACTIVE)
    bench.activate()


def test_a_shutdown_while_the_model_loads_waits_for_its_end(make_bench, script):
    bench = make_bench()
    script.gate.clear()
    configure = threading.Thread(target=bench.node.trigger_configure)
    configure.start()
    script.wait_started()  # the warm-up
    shut_down(bench.node, timeout_s=0.05)
    assert bench.state == 'configuring'
    script.gate.set()
    shut_down(bench.node)
    assert bench.state == 'finalized'
    configure.join()


# --- activate, deactivate, cleanup ---


def test_configure_gets_ready_for_the_instructions_that_it_is_told(make_bench, monkeypatch):
    ready, warm = [], []
    infer = LocalPolicy.infer
    monkeypatch.setattr(
        LocalPolicy, 'warm_up', lambda self, instruction: ready.append(instruction))
    monkeypatch.setattr(LocalPolicy, 'infer', lambda self, request: (
        warm.append(request.observation.instruction), infer(self, request))[1])
    told = ['lift the cup', 'put it into the drawer']
    bench = make_bench(warmup_instructions=told, shadow_every=1)
    assert bench.node.trigger_configure() == SUCCESS
    assert ready == [*told, *told]  # the shadow's network is another one
    assert warm == ['lift the cup']


def test_cleanup_frees_the_model_and_the_node_can_be_configured_again(bench):
    bench.start()
    bench.infer()
    policy = weakref.ref(bench.node._policy)
    model = weakref.ref(bench.node._policy._model)
    assert bench.node.trigger_deactivate() == SUCCESS
    assert bench.node.trigger_cleanup() == SUCCESS
    gc.collect()
    assert model() is None
    assert policy() is None
    bench.activate()
    bench.start()
    bench.infer()


@pytest.mark.usefixtures('ros')
def test_a_destroyed_node_leaves_the_graph_though_somebody_still_knows_it():
    observer, executor = Node('observer'), SingleThreadedExecutor()
    executor.add_node(observer)
    node = PolicyNode()
    assert spin_until(executor, lambda: 'policy' in observer.get_node_names(), TIMEOUT_S)
    shut_down(node)
    node.destroy_node()
    assert spin_until(executor, lambda: 'policy' not in observer.get_node_names(), TIMEOUT_S)
    assert state_label(node) == 'finalized'
    observer.destroy_node()


def is_refused(transition):
    try:
        return transition() == TransitionCallbackReturn.ERROR
    except RuntimeError as error:  # rclpy of Jazzy
        return 'not registered' in str(error)


def test_activation_is_repeatable_and_an_impossible_transition_changes_nothing(bench):
    assert is_refused(bench.node.trigger_activate)
    assert bench.state == 'active'
    for _ in range(3):
        assert bench.node.trigger_deactivate() == SUCCESS
        assert is_refused(bench.node.trigger_deactivate)
        assert bench.state == 'inactive'
        assert bench.node.trigger_activate() == SUCCESS
    bench.start()
    bench.infer()
    assert bench.advance().hold_reason.code == HoldReason.NONE


def test_shutdown_while_moving_ends_with_a_hold(bench):
    bench.start()
    bench.infer()
    assert not bench.advance().hold
    bench.node.trigger_shutdown()
    assert bench.wait_command(lambda c: c.hold_reason.code == HoldReason.INACTIVE)
    assert bench.state == 'finalized'


def test_d8_the_warm_up_is_in_no_statistics_and_activation_counts_from_zero(bench):
    for _ in range(2):
        bench.robot.chunks.clear()
        bench.robot.statuses.clear()
        bench.advance(by_ns=10**9)
        status = bench.wait_status(lambda s: s.lifecycle_state == 'active')
        assert status.inferences == 0
        assert status.inference_p95_ms == 0.0
        bench.start()
        bench.infer()
        assert bench.robot.chunks[-1].sequence == 1
        bench.advance(by_ns=10**9)
        status = bench.wait_status(lambda s: s.inferences == 1)
        assert status.inference_p95_ms > 0.0
        bench.node.trigger_deactivate()
        bench.node.trigger_activate()


# --- goals ---


def test_instructions_the_policy_cannot_take_are_refused_with_the_reason(bench):
    for instruction, words in (('', 'empty'), ('bowl ' * 3000, 'too long')):
        answer = bench.robot.call('start', instruction=instruction)
        assert not answer.success
        assert words in answer.message
        assert not bench.send_goal(instruction).accepted


def test_a_negative_duration_is_refused(bench):
    assert not bench.send_goal(duration_s=-1).accepted


def test_a_goal_for_an_inactive_node_is_refused(make_bench):
    bench = make_bench().configure()
    answer = bench.robot.call('start', instruction=INSTRUCTION)
    assert not answer.success
    assert 'activate it first' in answer.message


# --- results ---


def test_every_inference_is_published_with_the_headers_of_its_pictures(bench):
    selections = record(bench, TokenSelection, 'token_selection', qos.event_output())
    bench.robot.wait(
        lambda: bench.node._reports.selections.get_subscription_count(), 'the selections'
    )
    bench.start()
    bench.infer()
    bench.robot.wait(lambda: len(selections) == 2, 'both selections')
    assert {selection.camera for selection in selections} == set(CAMERAS)
    assert {stamp(selection) for selection in selections} == {bench.now_ns}
    chunk = bench.robot.chunks[-1]
    assert np.reshape(chunk.actions, (chunk.chunk_length, chunk.action_dimension)).shape == (8, 7)
    assert chunk.tokens_kept == sum(selection.kept_count for selection in selections)
    assert chunk.tokens_total == 32
    assert chunk.instruction == INSTRUCTION


def test_an_answer_without_the_network_is_published_and_counted_as_one(script, make_bench):
    script.reused_by = 'flashvla'
    bench = make_bench().activate()
    bench.start()
    bench.infer()
    assert bench.robot.chunks[-1].reused_by == 'flashvla'
    assert bench.counters()['worker.actions_reused'] == 1


def test_policy_info_reaches_a_late_reader_and_is_complete(make_bench):
    bench = make_bench(optimisation='fused', preprocessing='fast').activate()
    infos = record(bench, PolicyInfo, 'policy_info', qos.latched())
    bench.robot.wait(lambda: infos, 'the latched description')
    info = infos[0]
    may_be_empty = {'trained'}
    for name in info.get_fields_and_field_types():
        assert name in may_be_empty or getattr(info, name), name
    assert len(info.checkpoint_sha256) == 64
    assert info.control_period_s == 0.05
    assert (info.optimisation, info.preprocessing) == ('fused', 'fast')
    assert info.action.frame_id == 'base_link'


# --- dynamic parameters ---


def test_a_new_limit_holds_from_the_next_action_on(bench):
    bench.start()
    assert set_parameter(bench, 'max_step_translation_m', 1e-4).successful
    bench.infer()
    command = bench.advance()
    assert not command.hold
    moved = command.translation
    assert np.linalg.norm([moved.x, moved.y, moved.z]) <= 1e-4


def test_an_impossible_combination_is_refused_with_a_sentence_and_changes_nothing(bench):
    before = bench.node.get_parameter('workspace_min_m').value
    answer = set_parameter(bench, 'workspace_min_m', [5.0, 0.0, 0.0])
    assert not answer.successful
    assert 'workspace is empty in x' in answer.reason
    assert bench.node.get_parameter('workspace_min_m').value == before


def test_the_structure_cannot_change_while_the_node_is_configured(bench):
    answer = set_parameter(bench, 'control_rate_hz', 10.0)
    assert not answer.successful
    assert 'clean up first' in answer.reason


def test_a_new_execution_mode_is_announced(bench):
    infos = record(bench, PolicyInfo, 'policy_info', qos.latched())
    assert set_parameter(bench, 'execution_mode', 'sync').successful
    bench.robot.wait(lambda: infos and infos[-1].execution_mode == 'sync', 'the announcement')
    bench.start()
    bench.infer()
    assert not bench.advance().hold
