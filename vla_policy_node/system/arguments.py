"""The arguments of a whole system, for launch files and `vla bringup` alike.

Nothing here needs ROS.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vla_policy_node.common.contract_files import default_streams
from vla_policy_node.common.ros_names import absolute, checked_namespace
from vla_policy_node.system.files import CLOSE, SystemDescriptionError


@dataclass(frozen=True)
class Argument:
    """One thing to choose per deployment; all else is in the configuration file.

    An empty string means: as the configuration file says.
    """

    name: str
    default: str | bool
    description: str
    choices: tuple[str, ...] = ()


TOPIC = '_topic'  # after the name of a stream
_TWISTS = 'twist_topic'
# Arguments with such a name that mean no stream.
OF_COMMANDS = ('command_topic', _TWISTS)
ARGUMENTS = (
    Argument('config', '', 'Parameter file (YAML); empty: config/bringup.yaml of this package.'),
    Argument('checkpoint', '', 'Checkpoint directory; empty: the one in the parameter file, or '
             'else the shipped small policy, trained on libero_object.'),
    Argument('contract', '', 'The robot: a contract (.yaml, see `vla contract`), or the name of '
             'one that comes with the package. Its values replace those of config/bringup.yaml.'),
    Argument('device', '', "Torch device, for example 'cpu' or 'cuda:0'."),
    Argument('policy', True, 'Start the policy node.'),
    Argument('world', False, 'Start the simulated LIBERO world; never together with a robot.'),
    Argument('guard', 'auto', 'Start the guard, which passes commands on as guarded_command and '
             'stops the robot when there are none. auto: with a robot, that is with neither world '
             'nor bag nor simulated time; with one that is moved by its joints always. A world '
             'obeys the guard if there is one.',
             ('auto', 'true', 'false')),
    Argument('visualizer', True, 'Start the node that draws the selected tokens.'),
    Argument('record', '', 'Record the run into this new folder, a bag for `vla replay`.'),
    Argument('play', '', 'Play this bag through the policy instead of a robot, with /clock; '
             'implies use_sim_time.'),
    Argument('bag_namespace', '', "The robot to play, by its namespace in the bag, '/' for the "
             'one in none; empty: the one of `namespace`, or else the only one.'),
    Argument('trust_bag', False, 'Use the checkpoint and the limits that the played bag names.'),
    Argument('use_sim_time', False, 'Live on /clock; the world, if started, publishes it.'),
    Argument('lock_step', False, 'The world waits for every action: episodes do not depend on '
             'speed. Implies use_sim_time; needs the world, or a bag to play.'),
    Argument('autostart', True, 'Configure and activate the policy at once; otherwise a lifecycle '
             'manager does.'),
    # A contract with other streams has as many others.
    *(Argument(f'{name}{TOPIC}', '', text) for name, text in default_streams().items()),
    Argument('command_topic', '', 'Where commands for an end effector go '
             "(vla_msgs/EndEffectorCommand): those of the guard, or, without one, the policy's. "
             'Joints have the topics of their contract.'),
    Argument('publish_twist', False, 'Also send commands as geometry_msgs/TwistStamped, for '
             'MoveIt Servo; false: as the parameter file says.'),
    Argument(_TWISTS, '', 'Where these go, for example /servo_node/delta_twist_cmds; implies '
             'publish_twist.'),
    Argument('namespace', '', 'Namespace of all nodes, for example r1: all their names begin with '
             'it, so that several systems run side by side.'),
    Argument('respawn', False, 'Start the policy and the visualizer again when they die; the '
             'policy then waits for a goal. The death of another node ends the run.'),
    Argument('enclave', '', 'SROS2: path below which each node has the enclave of its name, for '
             'example /vla; see config/security/policy.xml.'),
    Argument('log_level', 'info', 'Least severe messages to show.',
             ('debug', 'info', 'warn', 'error', 'fatal')),
)


def resolve(given: Mapping[str, str | bool]) -> dict[str, str | bool]:
    """Return every argument: those given, checked, and the defaults of the others.

    NAME_topic may be given for the streams of any contract, see `description.describe`.
    Switches may also be strings ('true', 'false'), as launch hands them over.
    Raises SystemDescriptionError.
    """
    values = {argument.name: argument.default for argument in ARGUMENTS}
    topics = {name: topic for name, topic in given.items()
              if name.endswith(TOPIC) and name not in values}
    if unknown := sorted(given.keys() - values.keys() - topics.keys()):
        raise SystemDescriptionError(
            f'There is no argument {", ".join(unknown)}; there are {", ".join(values)}.')
    for argument in ARGUMENTS:
        if argument.name in given:
            values[argument.name] = _checked(argument, given[argument.name])
    if values['lock_step'] and not (values['world'] or values['play']):
        raise SystemDescriptionError('lock_step needs the world; start it with world:=true.')
    if values['world'] and values['play']:
        raise SystemDescriptionError('A bag is played instead of a world; start one of them.')
    if values['respawn'] and (values['lock_step'] or values['play']):
        raise SystemDescriptionError(
            'respawn is for a robot: in lock-step and with a bag nobody would ask a policy that '
            'begins anew for anything. Leave respawn out.')
    try:
        values['namespace'] = checked_namespace(str(values['namespace']))
    except ValueError as error:
        raise SystemDescriptionError(f'namespace: {error}') from None
    values['publish_twist'] = bool(values['publish_twist'] or values[_TWISTS])
    values['use_sim_time'] = bool(
        values['use_sim_time'] or values['lock_step'] or values['play'])
    values['guard'] = _is_guarded(values)
    return {**values, **topics}


def misspelt(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return a sentence for each name that is nearly one of our arguments.

    names: of arguments that may be anybody's. known: what ours are called besides ARGUMENTS.
    """
    ours = {*(argument.name for argument in ARGUMENTS), *known}
    close = {name: difflib.get_close_matches(name, sorted(ours), 1, CLOSE)
             for name in sorted(set(names) - ours)}
    return [f"The argument {name} is not one of these nodes' and is ignored; did you mean "
            f'{found[0]}?' for name, found in close.items() if found]


def _is_guarded(a: Mapping[str, Any]) -> bool:
    """Return whether the guard runs. Raises SystemDescriptionError."""
    if a['guard'] == 'true' and (a['lock_step'] or a['play']):
        raise SystemDescriptionError(
            'The guard stops a robot whose commands come late; in lock-step and with a bag they '
            'come when they come. Leave guard out.')
    guarded = a['guard'] == 'true' or (
        a['guard'] == 'auto' and a['policy'] and not (a['world'] or a['use_sim_time']))
    for name, taken in zip(OF_COMMANDS, ('command', 'twist_command'), strict=True):
        if guarded and a[name] and taken == absolute(a[name], a['namespace']).removeprefix(
                f"{a['namespace']}/"):
            raise SystemDescriptionError(
                f"The guard reads the policy's commands on '{taken}'; let {name} be another, or "
                'leave the guard out with guard:=false.')
    return guarded


def _checked(argument: Argument, value: str | bool) -> str | bool:
    if isinstance(argument.default, bool) and not isinstance(value, bool):
        switches = {'true': True, 'false': False}
        if value.lower() not in switches:
            raise SystemDescriptionError(f"{argument.name} is '{value}'; write true or false.")
        return switches[value.lower()]
    if argument.choices and value not in argument.choices:
        raise SystemDescriptionError(
            f"{argument.name} is '{value}'; choose one of {', '.join(argument.choices)}.")
    return value
