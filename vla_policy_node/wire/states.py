"""Converts serialised robot state messages to numbers."""

import math

import numpy as np

from vla_policy_node.contract.state import POSE_FIELDS, StateSource
from vla_policy_node.control.hold import Hold, HoldError, HoldReason
from vla_policy_node.control.robot_state import POSE, MeasuredPose
from vla_policy_node.control.rotations import (
    axis_angle_to_euler_xyz,
    axis_angle_to_quaternion,
    quaternion_to_axis_angle,
)
from vla_policy_node.wire.cdr import (
    MessageError,
    read_joint_fields,
    read_pose_stamped,
    stamp_of,
)

_SHOWN = 12  # joints in a sentence


def decode_state(raw: bytes, source: StateSource, frame_id: str) -> np.ndarray:
    """Return what the policy is told [N] of a serialised message of a source, any thread.

    Of transforms, the message is the PoseStamped that `transforms` made of them. frame_id: of
    poses. Raises HoldError (INPUT_INVALID) for what is no such measurement.
    """
    if source.is_pose:
        return told_of_pose(decode_pose(raw, frame_id, source.name), source)
    return decode_joints(raw, source)


def decode_pose(raw: bytes, frame_id: str, stream: str = POSE) -> MeasuredPose:
    """Return the pose of a serialised PoseStamped; some 15 microseconds, any thread.

    frame_id: '' for any. Raises HoldError (INPUT_INVALID) if it is not a finite pose with a unit
    quaternion in the frame of the commands: a workspace checked in another one protects nothing.
    """
    try:
        stamp_ns, frame, position_m, quaternion = read_pose_stamped(raw)
    except MessageError as error:
        raise _unusable(stream, str(error)) from error
    if frame_id and frame != frame_id:
        raise _unusable(
            stream,
            f"The end-effector pose is in frame '{frame}', commands are in '{frame_id}'; publish "
            'the pose in that frame or set frame_id.')
    norm = math.hypot(*quaternion)
    if not (all(map(math.isfinite, position_m)) and abs(norm - 1.0) < 0.01):
        raise _unusable(
            stream,
            'The end-effector pose is not finite or its quaternion has not length 1; check the '
            'state publisher.')
    rotation_rad = quaternion_to_axis_angle(np.array(quaternion) / norm)
    return MeasuredPose(stamp_ns, np.array(position_m), rotation_rad, stream)


def told_of_pose(pose: MeasuredPose, source: StateSource) -> np.ndarray:
    """Return what the policy is told [N] of a pose."""
    rotation = pose.rotation_rad
    measured = [*pose.position_m, *rotation, *axis_angle_to_euler_xyz(rotation),
                *axis_angle_to_quaternion(rotation)]
    return _told([measured[POSE_FIELDS.index(value.field)] for value in source.values], source)


def decode_joints(raw: bytes, source: StateSource) -> np.ndarray:
    """Return what the policy is told [N] of a serialised JointState, any thread.

    Raises HoldError (INPUT_INVALID) if a joint of the source is not in it exactly once, if a
    number is not finite, and, for a source without joint names, for any other number of joints.
    """
    try:
        names, fields = read_joint_fields(raw)
    except MessageError as error:
        raise _unusable(source.name, str(error)) from error
    if not source.joints:
        return _told(_by_place(names, fields, source), source)
    places = {name: place for place, name in enumerate(names)}
    for joint in source.joints:
        if names.count(joint) != 1:
            raise _unusable(
                source.name,
                f"The joint '{joint}' is in a message of {source.name} {names.count(joint)} "
                f'times{_there(names)}; name the topic whose messages all have it once.')
    measured = []
    for value in source.values:
        numbers = fields[value.field]
        if len(numbers) != len(names):
            raise _unusable(
                source.name,
                f'A message of {source.name} has {len(names)} names and {len(numbers)} numbers of '
                f'{value.field}; mend the state publisher.')
        measured.append(numbers[places[value.joint]])
    return _told(measured, source)


def decode_positions(
    raw: bytes, stream: str, joints: tuple[str, ...]
) -> tuple[int, tuple[float, ...]]:
    """Return stamp [ns] and position of each joint, as measured, in this order; any thread.

    Raises HoldError (INPUT_INVALID) if one is not in the JointState once, or is not finite.
    """
    try:
        names, fields = read_joint_fields(raw)
        stamp_ns = stamp_of(raw)
    except MessageError as error:
        raise _unusable(stream, str(error)) from error
    positions = fields['position']
    if len(positions) != len(names) or any(names.count(joint) != 1 for joint in joints):
        raise _unusable(
            stream, f'A message of {stream} does not have the position of every joint once; name '
            'the topic whose messages do.')
    places = {name: place for place, name in enumerate(names)}
    found = tuple(positions[places[joint]] for joint in joints)
    if not all(map(math.isfinite, found)):
        raise _unusable(
            stream, f'The joints of {stream} are not finite; check the state publisher.')
    return stamp_ns, found


def _there(names: tuple[str, ...]) -> str:
    shown = ', '.join(repr(name[:40])[1:-1] for name in names[:_SHOWN])
    return f' ({shown}{", ..." if len(names) > _SHOWN else ""})' if names else ''


def _by_place(
    names: tuple[str, ...], fields: dict[str, tuple[float, ...]], source: StateSource
) -> list[float]:
    """Return the numbers of a source without joint names: each field in order, and no more."""
    measured, taken = [], dict.fromkeys(fields, 0)
    for value in source.values:
        numbers = fields[value.field]
        wanted = sum(other.field == value.field for other in source.values)
        if len(numbers) != wanted:
            raise _unusable(
                source.name,
                f'A message of {source.name} has {len(numbers)} numbers of {value.field}'
                f'{_there(names)} where the contract has {wanted} without names; say with '
                '`joint: NAME` which they are, or publish these joints alone.')
        measured.append(numbers[taken[value.field]])
        taken[value.field] += 1
    return measured


def _told(measured: list[float], source: StateSource) -> np.ndarray:
    told = [number if (value.scale, value.offset) == (1.0, 0.0)
            else value.scale * number + value.offset
            for value, number in zip(source.values, measured, strict=True)]
    if not all(map(math.isfinite, told)):
        raise _unusable(
            source.name,
            f'The state of {source.name} is not finite; check the state publisher.')
    return np.array(told)


def _unusable(stream: str, sentence: str) -> HoldError:
    return HoldError(Hold(HoldReason.INPUT_INVALID, stream), sentence)
