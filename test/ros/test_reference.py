"""The generated reference names what is really there: endpoints, parameters, commands."""

import re
from pathlib import Path

import pytest
from node_bench import checkpoint, make_bench, script  # noqa: F401 - fixtures
from ros_testing import ros  # noqa: F401

from vla_policy_node import acceleration
from vla_policy_node.nodes.guard_node import GuardNode
from vla_policy_node.nodes.visualizer_node import VisualizerNode
from vla_policy_node.system.arguments import ARGUMENTS

ROOT = Path(__file__).parents[2]
# Every node of rclpy has these.
OF_RCLPY = {
    'use_sim_time', 'start_type_description_service', '/parameter_events', '/rosout', '/clock'}


@pytest.fixture(scope='module')
def pages():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        from scripts.reference.__main__ import pages as make_pages

        return make_pages()


def section(page, title):
    return re.split(r'^## ', page.partition(f'\n## {title}\n')[2], flags=re.MULTILINE)[0]


def check_node(node, name, pages):
    """Compare a running node with its sections."""
    here = section(pages['reference/parameters.md'], f'Node `{name}`')
    declared = {p for p in node._parameters if not p.startswith('qos_overrides.')} - OF_RCLPY
    assert declared == set(re.findall(r'^\| `(\w+)` \|', here, re.MULTILINE))

    here = section(pages['reference/topics.md'], f'Node `{name}`')
    listed = {topic.removeprefix('CAMERA') for topic in re.findall(r'`([^`]*)`', here)}
    found = [
        *node.get_publisher_names_and_types_by_node(node.get_name(), '/'),
        *node.get_subscriber_names_and_types_by_node(node.get_name(), '/')]
    for topic, _ in found:
        if topic not in OF_RCLPY and not topic.endswith('transition_event'):
            name = topic.strip('/')
            assert any(name == t.strip('/') or (t.startswith('/') and name.endswith(t))
                       for t in listed), f'{topic} of {node.get_name()} is not in the reference'


def test_the_policy_node_is_described(make_bench, pages):  # noqa: F811
    check_node(make_bench().activate().node, 'policy', pages)


@pytest.mark.usefixtures('ros')
@pytest.mark.parametrize(('kind', 'name'), [(GuardNode, 'guard'), (VisualizerNode, 'visualizer')])
def test_small_nodes_are_described(kind, name, pages):
    node = kind()
    try:
        check_node(node, name, pages)
    finally:
        node.destroy_node()


def test_services_of_a_goal_are_listed(pages):
    here = section(pages['reference/topics.md'], 'Node `policy`')
    for name in ('~/start', '~/cancel', '~/estop', '~/reset_estop', 'execute_instruction'):
        assert f'| serves | `{name}` |' in here


def test_every_command_and_option_is_listed(pages):
    page = pages['reference/commands.md']
    for command in ('bringup', 'instruct', 'replay', 'eval', 'train', 'check', 'bench policy'):
        assert f'\n## vla {command}\n' in page
    assert '| `--against` |' in section(page, 'vla replay')
    assert all(f'`--{a.name.replace("_", "-")}`' in page for a in ARGUMENTS)


def test_every_launch_argument_is_listed(pages):
    page = pages['reference/launch.md']
    assert set(re.findall(r'^\| `(\w+)` \|', page, re.MULTILINE)) == {a.name for a in ARGUMENTS}


def test_the_tutorial_names_parameters_that_exist(pages):
    tutorial = (ROOT / 'docs' / 'your_robot.md').read_text(encoding='utf-8')
    table = tutorial.partition('| parameter | default |')[2].partition('\n\n')[0]
    first_cells = [line.split('|')[1] for line in table.splitlines() if line.count('|') > 2]
    named = set(re.findall(r'`(\w+)`', ' '.join(first_cells)))
    here = section(pages['reference/parameters.md'], 'Node `policy`')
    assert len(named) > 15
    assert named <= set(re.findall(r'^\| `(\w+)` \|', here, re.MULTILINE))


def test_every_method_and_setting_is_listed(pages):
    page = pages['reference/methods.md']
    for name in acceleration.available():
        here = section(page, f'`{name}`')
        listed = set(re.findall(r'^\| `(\w+)` \|', here, re.MULTILINE))
        assert listed == set(acceleration.settings(name))


def test_every_module_of_the_api_is_listed(pages):
    page = pages['reference/api/control.md']
    files = (ROOT / 'vla_policy_node' / 'control').glob('[!_]*.py')
    assert set(re.findall(r'^::: vla_policy_node\.control\.(\w+)', page, re.MULTILINE)) == {
        path.stem for path in files}
