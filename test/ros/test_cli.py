"""The command line: it starts quickly, refuses with a sentence, and says how things went."""

import _thread
import re
import subprocess
import sys
import threading

import pytest
import rclpy
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.context import Context
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from replay_bag import make_bag
from ros_testing import domain  # noqa: F401
from typer.testing import CliRunner

from scripts.reference.commands import commands
from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import HoldReason
from vla_policy_node import cli
from vla_policy_node.commands import doctor
from vla_policy_node.commands.doctor import Diagnosis
from vla_policy_node.nodes import instruct
from vla_policy_node.system.arguments import ARGUMENTS


@pytest.fixture
def vla():
    """Run the command in this process; returns its result (exit_code, output)."""
    return lambda *arguments: CliRunner().invoke(cli.app, list(map(str, arguments)))


def test_help_names_every_command_and_an_example(vla):
    output = vla('--help').output
    for command in ('bringup', 'instruct', 'tasks', 'new-checkpoint', 'doctor'):
        assert command in output
    assert 'Try it' in output


def test_the_command_line_loads_nothing_heavy():
    code = ('import sys, vla_policy_node.cli; '
            "assert vla_policy_node.cli.app; "
            "assert not {'rclpy', 'torch', 'mujoco', 'numpy'} & set(sys.modules)")
    subprocess.run([sys.executable, '-c', code], check=True)


def test_every_command_teaches_by_an_example():
    assert [name for name, command in commands() if f'`{name}' not in command.help] == []


def test_the_version_names_what_the_package_stands_on(vla):
    result = vla('--version')
    assert result.exit_code == 0
    assert re.fullmatch(
        r'vla_policy_node \d\S+, torch \S+, rclpy \S+, ROS 2 .+\n', result.output)


def test_completion_knows_the_commands(vla):
    assert '_VLA_COMPLETE' in vla('--show-completion', 'bash').output or (
        '--show-completion' in vla('--help').output)


class TestBringup:
    @pytest.fixture(autouse=True)
    def _described(self, monkeypatch):
        self.arguments = {}

        def describe(arguments):
            self.arguments = arguments
            return ()

        monkeypatch.setattr('vla_policy_node.system.description.describe', describe)
        monkeypatch.setattr('vla_policy_node.system.processes.run', lambda nodes: 7)

    def test_its_options_are_the_arguments_of_the_system(self, vla):
        result = vla('bringup', '--world', '--no-visualizer', '--wrist-topic', '/hand')
        expected = {argument.name: argument.default for argument in ARGUMENTS}
        assert self.arguments == {
            **expected, 'world': True, 'visualizer': False, 'wrist_topic': '/hand'}
        assert result.exit_code == 7


    def test_topics_of_streams_that_only_a_contract_knows_reach_the_system(self, vla):
        vla('bringup', '--side-cam-topic', '/a', '--contract', 'mine.yaml', '--left-topic=/b')
        assert (self.arguments['side_cam_topic'], self.arguments['left_topic']) == ('/a', '/b')
        assert self.arguments['contract'] == 'mine.yaml'
        result = vla('bringup', '--side-topic')
        assert result.exit_code == 2 and 'requires an argument' in result.output
        assert vla('bringup', '--side-topics', '/a').exit_code == 2


def test_replay_takes_the_topic_of_any_stream(vla, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr('vla_policy_node.replay.many.replay_bags',
                        lambda bags, settings, *rest: asked.append((bags, settings)) or True)
    result = vla('replay', 'one', '--wrist-topic', '/w', '--high-topic', '/h', 'two', '--out',
                 tmp_path / 'out', '--contract', 'mine.yaml')
    assert result.exit_code == 0, result.output
    ((bags, settings),) = asked
    assert [bag.name for bag in bags] == ['one', 'two']
    assert {name: topic for name, topic in settings.topics.items() if topic} == {
        'wrist': '/w', 'high': '/h'}
    assert settings.contract == 'mine.yaml'


def test_bringup_refuses_with_one_sentence(vla):
    result = vla('bringup', '--config', '/no/such.yaml')
    assert result.exit_code == 2
    assert "'/no/such.yaml' cannot be read" in result.output
    assert 'Traceback' not in result.output


@pytest.mark.parametrize(('options', 'sentence'), [
    ((), "on '/r1/third_person/image_raw'"), (('--wrist-topic', '/r2/w'), "on '/r2/w'"),
    (('--bag-namespace', 'r2'), "no topics in the namespace '/r2'")])
def test_a_bag_that_cannot_be_played_is_refused_before_anything_starts(
        vla, tmp_path, monkeypatch, options, sentence):
    monkeypatch.setattr('vla_policy_node.system.processes.run', lambda nodes: pytest.fail())
    bag = make_bag(tmp_path / 'bag', seconds=0.1, namespace='/r1',
                   omit=('/third_person/image_raw',))
    result = vla('bringup', '--play', bag, *options)
    assert result.exit_code == 2
    assert sentence in result.output and 'Traceback' not in result.output


def test_a_bag_in_whose_namespace_all_is_there_is_played(vla, tmp_path, monkeypatch):
    monkeypatch.setattr('vla_policy_node.system.processes.run', lambda nodes: 7)
    bag = make_bag(tmp_path / 'bag', seconds=0.1, namespace='/r1',
                   renamed={'/wrist/image_raw': '/hand/rgb'})
    assert vla('bringup', '--play', bag, '--wrist-topic', '/hand/rgb').exit_code == 7


def test_tasks_of_a_suite_or_a_refusal(vla):
    result = vla('tasks', 'libero_goal')
    assert 'open the middle drawer of the cabinet' in result.output
    assert 'libero_object' not in result.output
    result = vla('tasks', 'libero_90')
    assert result.exit_code == 2
    assert 'There is no suite' in result.output


def test_a_new_checkpoint_spares_what_is_there(vla, tmp_path, monkeypatch):
    made = []

    def create(directory, seed, config):
        made.append((seed, config.get('head')))
        (directory / 'config.json').write_text('{}')

    monkeypatch.setattr('vla_policy_node.runtime.small.create_small_checkpoint', create)
    result = vla('new-checkpoint', tmp_path / 'new', '--seed', 3)
    vla('new-checkpoint', tmp_path / 'other', '--head', 'cogact')
    assert made == [(3, None), (0, 'cogact')]
    assert all((tmp_path / name / 'config.json').is_file() for name in ('new', 'other'))
    assert 'untrained' in result.output
    assert 'choose l1 or cogact' in vla('new-checkpoint', tmp_path / 'x', '--head', 'l2').output
    (tmp_path / 'weights').touch()
    result = vla('new-checkpoint', tmp_path)
    assert result.exit_code == 2
    assert 'not empty' in result.output
    assert len(made) == 2


class TestDoctor:
    def test_it_fails_only_if_something_needed_is_missing(self, vla, monkeypatch):
        found = Diagnosis('bread', 'in the box')
        absent = Diagnosis('wine', '', 'buy it', needed=False)
        monkeypatch.setattr(doctor, 'CHECKS', [lambda: found, lambda: absent])
        result = vla('doctor', '--transport-s', 0)
        assert result.exit_code == 0
        assert 'buy it' in result.output
        monkeypatch.setattr(doctor, 'CHECKS', [lambda: Diagnosis('water', '', 'dig')])
        result = vla('doctor', '--transport-s', 0)
        assert result.exit_code == 1
        assert 'dig' in result.output

    @pytest.mark.parametrize('check', doctor.CHECKS, ids=lambda check: check.__name__)
    def test_every_check_finds_something_or_says_how_to_get_it(self, check):
        finding = check()
        assert finding.name
        assert finding.found or finding.remedy

    def test_a_broken_gl_back_end_is_found_out(self, monkeypatch):
        monkeypatch.setenv('MUJOCO_GL', 'no-such-back-end')
        assert doctor.check_rendering().found == ''


class PolicyDouble:
    """An action server that does as told, in a context and threads of its own."""

    def __init__(self, code=0, accept=True, until_cancelled=False, forgets=False):
        self.requests = []
        self._code, self._until_cancelled, self._forgets = code, until_cancelled, forgets
        self._cancelled = threading.Event()
        self._context = Context()
        rclpy.init(args=[], context=self._context)
        self._node = Node('policy', context=self._context)
        response = GoalResponse.ACCEPT if accept else GoalResponse.REJECT
        self._server = ActionServer(
            self._node, ExecuteInstruction, 'execute_instruction', self._execute,
            goal_callback=lambda request: response, cancel_callback=self._cancel,
            callback_group=ReentrantCallbackGroup())
        self._executor = MultiThreadedExecutor(3, context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def _cancel(self, handle):
        self._cancelled.set()
        return CancelResponse.ACCEPT

    def _execute(self, handle):
        self.requests.append(handle.request)
        handle.publish_feedback(ExecuteInstruction.Feedback(
            step=5, hold=HoldReason(code=HoldReason.INPUT_STALE, text='Too old.')))
        if self._forgets:  # as one that died and was started again
            goal = bytes(handle.goal_id.uuid)
            while not (self._server._result_futures[goal]._callbacks  # the client awaits it
                       or self._cancelled.wait(0.01)):
                pass
            del self._server._goal_handles[goal]
            self._cancelled.wait(10.0)
        elif self._until_cancelled:
            _thread.interrupt_main()  # what Ctrl-C does
            assert self._cancelled.wait(10.0)
            handle.canceled()
        else:
            handle.succeed()
        return ExecuteInstruction.Result(code=self._code, text='It ended.', steps=9, inferences=4)

    def close(self):
        self._cancelled.set()
        self._executor.shutdown()
        self._server.destroy()
        self._node.destroy_node()
        self._context.try_shutdown()
        self._thread.join()


@pytest.mark.usefixtures('domain')
class TestInstruct:
    @pytest.fixture
    def policy(self):
        made = []

        def make(**settings):
            made.append(PolicyDouble(**settings))
            return made[-1]

        yield make
        for double in made:
            double.close()

    def test_it_follows_to_the_end_and_says_how_it_ended(self, vla, policy):
        double = policy()
        result = vla('instruct', 'open the drawer', '--duration', 2.5)
        assert result.exit_code == 0
        assert 'It ended. 9 steps, 4 inferences.' in result.output
        (request,) = double.requests
        assert request.instruction == 'open the drawer'
        assert (request.max_duration.sec, request.max_duration.nanosec) == (2, 500_000_000)

    def test_any_other_end_is_a_failure(self, vla, policy):
        policy(code=ExecuteInstruction.Result.ESTOPPED)
        assert vla('instruct', 'open the drawer').exit_code == 1

    def test_ctrl_c_cancels_the_goal(self, vla, policy):
        policy(code=ExecuteInstruction.Result.CANCELLED, until_cancelled=True)
        result = vla('instruct', 'open the drawer')
        assert result.exit_code == 130
        assert 'It ended.' in result.output

    def test_a_node_that_was_started_again_does_not_know_the_goal(self, vla, policy, monkeypatch):
        monkeypatch.setattr(instruct, 'SILENT_S', 0.3)
        policy(forgets=True)
        result = vla('instruct', 'open the drawer')
        assert result.exit_code == 1
        assert 'went away' in result.output

    def test_a_refusal_is_said(self, vla, policy):
        policy(accept=False)
        result = vla('instruct', 'open the drawer')
        assert result.exit_code == 1
        assert 'refused' in result.output

    def test_without_a_node_it_says_how_to_start_one(self, vla):
        result = vla('instruct', 'open the drawer', '--wait', 0.1)
        assert result.exit_code == 1
        assert 'vla bringup' in result.output
