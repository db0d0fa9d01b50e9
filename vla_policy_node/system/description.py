"""Describes the whole system in one place: which nodes run, with which parameters and topics.

The launch files and `vla bringup` only render what `describe` returns, so that both start the
same thing. Nothing here needs ROS.

    nodes = describe({'world': True, 'device': 'cuda:0'})
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_policy_node.common.gl import gl_problem
from vla_policy_node.common.ros_names import absolute
from vla_policy_node.system.arguments import OF_COMMANDS, TOPIC, resolve
from vla_policy_node.system.files import (
    NODES,
    PACKAGE,
    SystemDescriptionError,
    comes_with_package,
    default_checkpoint,
    default_config,
    read_config,
)
from vla_policy_node.system.recorded import (
    checkpoint_to_follow,
    followed,
    read_recorded,
    robot_file,
)

# Nodes that something else starts than a switch of their name.
_SWITCHES = {'recorder': 'record', 'player': 'play'}

# What may come up again by itself: it moves nothing until somebody sends a goal. Not the guard,
# for it would go on with a goal that nobody has confirmed since, nor those that cannot go on where
# they were: the world, the recorder and the player.
_RESPAWNING = ('policy', 'visualizer')
# Outputs of the policy -> outputs of the guard, which are then the robot's, and their arguments.
_GUARDED = {'command': 'guarded_command', 'twist_command': 'guarded_twist_command'}
_COMPRESSED = '/compressed'
# Parameters of the policy that are the guard's, too: as the files have them, whatever becomes of
# the policy's own at run time.
_SHARED = ('control_rate_hz', 'max_step_translation_m', 'max_step_rotation_rad', 'publish_twist')


@dataclass(frozen=True)
class NodeSpec:
    """One node to start.

    executable: console script of the package; `module` is the same for `python -m`.
    parameters: all of them, the configuration file's with the arguments' on top.
    remappings: name in the node -> topic.
    enclave: of SROS2; empty: none. namespace: '/r1', '' for none. respawns: whether it is started
    again when it dies; else its death ends the run.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    remappings: Mapping[str, str] = field(default_factory=dict)
    log_level: str = 'info'
    enclave: str = ''
    namespace: str = ''
    respawns: bool = False
    package: str = PACKAGE

    @property
    def ends_the_run(self) -> bool:
        """Whether the others have nothing more to do when this one has ended well."""
        return self.name == 'player'

    @property
    def executable(self) -> str:
        """Name of the console script."""
        return f'{self.name}_node'

    @property
    def module(self) -> str:
        """Python module that runs the node."""
        return f'{self.package}.nodes.{self.executable}'

    def name_of(self, topic: str) -> str:
        """Return what a topic of this node's is called in the graph."""
        return absolute(self.remappings.get(topic, topic), self.namespace)

    def full_arguments(self) -> list[str]:
        """Return what follows `--ros-args`."""
        namespace = ['-r', f'__ns:={self.namespace}'] if self.namespace else []
        return ['-r', f'__node:={self.name}', *namespace, *self.ros_arguments()]

    def ros_arguments(self) -> list[str]:
        """Return what follows `--ros-args`, without the node's name and namespace.

        Parameters are passed one by one: between a file's `policy:` and a wildcard, ROS
        distributions disagree about which of the two wins.
        """
        arguments = []
        for name, value in self.parameters.items():
            arguments += ['-p', f'{name}:={json.dumps(value)}']
        for name, topic in self.remappings.items():
            arguments += ['-r', f'{name}:={topic}']
        if self.enclave:
            arguments += ['--enclave', self.enclave]
        # Loggers are called as nodes are, with dots for slashes.
        logger = f'{self.namespace}/{self.name}'.lstrip('/').replace('/', '.')
        return [*arguments, '--log-level', f'{logger}:={self.log_level}']


def describe(
    arguments: Mapping[str, str | bool] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[NodeSpec, ...]:
    """Return the nodes to start, in order.

    arguments: by name, see ARGUMENTS, and NAME_topic for any stream of the contract.
    overrides: node -> parameter -> value, on top of everything.
    Creates the default checkpoint if it is to be used and does not exist yet.
    Raises SystemDescriptionError if something cannot be, UntrustedBagError if a bag to play names
    a checkpoint that nobody else did.
    """
    a: dict[str, Any] = resolve(arguments or {})
    if a['world'] and (problem := gl_problem(os.environ)):
        raise SystemDescriptionError(problem)
    parameters = read_config(a['config'] or default_config(), a['namespace'], fitting=True)
    if a['world'] and not a['config']:
        for name, values in read_config(default_config().with_name('libero_world.yaml')).items():
            parameters[name].update(values)
    parameters['policy'] = _of_policy(a, parameters['policy'])
    if _is_moved_by_joints(parameters['policy']):
        if a['publish_twist']:
            raise SystemDescriptionError(
                'publish_twist and twist_topic are for an end effector; joints have the topics of '
                'their contract.')
        if a['policy'] and (arguments or {}).get('guard', 'auto') == 'auto':
            a['guard'] = True  # nobody else knows the topics of the controllers
    for name, value in _from_arguments(a, parameters['policy']).items():
        parameters[name].update(value)
    for name, value in (overrides or {}).items():
        parameters[name].update(value)
    remappings = _stream_remappings(a, str(parameters['policy'].get('contract') or ''))
    commands = _command_remappings(a)
    return tuple(
        NodeSpec(name, parameters[name], remappings | commands.get(name, {}), a['log_level'],
                 f"{a['enclave'].rstrip('/')}/{name}" if a['enclave'] else '', a['namespace'],
                 bool(a['respawn']) and name in _RESPAWNING)
        for name in NODES if a[_SWITCHES.get(name, name)]
    )


def topic_arguments(arguments: Mapping[str, str | bool]) -> frozenset[str]:
    """Return the arguments NAME_topic of the robot that these arguments choose, or a bag has.

    Raises SystemDescriptionError.
    """
    from vla_policy_node.contract import ContractError, find_contract
    from vla_policy_node.system.robot import read_robot

    a: dict[str, Any] = resolve(arguments)
    policy = read_config(a['config'] or default_config(), a['namespace'])['policy']
    try:
        robot = find_contract(str(a['contract'] or policy.get('contract') or ''))
        recorded = read_robot(Path(a['play'])) if a['play'] else None
    except ContractError as error:
        raise SystemDescriptionError(str(error)) from error
    streams = {*robot.topics, *(recorded.topics if recorded else ())}
    return frozenset(f'{stream}{TOPIC}' for stream in streams)


def _stream_remappings(a: Mapping[str, Any], contract: str) -> dict[str, str]:
    """Return the remappings that send the streams of the robot to the topics that were given."""
    given = {name.removesuffix(TOPIC): topic for name, topic in a.items()
             if topic and name.endswith(TOPIC) and name not in OF_COMMANDS}
    if not given:
        return {}
    from vla_policy_node.contract import find_contract

    robot = find_contract(contract)
    suffixes = {name: ('', _COMPRESSED) for name in robot.camera_names}
    suffixes |= {source.name: ('', '_static') for source in robot.state if source.parent}
    remappings = {}
    for stream, topic in given.items():
        if stream not in robot.topics:
            raise SystemDescriptionError(
                f'There is no argument {stream}{TOPIC} for {robot.name}; its streams are '
                f'{", ".join(robot.topics)}.')
        if stream in robot.camera_names:
            topic = str(topic).removesuffix(_COMPRESSED)
        for suffix in suffixes.get(stream, ('',)):
            remappings[f'{robot.topics[stream]}{suffix}'] = f'{topic}{suffix}'
    return remappings


def _command_remappings(a: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return the remappings of each node that make commands reach who is to obey them."""
    given = {output: a[name] for output, name in zip(_GUARDED, OF_COMMANDS, strict=True)
             if a[name]}
    if not a['guard']:
        return dict.fromkeys(NODES, given) if given else {}
    remappings = {'world': {'command': given.get('command', _GUARDED['command'])}}
    if given:
        remappings['guard'] = {_GUARDED[output]: topic for output, topic in given.items()}
    return remappings


def _is_moved_by_joints(policy: Mapping[str, Any]) -> bool:
    from vla_policy_node.contract import find_contract
    from vla_policy_node.contract.joints import is_moved_by_joints

    return is_moved_by_joints(find_contract(str(policy.get('contract') or '')))


def _of_policy(a: Mapping[str, Any], configured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the policy under its contract, with what a played bag may say."""
    from vla_policy_node.contract import find_contract
    from vla_policy_node.contract.joints import is_moved_by_joints
    from vla_policy_node.system.robot import with_contract

    bag = Path(a['play']) if a['play'] and not a['config'] else None
    contract = str(a['contract'] or configured.get('contract') or '')
    try:
        recorded = read_recorded(bag) if bag else None
        if bag:
            contract = _of_bag(a, bag, contract, recorded)
        if (a['play'] or a['world']) and is_moved_by_joints(robot := find_contract(contract)):
            raise ValueError(
                f'The contract of {robot.name} moves joints; the world and a bag that is played '
                'only go with one end effector.')
        if a['world'] and any(source.parent for source in find_contract(contract).state):
            raise ValueError(
                'The world publishes poses and no transforms; name a contract whose pose is of '
                'the type geometry_msgs/msg/PoseStamped.')
        parameters = with_contract(configured, contract, bool(a['config']))
        if bag is None or recorded is None:
            return parameters
        parameters = followed(recorded, parameters, live=not a['trust_bag'])
    except ValueError as error:
        raise SystemDescriptionError(str(error)) from error
    if a['policy'] and not a['checkpoint'] and not configured.get('checkpoint'):
        parameters['checkpoint'] = checkpoint_to_follow(
            bag, recorded.get('checkpoint'), recorded.get('methods'), comes_with_package,
            bool(a['trust_bag']), 'trust_bag:=true (--trust-bag)')
    return parameters


def _of_bag(
    a: Mapping[str, Any], bag: Path, contract: str, recorded: Mapping[str, Any] | None
) -> str:
    """Return the contract for a bag that is played. Raises ValueError for one of another robot.

    The bag's own is used only if the bag is trusted: a robot may hear what comes of its limits.
    """
    from vla_policy_node.system.robot import contract_to_follow, read_robot

    file = str(robot_file(bag))
    found, remark = contract_to_follow(
        contract, read_robot(bag), file, (recorded or {}).get('contract'))
    if remark:
        raise ValueError(f"{remark[:-1]}; name the contract of the bag's robot.")
    if found != contract and not a['trust_bag']:
        raise ValueError(
            f"The bag was recorded with a contract of its own, '{file}'; look at it and name it "
            'with contract, or allow it with trust_bag:=true (--trust-bag).')
    return found


def _from_arguments(a: Mapping[str, Any], policy: Mapping[str, Any]) -> dict[str, dict]:
    """Return the parameters of each node that the arguments decide."""
    if a['publish_twist']:
        policy = {**policy, 'publish_twist': True}
    sim_time = a['use_sim_time']
    contract = {'contract': policy['contract']} if policy.get('contract') else {}
    result = {
        'world': {'use_sim_time': False, 'publish_clock': sim_time, 'lock_step': a['lock_step']},
        'policy': {'use_sim_time': sim_time, 'autostart': a['autostart'],
                   **({'publish_twist': True} if a['publish_twist'] else {})},
        'guard': {'use_sim_time': sim_time, **contract, **{
            name: policy[name] for name in _SHARED if name in policy}},
        'visualizer': {'use_sim_time': sim_time, **contract},
        'recorder': {'use_sim_time': sim_time, 'output': a['record'],
                     'compressed': policy.get('compressed', False), **contract},
        'player': {'bag': a['play'], 'lock_step': a['lock_step'],
                   'bag_namespace': a['bag_namespace'],
                   'compressed': policy.get('compressed', False), **contract},
    }
    if a['policy']:
        checkpoint = a['checkpoint'] or policy.get('checkpoint') or default_checkpoint()
        result['policy']['checkpoint'] = str(checkpoint)
    if a['device']:
        result['policy']['device'] = a['device']
    if a['lock_step']:
        result['policy']['pacing'] = 'observation'
    if a['play']:
        result['policy']['max_tracking_error_m'] = 0.0  # commands do not move a recorded arm
        result['visualizer']['compressed'] = policy.get('compressed', False)
    return result
