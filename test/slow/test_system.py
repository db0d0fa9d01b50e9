"""One description of the system, and its two renderings: processes and launch files."""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from replay_bag import make_bag

from vla_policy_node.common.contract_files import default_streams
from vla_policy_node.contract import find_contract, to_plain
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.nodes.guard_node import GuardParameters
from vla_policy_node.nodes.player_node import PlayerParameters
from vla_policy_node.nodes.recorder_node import RecorderParameters
from vla_policy_node.nodes.visualizer_node import VisualizerParameters
from vla_policy_node.nodes.world_node import WorldParameters
from vla_policy_node.system import description, processes
from vla_policy_node.system.arguments import ARGUMENTS, OF_COMMANDS, misspelt, resolve
from vla_policy_node.system.description import describe, topic_arguments
from vla_policy_node.system.files import SystemDescriptionError, read_config
from vla_policy_node.system.processes import (
    PROFILES,
    NodeDiedError,
    System,
    command_line,
    middleware_environment,
)

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
DECLARED = {
    'policy': PolicyParameters, 'visualizer': VisualizerParameters, 'world': WorldParameters,
    'recorder': RecorderParameters, 'player': PlayerParameters, 'guard': GuardParameters,
}
CHECKPOINT = {'checkpoint': '/some/checkpoint'}


def named(nodes):
    return {node.name: node for node in nodes}


def described(**arguments):
    return named(describe({**CHECKPOINT, **arguments}))


# --- the parameter file ---


@pytest.mark.parametrize('node', DECLARED)
def test_the_parameter_file_names_every_parameter_with_its_type(node):
    written = read_config(ROOT / 'config' / 'bringup.yaml')[node]
    declared = DECLARED[node]()
    assert list(written) == [f.name for f in fields(declared)]
    for name, value in written.items():
        default = getattr(declared, name)
        if isinstance(value, list):
            assert [type(v) for v in value] == [type(v) for v in default], name
        else:
            assert type(value) is type(default), name
    DECLARED[node](**{k: tuple(v) if isinstance(v, list) else v for k, v in written.items()})


def test_a_node_s_own_section_wins_over_the_one_for_all(tmp_path):
    path = tmp_path / 'my.yaml'
    path.write_text(yaml.safe_dump({
        '/**': {'ros__parameters': {'compressed': True, 'dtype': 'float32'}},
        '/policy': {'ros__parameters': {'dtype': 'bfloat16'}},
    }))
    config = read_config(path)
    assert config['policy'] == {'compressed': True, 'dtype': 'bfloat16'}
    assert config['visualizer'] == {'compressed': True, 'dtype': 'float32'}


@pytest.mark.parametrize(('text', 'reason'), [
    ('polcy: {ros__parameters: {}}', "has a section 'polcy'; sections are"),
    ('policy: {device: cpu}', "each with 'ros__parameters:'"),
    ('- a list', "each with 'ros__parameters:'"),
    ('policy: [', 'is not YAML'),
])
def test_a_file_that_is_no_parameter_file_is_refused(tmp_path, text, reason):
    path = tmp_path / 'my.yaml'
    path.write_text(text)
    with pytest.raises(SystemDescriptionError, match=reason):
        read_config(path)


def test_a_missing_parameter_file_is_named():
    with pytest.raises(SystemDescriptionError, match=r"'/no/such\.yaml' cannot be read"):
        describe({**CHECKPOINT, 'config': '/no/such.yaml'})


# --- the arguments ---


def test_by_default_policy_and_visualizer_run_behind_a_guard_but_no_world():
    assert list(described()) == ['guard', 'policy', 'visualizer']
    assert list(described(world=True, visualizer=False)) == ['world', 'policy']


def test_launch_s_strings_and_python_s_switches_mean_the_same():
    assert described(world='True', visualizer='false') == described(world=True, visualizer=False)


@pytest.mark.parametrize(('arguments', 'reason'), [
    ({'wrld': 'true'}, 'There is no argument wrld'),
    ({'world': 'maybe'}, "world is 'maybe'; write true or false"),
    ({'log_level': 'loud'}, "log_level is 'loud'; choose one of debug, info"),
    ({'lock_step': True}, 'lock_step needs the world'),
    ({'world': True, 'play': 'bag'}, 'A bag is played instead of a world'),
    ({'guard': 'maybe'}, "guard is 'maybe'; choose one of auto, true, false"),
    ({'guard': 'true', 'play': 'bag'}, 'Leave guard out'),
    ({'guard': 'true', 'world': True, 'lock_step': True}, 'Leave guard out'),
    ({'command_topic': '/command'}, "reads the policy's commands on 'command'"),
])
def test_arguments_that_mean_nothing_are_refused(arguments, reason):
    with pytest.raises(SystemDescriptionError, match=reason):
        resolve(arguments)


def test_only_the_world_makes_simulated_time_and_the_others_follow():
    nodes = described(world=True, use_sim_time=True)
    assert nodes['world'].parameters['publish_clock'] is True
    assert {name: node.parameters['use_sim_time'] for name, node in nodes.items()} == {
        'world': False, 'policy': True, 'visualizer': True}


def test_a_recording_is_one_more_node_on_everybody_s_clock():
    nodes = described(world=True, use_sim_time=True, record='bags/one')
    assert next(iter(nodes)) == 'recorder'  # before anybody speaks
    assert nodes['recorder'].parameters['output'] == 'bags/one'
    assert nodes['recorder'].parameters['use_sim_time'] is True
    assert 'recorder' not in described(world=True)


def test_a_played_bag_brings_its_parameters_and_its_clock(tmp_path):
    (tmp_path / 'policy.yaml').write_text(
        'policy: {ros__parameters: {frame_id: world, max_age_s: 0.5, checkpoint: /recorded}}')
    nodes = described(play=str(tmp_path), lock_step=True)
    assert list(nodes) == ['policy', 'visualizer', 'player']
    assert nodes['player'].parameters['lock_step'] is True
    assert nodes['policy'].parameters['use_sim_time'] is True
    assert nodes['policy'].parameters['pacing'] == 'observation'
    assert nodes['policy'].parameters['frame_id'] == 'world'
    assert nodes['policy'].parameters['checkpoint'] == '/some/checkpoint'  # the argument wins
    assert [node for node in nodes.values() if node.ends_the_run] == [nodes['player']]


@pytest.mark.parametrize('arguments', [
    {'world': True}, {'world': True, 'lock_step': True}, {'play': 'bag'}, {'guard': 'false'},
    {'use_sim_time': True}, {'policy': False},
])
def test_where_nothing_is_late_or_nobody_moves_there_is_no_guard(arguments):
    assert 'guard' not in described(**arguments)


def test_the_robot_s_topic_is_the_guard_s_and_the_policy_keeps_its_own():
    nodes = described(command_topic='/arm/command', record='bag')
    assert nodes['guard'].remappings == {'guarded_command': '/arm/command'}
    assert nodes['policy'].remappings == nodes['recorder'].remappings == {}
    bare = described(command_topic='/arm/command', guard='false')
    assert bare['policy'].remappings == {'command': '/arm/command'}


def test_a_world_in_real_time_obeys_the_guard_if_there_is_one():
    nodes = described(world=True, guard='true')
    assert nodes['world'].remappings == {'command': 'guarded_command'}
    assert nodes['guard'].remappings == nodes['policy'].remappings == {}
    assert described(world=True)['world'].remappings == {}


SHARED = ('control_rate_hz', 'max_step_translation_m', 'max_step_rotation_rad', 'publish_twist')


def test_the_guard_has_the_policy_s_rate_and_ceilings(tmp_path):
    path = tmp_path / 'my.yaml'
    path.write_text('policy: {ros__parameters: {control_rate_hz: 10.0, publish_twist: true, '
                    'max_step_translation_m: 0.3, max_step_rotation_rad: 0.7}}')
    guard = described(config=str(path))['guard'].parameters
    assert [guard[name] for name in SHARED] == [10.0, 0.3, 0.7, True]
    world = described(world=True, guard='true')
    assert all(world['guard'].parameters[name] == world['policy'].parameters[name]
               for name in SHARED)


def test_a_guard_without_parameters_is_that_of_a_policy_without_parameters():
    policy, guard = PolicyParameters(), GuardParameters()
    assert all(getattr(policy, name) == getattr(guard, name) for name in SHARED)


def test_lock_step_sets_up_both_ends():
    nodes = described(world=True, lock_step=True)
    assert nodes['world'].parameters['lock_step'] is True
    assert nodes['policy'].parameters['pacing'] == 'observation'
    assert nodes['policy'].parameters['use_sim_time'] is True


def test_arguments_win_over_the_file_and_overrides_over_both(tmp_path):
    path = tmp_path / 'my.yaml'
    path.write_text('policy: {ros__parameters: {device: cpu, checkpoint: /of/file, threads: 1}}')
    node = named(describe({'config': str(path)}))['policy']
    assert node.parameters['checkpoint'] == '/of/file'
    assert node.parameters['device'] == 'cpu'
    node = named(describe(
        {'config': str(path), 'device': 'cuda:0', **CHECKPOINT}, {'policy': {'threads': 2}}
    ))['policy']
    assert node.parameters['checkpoint'] == '/some/checkpoint'
    assert node.parameters['device'] == 'cuda:0'
    assert node.parameters['threads'] == 2


def test_a_camera_s_compressed_topic_is_remapped_with_it():
    for node in described(wrist_topic='/hand/image').values():
        assert node.remappings == {
            'wrist/image_raw': '/hand/image',
            'wrist/image_raw/compressed': '/hand/image/compressed',
        }


@pytest.fixture
def three_cameras(tmp_path):
    plain = to_plain(find_contract(''))
    plain['cameras'] = [{'name': name, 'topic': f'cam_{name}/rgb'} for name in ('high', 'left')]
    contract = tmp_path / 'mine.yaml'
    contract.write_text(yaml.safe_dump(plain))
    return str(contract)


def test_a_robot_with_other_streams_has_arguments_for_their_topics(three_cameras):
    nodes = described(
        contract=three_cameras, left_topic='/l', ee_pose_topic='/tool', high_topic='')
    for name in ('policy', 'visualizer'):
        assert nodes[name].remappings == {
            'cam_left/rgb': '/l', 'cam_left/rgb/compressed': '/l/compressed', 'ee_pose': '/tool'}
    assert topic_arguments({'contract': three_cameras}) == {
        'high_topic', 'left_topic', 'ee_pose_topic', 'gripper_state_topic'}
    assert topic_arguments({}) == {a.name for a in ARGUMENTS if a.name.endswith('_topic')
                                   and a.name not in OF_COMMANDS}


@pytest.mark.parametrize(('argument', 'contract', 'sentence'), [
    ('left_topic', False, 'no argument left_topic for end_effector; its streams are third_person'),
    ('wrist_topic', True, 'no argument wrist_topic for end_effector; its streams are high, left')])
def test_topics_of_streams_that_the_robot_does_not_have_are_refused(
        three_cameras, argument, contract, sentence):
    with pytest.raises(SystemDescriptionError, match=sentence):
        described(**{argument: '/x'}, **({'contract': three_cameras} if contract else {}))


def test_the_arguments_name_the_streams_of_the_default_contract():
    assert [*default_streams()] == [*find_contract('').topics]


def test_without_the_shipped_checkpoint_one_is_made_once_and_only_for_a_policy(
    tmp_path, monkeypatch
):
    made = []

    def create(directory, seed, config):
        made.append(seed)
        (directory / 'config.json').write_text('{}')

    monkeypatch.setenv('VLA_CACHE', str(tmp_path))
    monkeypatch.setattr('vla_policy_node.system.files.SHIPPED', 'none')
    monkeypatch.setattr('vla_policy_node.runtime.small.create_small_checkpoint', create)
    describe({'policy': False, 'world': True})
    assert made == []
    for _ in range(2):
        nodes = named(describe())
    assert made == [0]
    assert Path(nodes['policy'].parameters['checkpoint']).parent == tmp_path / 'checkpoints'


def test_describing_needs_neither_ros_nor_torch():
    code = ('import sys; from vla_policy_node.system.description import describe; '
            "describe({'checkpoint': '/c'}); "
            "assert not {'rclpy', 'torch', 'launch', 'mujoco'} & set(sys.modules)")
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


# --- processes ---


def test_parameters_reach_a_node_as_they_are(ros_arguments_of):
    parameters = {
        'text': '', 'number': 1e-6, 'whole': 3, 'switch': True, 'quoted': "it's \"so\"",
        'numbers': [0.0, -1.5], 'texts': ['true', '1'],
    }
    node = description.NodeSpec('policy', parameters)
    assert ros_arguments_of(command_line(node)) == parameters


@pytest.fixture
def ros_arguments_of():
    """Start a process with the arguments, and return the parameters that rclpy sees there."""
    code = ('import json, rclpy; from rclpy.node import Node; rclpy.init(); '
            "node = Node('x', automatically_declare_parameters_from_overrides=True); "
            'names = node._parameter_overrides; '
            'print(json.dumps({n: p.value if not hasattr(p.value, "tolist") else '
            'p.value.tolist() for n, p in names.items()}))')

    def run(command):
        arguments = command[command.index('--ros-args'):]
        done = subprocess.run(
            [sys.executable, '-c', code, *arguments], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    return run


@dataclass(frozen=True)
class Script:
    """A stand-in for a node: a line of Python."""

    name: str
    code: str
    ends_the_run: bool = False
    respawns: bool = False


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.setattr(
        processes, 'command_line', lambda node: [sys.executable, '-c', node.code])


STAYS = 'print("up"); import time; time.sleep(60)'
STUBBORN = ('import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); '
            'signal.signal(signal.SIGTERM, signal.SIG_IGN); '
            'print("up"); import time; time.sleep(60)')


class Output(io.StringIO):
    """What the nodes printed; two threads write here, a third reads."""


@pytest.mark.usefixtures('scripts')
class TestProcesses:
    def test_every_line_says_whose_it_is_and_the_environment_arrives(self):
        output = Output()
        code = 'import os; print(os.environ["ROS_DOMAIN_ID"], os.environ["VLA_SUPERVISOR"])'
        nodes = [Script('a', code), Script('long', STAYS)]
        with System(nodes, {'ROS_DOMAIN_ID': '42'}, output) as running:
            running.check = lambda: None  # the first one ends at once, as it should
            lines = (f'a    | 42 {os.getpid()}\n', 'long | up\n')
            running.wait(lambda: all(line in output.getvalue() for line in lines))

    def test_the_death_of_a_node_ends_the_system_with_a_sentence(self):
        nodes = [Script('fine', STAYS), Script('ill', 'raise SystemExit(3)')]
        with (pytest.raises(NodeDiedError, match=r"'ill' ended by itself \(exit code 3\)"),
              System(nodes, output=Output()) as running):
            running.wait()
        assert all(p.poll() is not None for p in running._processes.values())

    def test_a_player_that_has_played_ends_the_system_well(self):
        nodes = [Script('fine', STAYS), Script('player', 'pass', ends_the_run=True)]
        with System(nodes, output=Output()) as running:
            running.wait()
        assert running._processes['player'].returncode == 0

    def test_a_player_that_failed_is_a_node_that_died(self):
        nodes = [Script('fine', STAYS), Script('player', 'raise SystemExit(1)', True)]
        with (pytest.raises(NodeDiedError, match="'player' ended by itself"),
              System(nodes, output=Output()) as running):
            running.wait()

    def test_what_respawns_is_started_again_and_the_others_never_notice(self, monkeypatch):
        monkeypatch.setattr(processes, 'RESPAWN_S', 0.0)
        output = Output()
        nodes = [Script('fine', STAYS), Script('ill', 'print("here"); raise SystemExit(3)',
                                               respawns=True)]
        with System(nodes, output=output) as running:
            running.wait(lambda: output.getvalue().count('ill  | here') == 2)
            assert running._processes['fine'].poll() is None
        assert "'ill' ended by itself (exit code 3); it is started again." in output.getvalue()

    def test_nodes_are_told_to_end_and_the_stubborn_killed(self):
        output = Output()
        nodes = [Script('fine', STAYS), Script('stubborn', STUBBORN)]
        with System(nodes, output=output, grace_s=1.0) as running:
            running.wait(lambda: output.getvalue().count('up') == 2)
        codes = {name: p.returncode for name, p in running._processes.items()}
        assert codes['stubborn'] == -signal.SIGKILL
        assert codes['fine'] not in (None, -signal.SIGKILL)


# --- launch files ---


def test_a_misspelt_argument_of_a_launch_file_is_named_and_those_of_others_are_not():
    (sentence,) = misspelt(
        ['world', 'third_persn_topic', 'use_rviz_plugin', 'log_dir'], {'third_person_topic'})
    assert 'third_persn_topic' in sentence
    assert 'did you mean third_person_topic?' in sentence


@pytest.mark.parametrize(('file', 'executables'), [
    ('bringup', ['guard_node', 'policy_node', 'visualizer_node']),
    ('world', ['world_node']),
    ('replay', ['policy_node', 'visualizer_node', 'player_node']),
])
def test_launch_files_start_what_is_described(file, executables, monkeypatch, tmp_path):
    # The folder launch/ of this repository could pass for the package: ask for its parts.
    pytest.importorskip('launch.actions')
    launch_ros = pytest.importorskip('launch_ros.actions')
    from launch import LaunchContext, LaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource
    from launch.utilities import perform_substitutions

    monkeypatch.setenv('VLA_CACHE', str(tmp_path))
    context = LaunchContext()
    if file == 'replay':
        context.launch_configurations['play'] = str(make_bag(tmp_path / 'bag', seconds=0.1))
    source = PythonLaunchDescriptionSource(str(ROOT / 'launch' / f'{file}.launch.py'))
    pending = [source.get_launch_description(context)]
    nodes, environments = [], {}
    while pending:
        entity = pending.pop(0)
        if isinstance(entity, launch_ros.Node):
            nodes.append(entity.node_executable)
            environments[entity.node_executable] = {
                perform_substitutions(context, name): perform_substitutions(context, value)
                for name, value in entity.additional_env or ()}
        elif isinstance(entity, LaunchDescription):
            pending = [*entity.entities, *pending]
        else:
            pending = [*(entity.visit(context) or []), *pending]
    assert [name for name in nodes if name != 'rviz2'] == executables
    for name in executables:  # none drives on when `ros2 launch` dies
        assert environments[name].items() >= processes.leash().items()


def test_the_tight_limits_are_loosened_for_the_simulated_world_only(tmp_path):
    robot, simulated = described(), described(world=True)
    assert robot['policy'].parameters['max_linear_velocity_m_s'] == 0.25
    assert robot['policy'].parameters['freeze_timeout_s'] > 0
    assert simulated['policy'].parameters['max_linear_velocity_m_s'] == 1.75
    assert simulated['policy'].parameters['frame_id'] == 'world'
    mine = tmp_path / 'mine.yaml'
    mine.write_text('policy: {ros__parameters: {max_linear_velocity_m_s: 0.1}}')
    limited = described(world=True, config=str(mine))['policy'].parameters
    assert limited['max_linear_velocity_m_s'] == 0.1


def test_nodes_get_shared_memory_for_images_unless_the_user_has_a_profile(monkeypatch):
    for name, _ in PROFILES.values():
        monkeypatch.delenv(name, raising=False)
    (profile,) = middleware_environment().values()
    segment = ElementTree.parse(profile).find('.//{*}segment_size')
    assert int(segment.text) > 2 * 2 * 1920 * 1080 * 3  # two pictures of both cameras
    for name, _ in PROFILES.values():
        with monkeypatch.context() as patch:
            patch.setenv(name, '/my/profile.xml')
            assert middleware_environment() == {}


@pytest.mark.parametrize(('package', 'variable'), [
    ('fastrtps', 'FASTRTPS_DEFAULT_PROFILES_FILE'), ('fastdds', 'FASTDDS_DEFAULT_PROFILES_FILE')])
def test_each_fast_dds_gets_the_variable_that_it_reads(tmp_path, monkeypatch, package, variable):
    for name, _ in PROFILES.values():
        monkeypatch.delenv(name, raising=False)
    (tmp_path / 'share' / package).mkdir(parents=True)
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'/nowhere:{tmp_path}')
    monkeypatch.setattr(processes.sys, 'prefix', '/nowhere')
    assert set(middleware_environment()) == {variable}


def test_both_versions_of_fast_dds_have_the_same_profile():
    """They spell one tag differently, and each refuses the other one's file."""
    texts = {
        version: ' '.join(element.tag + (element.text or '').strip()
                          for element in ElementTree.parse(ROOT / 'config' / name).iter()
                          if isinstance(element.tag, str))
        for version, (_, name) in PROFILES.items()}
    assert texts[2].count('heartbeatPeriod') == 1
    assert texts[3] == texts[2].replace('heartbeatPeriod', 'heartbeat_period')
