"""What a robot was told in each row of a dataset, in the numbers of its contract's actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_policy_node.contract import RobotContract
from vla_policy_node.contract.joints import is_moved_by_joints, joint_spec
from vla_policy_node.contract.parts import EndEffectorGroup, GripperGroup
from vla_policy_node.contract.state import JOINT_STATE_TYPE
from vla_policy_node.control.hold import HoldError
from vla_policy_node.control.joint_spec import MovedJoint
from vla_policy_node.control.rotations import axis_angle_to_euler_xyz
from vla_policy_node.replay.actions import Actions
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.row_times import Nearest, RowTimes
from vla_policy_node.replay.topics import decode
from vla_policy_node.wire.build import to_ns
from vla_policy_node.wire.states import decode_positions

JOINT_COMMAND = 'vla_msgs/msg/JointCommand'
# Commands are sent once a period; this far from it, of a period, none belongs to a row.
_NEAR = 0.75


def check_actions(robot: RobotContract, measured: bool) -> None:
    """Raise BagError for a robot whose actions no bag tells."""
    if measured and not is_moved_by_joints(robot):
        raise BagError(f'--measured takes joint positions as actions, and {robot.name} is moved '
                       'by its end effector; name the topic of its commands with --actions-topic.')
    if is_moved_by_joints(robot):
        if measured and any(joint.by_velocity for joint in joint_spec(robot).joints):
            raise BagError(f'--measured takes joint positions as actions, and {robot.name} is '
                           'moved by velocities; name the topic of its commands with '
                           '--actions-topic.')
        return
    arms = [group for group in robot.actions if isinstance(group, EndEffectorGroup)]
    others = [group for group in robot.actions if not isinstance(group, EndEffectorGroup)]
    is_one = len(arms) == 1 and all(
        isinstance(group, GripperGroup) and group.part_of for group in others) and len(others) < 2
    if not is_one or arms[0].kind != 'end_effector_delta':
        raise BagError(f'The actions of {robot.name} are not those of joints, nor motions of one '
                       'end effector with its gripper; a dataset is written of these.')


def joint_topic(bag: Bag, wanted: str) -> str:
    """Return the topic of what joints were told. Raises BagError."""
    kinds = (JOINT_COMMAND, JOINT_STATE_TYPE)
    found = [wanted] if wanted else [
        topic for topic, kind in bag.types.items() if kind == JOINT_COMMAND
        and not topic.endswith('/guarded_command')]
    if len(found) == 1 and bag.types.get(found[0]) in kinds:
        return found[0]
    states = sorted(topic for topic, kind in bag.types.items() if kind in kinds)
    problem = f"has nothing of the type {' or '.join(kinds)} on '{wanted}'" if wanted else (
        'does not say what its joints were told')
    raise BagError(f"The bag '{bag.path}' {problem}; name a topic with --actions-topic "
                   f'({", ".join(states) or "there is none"}), or take what was measured a row '
                   'later with --measured.')


def joint_actions(bag: Bag, topic: str, robot: RobotContract, grid: RowTimes, period_ns: int,
                  by_log: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the actions [N, A] and for which rows there are any."""
    joints = joint_spec(robot).joints
    names = tuple(joint.name for joint in joints)
    nearest, kind = Nearest(grid, len(names)), bag.types[topic]
    for _, time_ns, raw in bag.messages([topic]):
        if kind == JOINT_COMMAND:
            told = _told(decode(raw, kind, topic), names)
            if told is None:
                continue
        else:
            try:
                told = decode_positions(raw, topic, names)
            except HoldError as error:
                raise BagError(f"The bag '{bag.path}': {error}") from error
        stamp_ns, positions = told
        nearest.put(time_ns if by_log else stamp_ns, action_of(positions, joints))
    return nearest.values, nearest.near(round(_NEAR * period_ns))


def action_of(values: Any, joints: tuple[MovedJoint, ...]) -> np.ndarray:
    """Return the action that means positions or velocities of joints."""
    action = []
    for value, joint in zip(values, joints, strict=True):
        if joint.gripper is None:
            action.append(value / joint.scale)
            continue
        g = joint.gripper
        share = (value - g.closed_position) / (g.open_position - g.closed_position)
        action.append(g.closed + min(1.0, max(0.0, share)) * (g.open - g.closed))
    return np.array(action)


def motion_actions(
    actions: Actions, robot: RobotContract, grid: RowTimes, period_ns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the actions [N, 6 or 7] of one end effector, and for which rows there are any."""
    arm = next(group for group in robot.actions if isinstance(group, EndEffectorGroup))
    gripper = next((group for group in robot.actions if isinstance(group, GripperGroup)), None)
    index, near = actions.at(grid.times_ns + period_ns, round(_NEAR * period_ns))
    delta = actions.delta[index] if len(actions.delta) else np.zeros((len(grid), 6))
    rotation = delta[:, 3:]
    if arm.rotation_form == 'euler_xyz':
        rotation = np.array([axis_angle_to_euler_xyz(turn) for turn in rotation]).reshape(-1, 3)
    columns = [delta[:, :3] / arm.translation_scale_m, rotation / arm.rotation_scale_rad]
    if gripper:
        opening = actions.gripper[index] if len(actions.gripper) else np.full(len(grid), np.nan)
        columns.append((gripper.closed + opening * (gripper.open - gripper.closed))[:, None])
    return np.concatenate(columns, axis=1), near


def filled(values: np.ndarray, near: np.ndarray, robot: RobotContract) -> np.ndarray:
    """Return [N, A] where rows without a command stand still: positions and grippers stay.

    NaN before the first command.
    """
    rows = np.arange(len(values))
    known = near & np.isfinite(values).all(1)
    last = np.maximum.accumulate(np.where(known, rows, -1))
    still = np.where((last >= 0)[:, None], values[np.maximum(last, 0)], np.nan)
    slices = robot.action_slices()
    for group in robot.actions:
        if isinstance(group, EndEffectorGroup) or getattr(group, 'kind', '') == 'joint_velocity':
            columns = still[:, slices[group.name]]
            still[:, slices[group.name]] = np.where(np.isnan(columns), columns, 0.0)
    return np.where(known[:, None], values, still)


def _told(message: Any, names: tuple[str, ...]) -> tuple[int, tuple[float, ...]] | None:
    if message.hold or len(message.names) != len(message.values):
        return None
    values: Mapping[str, float] = dict(zip(message.names, message.values, strict=True))
    if not all(name in values and np.isfinite(values[name]) for name in names):
        return None
    return to_ns(message.header.stamp), tuple(float(values[name]) for name in names)
