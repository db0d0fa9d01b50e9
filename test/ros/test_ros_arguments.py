"""What a process does with parameter files and rules that rcl refuses or passes over.

The arguments go through real rclpy, in this process.
"""

import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node
from ros_testing import ros  # noqa: F401

from vla_policy_node.nodes import ros_arguments
from vla_policy_node.nodes.parameters import ParameterError, ParameterStore
from vla_policy_node.nodes.policy_node import PolicyParameters
from vla_policy_node.nodes.ros_arguments import RosArguments
from vla_policy_node.system.files import share_directory

pytestmark = pytest.mark.usefixtures('ros')


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(ros_arguments, '_for_all', set())


@pytest.fixture
def started(tmp_path):
    """The parameters of a node that is started with these arguments; FILE is a file of `text`."""
    contexts = []

    def start(*arguments, text='', namespace=''):
        file = tmp_path / 'my.yaml'
        file.write_text(text)
        given = ['node', '--ros-args', *(part for argument in arguments for part in (
            ('--params-file', str(file)) if argument == 'FILE' else (argument,)))]
        context = Context()
        with RosArguments(given) as usable:
            rclpy.init(args=usable.usable, context=context)
        contexts.append(context)
        node = Node('policy', context=context, namespace=namespace)
        usable.warn(node)
        checked = ParameterStore(node, PolicyParameters).checked()
        node.destroy_node()
        return checked

    yield start
    for context in contexts:
        context.try_shutdown()


POLICY = 'policy:\n  ros__parameters:\n'


def test_what_rcl_refuses_or_takes_literally_is_written_for_it(started):
    parameters = started('FILE', text=POLICY + (
        '    workspace_min_m: [-1, -1, 0.0]\n    workspace_max_m: [1, 1, 1]\n'
        "    max_age_s: 1\n    max_spread_s: 1e-2\n    methods: []\n    statistics_key: '1e-3'\n"
        "    checkpoint: '$(find-pkg-share vla_policy_node)/a: \"b\"'\n"
        'moveit:\n  kinematics: {solvers: [[1], {a: }]}\n'))
    assert parameters.workspace_min_m == (-1.0, -1.0, 0.0)
    assert parameters.workspace_max_m == (1.0, 1.0, 1.0)
    assert (parameters.max_age_s, parameters.max_spread_s) == (1.0, 0.01)
    assert parameters.method_names == ()
    assert parameters.statistics_key == '1e-3'
    assert parameters.checkpoint == f'{share_directory()}/a: "b"'


def test_rules_on_the_command_line_too(started):
    parameters = started('-p', 'workspace_min_m:=[-1, -1, 0.0]', '--param',
                         'workspace_max_m:=[1, 1, 1]', '-p', 'frame_id:=base')
    assert parameters.workspace_min_m == (-1.0, -1.0, 0.0)
    assert parameters.frame_id == 'base'


def test_a_file_that_rcl_can_take_is_handed_on_as_it_is():
    path = str(share_directory() / 'config' / 'bringup.yaml')
    given = ['node', '--ros-args', '--params-file', path, '-p', 'x:=[1.0]', '--',
             '-p', 'y:=[1, 2.0]']
    with RosArguments(given) as arguments:
        assert arguments.usable == given


@pytest.mark.parametrize(('key', 'namespace'), [
    ('/r1/policy', '/r1'), ('/**', '/r1'), ('/**/policy', '/a/b'), ('r1:\n policy', '/r1')])
def test_sections_in_namespaces_are_found(started, key, namespace, capfd):
    text = f'{key}:\n  ros__parameters:\n    workspace_min_m: [-1, -1, 0.0]\n' \
           '    workspace_max_m: [1, 1, 1.0]\n'
    assert started('FILE', text=text, namespace=namespace).workspace_min_m == (-1.0, -1.0, 0.0)
    assert 'no parameters for' not in capfd.readouterr().err


def test_a_file_with_nothing_for_the_node_is_said(started, capfd):
    started('FILE', text='/r1/policy_node: {ros__parameters: {max_age_s: 0.1}}\n')
    assert 'no parameters for /policy, only for /r1/policy_node' in capfd.readouterr().err


def test_what_all_nodes_are_given_may_be_for_others_but_not_misspelt(started):
    text = '/**: {ros__parameters: {robot_description: x, max_age_s: 0.2, a: {b: 1}}}\n'
    assert started('FILE', text=text).max_age_s == 0.2
    with pytest.raises(ParameterError, match='did you mean max_age_s'):
        started('FILE', text='/**: {ros__parameters: {max_aeg_s: 0.2}}\n')


@pytest.mark.parametrize(('text', 'sentence'), [
    (POLICY + '    methods: [1, a]\n', r"In '.*my\.yaml': methods is .*of one kind"),
    (POLICY + "    checkpoint: '$(var x)'\n", 'replaced in parameter files'),
    ('policy: {max_age_s: 1}\n', 'ros__parameters'),
    ('policy: [', 'is not YAML'),
])
def test_a_file_that_cannot_be_used_gets_a_sentence(started, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        started('FILE', text=text)


def test_a_missing_file_gets_a_sentence():
    with pytest.raises(ValueError, match=r"'/no/such\.yaml' cannot be read"):
        RosArguments(['node', '--ros-args', '--params-file', '/no/such.yaml'])
