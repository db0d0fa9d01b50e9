"""Whether a robot has what a policy wants, and where."""

from __future__ import annotations

from dataclasses import replace

from vla_policy_node.contract.parts import ContractError, EndEffectorGroup, GripperGroup
from vla_policy_node.contract.robot import RobotContract
from vla_policy_node.policy.interface import PolicySpec, Quantity

_DELTA = ('dx', 'dy', 'dz', 'drx', 'dry', 'drz')
_ABSOLUTE = ('x', 'y', 'z', 'rx', 'ry', 'rz')


def spec_of(robot: RobotContract) -> PolicySpec:
    """Return what a policy wants that was made for this robot and nothing else."""
    return PolicySpec(
        robot.camera_names,
        tuple(Quantity(value.name, value.unit)
              for source in robot.state for value in source.values),
        tuple(Quantity(name) for name in action_names(robot)))


def kinds_of_policies(robot: RobotContract) -> dict[str, PolicySpec]:
    """Return the usual kinds of policy for a robot, from the one that needs least, by name."""
    whole = spec_of(robot)
    several = len(whole.cameras) > 1
    all_cameras = f'all {len(whole.cameras)} cameras' if several else 'one camera'
    kinds = {
        'one camera, no state (OpenVLA, CogACT)': replace(
            whole, cameras=whole.cameras[:1], state=()),
        f'{all_cameras}, no state': replace(whole, state=()),
        f'{all_cameras} and the state' + (' (OpenVLA-OFT, LightVLA)' if several else ''): whole}
    # Of a robot with one camera, or without state, some are the same: the first name counts.
    return {name: spec for name, spec in kinds.items()
            if spec not in [*kinds.values()][:[*kinds].index(name)]}


def action_names(robot: RobotContract) -> tuple[str, ...]:
    """Return the name of each number of an action; a group's is in front where there are several.

    A gripper alone is 'gripper', whatever its group is called.
    """
    arms = sum(isinstance(group, EndEffectorGroup) for group in robot.actions)
    grippers = sum(isinstance(group, GripperGroup) for group in robot.actions)
    names: list[str] = []
    for group in robot.actions:
        if isinstance(group, EndEffectorGroup):
            numbers = _DELTA if group.kind == 'end_effector_delta' else _ABSOLUTE
            names += [f'{group.name}_{number}' if arms > 1 else number for number in numbers]
        elif isinstance(group, GripperGroup):
            names.append(group.name if grippers > 1 else 'gripper')
        else:
            names += [joint.name for joint in group.joints]
    return tuple(names)


def differences(one: RobotContract, other: RobotContract) -> tuple[str, ...]:
    """Return which of cameras, state and actions mean something else to a policy.

    Topics, limits and whether a camera is required are left out: a robot may be wired anew, and be
    told to move more slowly or to hold more often.
    """
    first, second = _meaning(one), _meaning(other)
    return tuple(part for part in first if first[part] != second[part])


def _meaning(robot: RobotContract) -> dict[str, object]:
    cameras = [(camera.name, camera.transform) for camera in robot.cameras]
    state = [(value, source.type, source.parent, source.child) for source in robot.state
             for value in source.values]
    actions: list[tuple[object, ...]] = []
    for group in robot.actions:
        if isinstance(group, EndEffectorGroup):
            actions.append((group.kind, group.frame, group.rotation_form,
                            group.translation_scale_m, group.rotation_scale_rad))
        elif isinstance(group, GripperGroup):
            actions.append((group.kind, group.open, group.closed, group.open_position,
                            group.closed_position, group.joint and group.joint.name))
        else:
            actions.append((group.kind, [(joint.name, joint.scale) for joint in group.joints]))
    return {'cameras': cameras, 'state': state, 'actions': actions}


def pose_of(robot: RobotContract) -> str:
    """Return the source that measures the end effector, '' where none is moved, or measured."""
    return next((group.pose for group in robot.actions if isinstance(group, EndEffectorGroup)), '')


def state_places(spec: PolicySpec, robot: RobotContract) -> tuple[int, ...]:
    """Return for each number of the policy's state its place in the robot's.

    Raises ContractError for one that the robot does not measure.
    """
    for quantity in spec.state:
        if quantity.name not in robot.state_names:
            raise ContractError(
                f"The policy is told '{quantity.name}', which the contract of {robot.name} does "
                f'not have; it has {", ".join(robot.state_names) or "no state"}.')
    return tuple(robot.state_names.index(quantity.name) for quantity in spec.state)


def check_fits(spec: PolicySpec, robot: RobotContract) -> None:
    """Raise ContractError with one sentence if the robot is not what the policy wants."""
    for camera in spec.cameras:
        if camera not in robot.camera_names:
            raise ContractError(
                f"The policy looks at the camera '{camera}', which the contract of {robot.name} "
                f'does not have; it has {", ".join(robot.camera_names)}.')
    state_places(spec, robot)
    wanted, offered = tuple(quantity.name for quantity in spec.actions), action_names(robot)
    if wanted != offered:
        raise ContractError(
            f'The policy answers with {", ".join(wanted)}; the contract of {robot.name} takes '
            f'{", ".join(offered)}.')
