"""Parameter files as people have them: what works, and the one sentence that all else gets."""

import pytest
import yaml

from vla_policy_node.system.description import describe
from vla_policy_node.system.files import SystemDescriptionError, read_config, share_directory
from vla_policy_node.system.parameter_file import is_for

CHECKPOINT = {'checkpoint': '/tmp/checkpoint'}


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / 'my.yaml'
        path.write_text(text)
        return path

    return write


def policy(write, *lines, section='policy', **options):
    text = f'{section}:\n  ros__parameters:\n' + ''.join(f'    {line}\n' for line in lines)
    return read_config(write(text), **options)['policy']


@pytest.mark.parametrize(('written', 'meant'), [
    ('[-1, -1, 0.0]', [-1.0, -1.0, 0.0]), ('[-1, 0, 1]', [-1, 0, 1]), ('1e-3', 0.001),
    ('-.5', -0.5), ('2.', 2.0), ('7', 7), ('0x10', 16), ("'7'", '7'), ('2026-01-01', '2026-01-01'),
    ('1:30', '1:30'), ('on', True), ('auto', 'auto'), ("['a', 'b']", ['a', 'b']), ('[]', []),
])
def test_values_are_read_as_ros_reads_them(write, written, meant):
    value = policy(write, f'x: {written}')['x']
    assert value == meant
    assert type(value) is type(meant)
    if isinstance(meant, list):
        assert [type(element) for element in value] == [type(element) for element in meant]


@pytest.mark.parametrize(('written', 'sentence'), [
    ('x: [1, a]', r'x is \[1, .a.\]; a list holds values of one kind\.'),
    ('x: [[1], [2]]', 'a list holds values of one kind'),
    ('x: [true, 1.0]', 'a list holds values of one kind'),
    ('x:', 'x has no value'),
    ("x: '$(var here)'", r'only \$\(find-pkg-share PACKAGE\) and \$\(env NAME\)'),
    ("x: '$(env NOBODY_HAS_SET_THIS)'", 'NOBODY_HAS_SET_THIS.*is not set'),
    ("x: '$(find-pkg-share no_such_package)'", "'no_such_package', which is not installed"),
    ('x: &a 1', 'anchors'),
    ('x: !!python/object/apply:os.getcwd []', 'tags'),
])
def test_a_value_that_ros_cannot_take_gets_a_sentence_with_the_file(write, written, sentence):
    with pytest.raises(SystemDescriptionError, match=sentence) as caught:
        policy(write, written)
    assert 'my.yaml' in str(caught.value)


def test_substitutions_of_launch_files_are_replaced(write, monkeypatch):
    monkeypatch.setenv('ROBOT', 'r2d2')
    values = policy(write, "checkpoint: '$(find-pkg-share vla_policy_node)/checkpoints/x'",
                    "frame_id: '$(env ROBOT)_base'", "device: '$(env NOT_SET_AT_ALL cpu)'")
    assert values == {'checkpoint': f'{share_directory()}/checkpoints/x',
                      'frame_id': 'r2d2_base', 'device': 'cpu'}


@pytest.mark.parametrize(('section', 'namespace'), [
    ('policy', ''), ('policy', '/r1'), ('/policy', ''), ('/r1/policy', '/r1'), ('/**', '/r1'),
    ('r1/policy', '/r1'), ('/**/policy', '/a/b'), ('/*/policy', '/r1'), ('r1:\n policy', '/r1'),
])
def test_a_section_is_found_whatever_namespace_it_is_written_in(write, section, namespace):
    text = f'{section}:\n  ros__parameters:\n    max_age_s: 0.1\n'
    assert read_config(write(text), namespace)['policy'] == {'max_age_s': 0.1}


def test_a_section_matches_as_in_ros():
    assert is_for('/**', 'policy', '/a/b')
    assert is_for('/*/policy', 'policy', '/r1')
    assert not is_for('/*/policy', 'policy', '/a/b')
    assert not is_for('/*/policy', 'policy')
    assert not is_for('policy', 'policy', '/r1')
    assert not is_for('/po.icy', 'policy')


@pytest.mark.parametrize(('text', 'sentence'), [
    ('/r1/policy: {ros__parameters: {x: 1}}', 'for /r1/policy, and the node is /policy'),
    ('/r1/policy_node: {ros__parameters: {x: 1}}', 'did you mean policy?'),
    ('polcy: {ros__parameters: {x: 1}}', 'did you mean policy?'),
    ('controller_manager: {ros__parameters: {x: 1}}', 'and none for these nodes'),
    ('/**: {ros__parameters: {max_aeg_s: 1}}', 'did you mean max_age_s?'),
    ('policy: 3', "each with 'ros__parameters:'"),
    ('/**: {max_age_s: 1}', "each with 'ros__parameters:'"),
])
def test_a_section_that_is_meant_for_us_and_is_not_found_gets_a_sentence(write, text, sentence):
    with pytest.raises(SystemDescriptionError, match=sentence):
        read_config(write(text))


def test_everybody_else_s_sections_and_parameters_are_passed_over(write):
    path = write(yaml.safe_dump({
        '/**': {'ros__parameters': {
            'use_sim_time': True, 'robot_description': '<robot/>', 'max_age_s': 0.2}},
        'moveit': {'kinematics': {'solvers': [[1], {'a': None}]}},
        'controller_manager': {'ros__parameters': {'rates': [1, 'a'], 'x': '$(var x)'}},
        'r2': {'policy': {'ros__parameters': {'max_age_s': 9.9}}},
        'policy': {'ros__parameters': {'max_spread_s': 0.1}},
    }))
    nodes = {node.name: node.parameters for node in describe({**CHECKPOINT, 'config': str(path)})}
    assert nodes['policy']['max_age_s'] == 0.2
    assert nodes['policy']['max_spread_s'] == 0.1
    assert not {'robot_description', 'rates'} & nodes['policy'].keys()
    assert 'max_age_s' not in nodes['guard']


def test_a_node_s_own_dump_describes_the_same_node(write):
    dumped = {'max_age_s': 0.2, 'workspace_min_m': [-1.0, -1.0, 0.0], 'methods': ['dense'],
              'use_sim_time': False, 'start_type_description_service': True,
              'qos_overrides': {'/parameter_events': {'publisher': {'depth': 1000}}}}
    path = write(yaml.safe_dump({'/policy': {'ros__parameters': dumped}}))
    (node,) = (node for node in describe({**CHECKPOINT, 'config': str(path)})
               if node.name == 'policy')
    assert node.parameters['workspace_min_m'] == [-1.0, -1.0, 0.0]
    assert node.parameters['qos_overrides./parameter_events.publisher.depth'] == 1000
