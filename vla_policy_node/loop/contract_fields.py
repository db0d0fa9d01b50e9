"""How a robot's contract shapes the parameters: fields for its cameras, and values it sets.

The contract describes the robot. Parameters may narrow its limits, but may only repeat its units,
frames and scales. If no contract is named, parameters override the default one, because a
parameter file may describe another robot of the same shape.
"""

from __future__ import annotations

import copy
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from typing import Any

from vla_policy_node.contract import ContractError, RobotContract
from vla_policy_node.contract.joints import is_moved_by_joints
from vla_policy_node.contract.parts import CAMERA_TRANSFORMS, EndEffectorGroup, GripperGroup
from vla_policy_node.control.limits import Limits
from vla_policy_node.loop.parameter_fields import check_values, parameter

_COMMAND = 'command'
_MEANING = ('frame_id', 'rotation_form', 'translation_scale_m', 'rotation_scale_rad',
            'gripper_open', 'gripper_closed')
_LIMITS = tuple(field.name for field in fields(Limits))
_WORKSPACE = ('workspace_min_m', 'workspace_max_m')
# Parameters that mean nothing for a robot that is moved by its joints: it does not have them.
_OF_END_EFFECTORS = frozenset({
    *_MEANING, *_LIMITS, 'gripper_threshold', 'gripper_dead_band', 'max_tracking_error_m',
    'tracking_gain', 'publish_twist', 'shadow_every'})


def transform_name(camera: str) -> str:
    """Return the parameter that turns a camera's pictures."""
    return f'{camera}_transform'


def reference_name(camera: str) -> str:
    """Return the parameter with a picture of what a camera must show."""
    return f'{camera}_reference'


def for_robot(
    robot: RobotContract, contract: str, transforms_after: str, reference_after: str
) -> Any:
    """Return a class decorator that adds the fields of a robot's cameras; goes below `dataclass`.

    contract: as the parameter of that name says it. transforms_after, reference_after: fields
    that the added ones follow, as in a parameter file.
    """
    def decorate(cls: Any) -> Any:
        template = _copied({name: value for name, value in vars(cls).items()
                            if name not in ('__dict__', '__weakref__')})
        cls.robot, cls.contract_name = robot, contract
        cls.as_written = template, transforms_after, reference_after
        _add_fields(cls, robot, transforms_after, reference_after)
        return cls

    return decorate


@cache
def same_for(cls: Any, robot: RobotContract, contract: str) -> Any:
    """Return a class made with `for_robot` for another robot. Raises ContractError."""
    if contract == cls.contract_name:
        return cls
    template, *places = cls.as_written
    body = _copied(template)
    values = values_of(robot)
    if missing := missing_fields(robot):
        body['__annotations__'] = {
            name: kind for name, kind in body['__annotations__'].items() if name not in missing}
        # No parameters, but who asks gets an answer.
        body |= {name: _value(body[name]) for name in missing} | {'frame_id': ''}
    for name, value in {**values, 'contract': contract}.items():
        if name not in body:  # of a camera; added below
            continue
        body[name].default, body[name].default_factory = _default(value)
    made = dataclass(frozen=True)(
        for_robot(robot, contract, *places)(type(cls.__name__, cls.__bases__, body)))
    try:
        check_values(made, values)
    except ValueError as error:
        raise ContractError(f'The contract of {robot.name} cannot be used: {error}') from error
    return made


def check_agreement(robot: RobotContract, parameters: Any) -> None:
    """Raise ValueError for parameters that contradict a contract, or are looser."""
    values = values_of(robot)
    free = set(_LIMITS) | {'gripper_threshold', 'gripper_dead_band'}
    for name, value in values.items():
        if name not in free and value != 'auto' and getattr(parameters, name) != value:
            raise ValueError(
                f'{name} is {getattr(parameters, name)}, but {value} in the contract of '
                f'{robot.name}; remove it from the parameters, or change the contract.')
    if is_moved_by_joints(robot):
        return
    looser = [name for name in _LIMITS if name not in _WORKSPACE
              and getattr(parameters, name) > values[name]]
    if any(values['workspace_min_m']) or any(values['workspace_max_m']):
        pairs = zip(parameters.workspace_min_m, values['workspace_min_m'], strict=True)
        if not parameters.has_workspace or any(given < least for given, least in pairs):
            looser.append('workspace_min_m')
        pairs = zip(parameters.workspace_max_m, values['workspace_max_m'], strict=True)
        if any(given > most for given, most in pairs):
            looser.append('workspace_max_m')
    elif parameters.has_workspace:  # the contract's is a box round where each goal begins
        looser.append('workspace_min_m')
    if looser:
        raise ValueError(
            f'{looser[0]} is {getattr(parameters, looser[0])}, looser than '
            f'{values[looser[0]]} in the contract of {robot.name}; parameters may only be '
            'tighter.')


def check_moved(robot: RobotContract) -> None:
    """Raise ContractError for a robot that the control loop cannot move whole, or at all."""
    if is_moved_by_joints(robot):
        return
    arm, _ = end_effector_parts(robot)
    if not arm.pose:
        raise ContractError(
            f'actions.{arm.name}.pose is empty in the contract of {robot.name}, so that only '
            '`vla replay` can use it: name the source of the state that measures the end '
            'effector, for without the measured pose nothing moves.')


def end_effector_parts(robot: RobotContract) -> tuple[EndEffectorGroup, GripperGroup]:
    """Return the end effector and the gripper of a robot that is not moved by its joints.

    Raises ContractError for every other robot: nothing is moved half.
    """
    if len(robot.actions) == 2:
        arm, gripper = robot.actions
        if (isinstance(arm, EndEffectorGroup) and arm.kind == 'end_effector_delta'
                and isinstance(gripper, GripperGroup) and gripper.part_of == arm.name):
            if arm.topic.lstrip('/') != _COMMAND:
                raise ContractError(
                    f"actions.{arm.name}.topic is '{arm.topic}' in the contract of {robot.name}; "
                    f"write '{_COMMAND}', and choose another topic with command_topic at launch.")
            return arm, gripper
    groups = ', '.join(f'{group.name}: {group.kind}' for group in robot.actions)
    raise ContractError(
        f'The contract of {robot.name} moves {groups}; this version moves one end effector by '
        'displacements (end_effector_delta), followed by the gripper that is part of it, or any '
        'number of joint groups and grippers with joints of their own.')


def missing_fields(robot: RobotContract) -> frozenset[str]:
    """Return the parameters of the default robot that another one does not have."""
    return _OF_END_EFFECTORS if is_moved_by_joints(robot) else frozenset()


def values_of(robot: RobotContract) -> dict[str, Any]:
    """Return the parameters that a contract decides, by name. Raises ContractError."""
    transforms = {transform_name(camera.name): camera.transform for camera in robot.cameras}
    if is_moved_by_joints(robot):
        return transforms
    arm, gripper = end_effector_parts(robot)
    limits = {name: getattr(arm.limits, name) for name in _LIMITS}
    limits |= {name: list(limits[name]) for name in _WORKSPACE}
    return {
        **dict(zip(_MEANING, (
            arm.frame, arm.rotation_form, arm.translation_scale_m, arm.rotation_scale_rad,
            gripper.open, gripper.closed), strict=True)),
        'gripper_threshold': gripper.threshold, 'gripper_dead_band': gripper.dead_band, **limits,
        **transforms}


def _copied(namespace: dict[str, Any]) -> dict[str, Any]:
    # `dataclass` writes into the fields that it finds.
    return {name: copy.copy(value) if isinstance(value, Field) else value
            for name, value in namespace.items()}


def _value(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else tuple(field.default_factory())


def _default(value: Any) -> tuple[Any, Any]:
    field = parameter(value, '')
    return field.default, field.default_factory


def _add_fields(
    cls: Any, robot: RobotContract, transforms_after: str, reference_after: str
) -> None:
    first = robot.cameras[0].name
    annotations = {}
    for name, kind in cls.__annotations__.items():
        annotations[name] = kind
        if name == transforms_after:
            for camera in robot.cameras:
                annotations[transform_name(camera.name)] = 'str'
                setattr(cls, transform_name(camera.name), parameter(
                    camera.transform, 'What turns the upright picture into what training saw; '
                    'auto: what config.json or the public name of the checkpoint says, else none.',
                    choices=CAMERA_TRANSFORMS))
        if name == reference_after:
            annotations[reference_name(first)] = 'str'
            setattr(cls, reference_name(first), parameter(
                '', f'Picture file (jpeg or png) with the view that the camera {first} must have; '
                'empty: any.'))
    cls.__annotations__ = annotations
