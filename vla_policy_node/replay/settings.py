"""Settings of a replay: each policy's parameters, from a file, the command line or the bag."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vla_policy_node.contract import RobotContract, find_contract, parse_contract
from vla_policy_node.contract.joints import is_moved_by_joints
from vla_policy_node.contract.parts import EndEffectorGroup
from vla_policy_node.evaluation.contenders import parse_contender
from vla_policy_node.loop.contract_fields import transform_name
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.finding import find_picture, find_topic
from vla_policy_node.replay.gate import GateLimits
from vla_policy_node.replay.robots import find_namespace, placed, records_in
from vla_policy_node.replay.stamps import HEADER
from vla_policy_node.replay.topics import INFO, POLICY_INFO, decode
from vla_policy_node.system.files import (
    comes_with_package,
    default_checkpoint,
    default_config,
    read_config,
)
from vla_policy_node.system.recorded import (
    UntrustedBagError,
    checked,
    checkpoint_to_follow,
    followed,
    read_recorded,
    robot_file,
)
from vla_policy_node.system.robot import contract_to_follow, read_robot, with_contract

COMMAND = 'vla replay'  # whose files a report is
# The inference takes as long as in the bag.
AS_RECORDED = -1


@dataclass(frozen=True)
class ReplaySettings:
    """The options of `vla replay`, the same for every bag; can be sent to workers.

    config, against: a parameter file, or methods as `vla eval` writes them; '' for the methods
        that the bag was recorded with, and for no comparison.
    checkpoint, device, statistics_key: '' for those of the parameters.
    instruction: '' for those of the bag.
    topics: stream -> topic. actions_topic: of the actions to compare with, '' for '/command'.
    latency_periods: control periods that an inference takes, or AS_RECORDED.
    threads: of torch. video, rerun, mcap: what to write beside the report.
    trust_bag: use the checkpoint that a bag names, whichever it is.
    stamps: 'header', or 'log' for the times of recording.
    contract: of the robot, '' for what the parameter file or else the bag says. bag_namespace: of
    the robot in the bag, '' if there is only one.
    """

    config: str = ''
    against: str = ''
    checkpoint: str = ''
    device: str = ''
    instruction: str = ''
    topics: Mapping[str, str] = field(default_factory=dict)
    actions_topic: str = ''
    latency_periods: int = AS_RECORDED
    threads: int = 1
    video: bool = True
    rerun: bool = False
    mcap: bool = False
    limits: GateLimits = field(default_factory=GateLimits)
    trust_bag: bool = False
    stamps: str = HEADER
    contract: str = ''
    statistics_key: str = ''
    bag_namespace: str = ''


def read_info(bag: Bag, namespace: str = '') -> Any | None:
    """Return the last self-description of the policy that was recorded, if there is one.

    namespace: of the robot, as the user chose it. Raises BagError as `find_namespace`.
    """
    info = None
    told = records_in(bag, find_namespace(bag, namespace))
    for topic, _, raw in bag.messages([
            topic for topic, record in told.items()
            if record == INFO and bag.types.get(topic) == POLICY_INFO]):
        info = decode(raw, POLICY_INFO, topic)
    return info


def parameters_of(
    choice: str, settings: ReplaySettings, bag: Bag, info: Any | None
) -> tuple[PolicyParameters, list[str]]:
    """Return the parameters that `choice` (config or against) means for a bag, and remarks.

    Raises ValueError for a choice that cannot be used, UntrustedBagError for a checkpoint that
    nobody but the bag named.
    """
    notes: list[str] = []
    is_file = choice.endswith(('.yaml', '.yml'))
    values = read_config(choice if is_file else default_config())['policy']
    recorded = None if is_file else read_recorded(bag.path)
    contract = settings.contract or str(values.get('contract') or '')
    contract, remark = contract_to_follow(
        contract, *_robot(bag, info), (recorded or {}).get('contract'))
    notes += [remark] if remark else []
    if is_moved_by_joints(robot := find_contract(contract)):
        raise BagError(
            f'The contract of {robot.name} moves joints; only recordings of one end effector can '
            'be replayed.')
    values = with_contract(values, contract, is_file)
    if not is_file:
        values = _recorded(bag, info, recorded, values, notes)
    if choice and not is_file:
        contender = parse_contender(choice)
        values['methods'] = list(contender.methods) or ['dense']
        values['method_settings'] = [f'{method}.{name}={value}'
                                     for method, chosen in contender.settings.items()
                                     for name, value in chosen.items()] or ['']
    if not is_file and not settings.checkpoint:
        named = values['checkpoint']
        values['checkpoint'] = checkpoint_to_follow(
            bag.path, named, values.get('methods'), comes_with_package,
            settings.trust_bag, '--trust-bag')
        if named and not values['checkpoint']:
            notes.append(f"The checkpoint '{named}' of the recording is not here; the default "
                         'one is used.')
    values |= {name: value for name, value in (
        ('checkpoint', settings.checkpoint), ('device', settings.device),
        ('statistics_key', settings.statistics_key)) if value}
    parameters = PolicyParameters.from_values(values)
    if not parameters.checkpoint:
        parameters = replace(parameters, checkpoint=str(default_checkpoint()))
    return parameters, notes


def as_recorded(
    robot: RobotContract, bag: Bag, info: Any | None, is_named: bool
) -> RobotContract:
    """Return the robot with the topics that its streams have in the bag, where the bag says so.

    is_named: the user named its contract, whose topics come first where the bag has them.
    """
    found, _ = _robot(bag, info)
    told = found.topics if found else {}
    kept = {stream for stream, topic in robot.topics.items() if is_named and (
        find_topic(bag.types, topic) or find_picture(bag.types, topic))}
    return robot.with_topics({k: topic for k, topic in told.items() if k not in kept})


def robot_of(bag: Bag, contract: str, namespace: str = '') -> tuple[RobotContract, str]:
    """Return the robot of a bag with its topics and its frame there, and its namespace.

    contract: as the user named it, '' for what the bag says, or else the default one. namespace:
    as the user chose it. Raises ValueError.
    """
    info = read_info(bag, namespace)
    name, _ = contract_to_follow(contract, *_robot(bag, info), None)
    robot = as_recorded(find_contract(name), bag, info, bool(contract))
    told = (read_recorded(bag.path) or {}).get('frame_id') or (info and info.action.frame_id)
    if told and not contract:
        robot = replace(robot, actions=tuple(
            replace(group, frame=str(told)) if isinstance(group, EndEffectorGroup) else group
            for group in robot.actions))
    namespace = find_namespace(bag, namespace, robot)
    return placed(bag, robot, namespace), namespace


def _robot(bag: Bag, info: Any | None) -> tuple[RobotContract | None, str]:
    """Return the contract that a bag holds, and the parameter that means it; None if it has none.

    Raises ContractError.
    """
    if found := read_robot(bag.path):
        return found, str(robot_file(bag.path))
    if info is None or not info.contract:
        return None, ''
    return parse_contract(info.contract, f"The contract in {INFO} of '{bag.path}'"), info.contract


def _recorded(
    bag: Bag, info: Any | None, recorded: dict[str, object] | None, values: dict[str, Any],
    notes: list[str],
) -> dict[str, object]:
    """Return the parameters that the bag was recorded with, as far as they are known.

    recorded: of its policy.yaml. values: those under its contract, for what is not known.
    """
    if recorded is not None:
        return followed(recorded, values, live=False) | {
            'checkpoint': recorded.get('checkpoint', '')}
    if info is None:
        notes.append('The bag holds neither policy.yaml nor policy_info: the parameters are '
                     'those of config/bringup.yaml.')
        return values
    notes.append('The bag holds no policy.yaml: pairing and limits are those of '
                 'config/bringup.yaml, the rest is as policy_info says.')
    action = info.action
    cameras = info.cameras or find_contract(str(values.get('contract', ''))).camera_names
    if not 0.0 < info.control_period_s < math.inf:
        raise BagError(f"{INFO} of the bag '{bag.path}' has no control period.")
    told = checked({
        'methods': list(info.methods) or ['dense'],
        'method_settings': list(info.method_settings) or [''], 'dtype': info.dtype,
        'statistics_key': info.statistics_key, 'execution_mode': info.execution_mode,
        **{transform_name(camera): transform for camera, transform in zip(
            cameras, info.camera_transforms, strict=False)},
        # Older recordings lack this.
        'optimisation': info.optimisation or values['optimisation'],
        'preprocessing': info.preprocessing or values['preprocessing'],
        'control_rate_hz': 1.0 / info.control_period_s, 'frame_id': action.frame_id,
        'rotation_form': action.rotation_form,
        'translation_scale_m': action.translation_scale_m,
        'rotation_scale_rad': action.rotation_scale_rad, 'gripper_open': action.gripper_open,
        'gripper_closed': action.gripper_closed,
    }, f'{INFO} of {bag.path}')
    return followed(told, values, live=False) | {'checkpoint': info.checkpoint}


def untrusted(bags: Sequence[Path], settings: ReplaySettings) -> list[UntrustedBagError]:
    """Return the question to ask before the bags are replayed, '' for none."""
    found = []
    choices = [settings.config, *([settings.against] if settings.against else [])]
    for path in bags:
        try:
            with Bag(path) as bag:
                info = read_info(bag, settings.bag_namespace)
                for choice in choices:
                    parameters_of(choice, settings, bag, info)
        except UntrustedBagError as error:
            found.append(error)
        except ValueError:
            continue  # the replay says so
    return found
