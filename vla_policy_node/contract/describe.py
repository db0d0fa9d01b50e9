"""A contract as tables for a person to compare with the robot."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from vla_policy_node.contract.parts import ActionGroup, EndEffectorGroup, GripperGroup
from vla_policy_node.contract.robot import RobotContract


def describe(robot: RobotContract) -> Iterator[Table]:
    """Yield a table of the cameras, of the state and of the actions."""
    cameras = Table('camera', 'topic', 'transform', 'required', title=f'{robot.name}: cameras')
    for camera in robot.cameras:
        cameras.add_row(camera.name, camera.topic, camera.transform,
                        'yes' if camera.required else 'if looked at')
    yield cameras
    state = Table('#', 'name', 'unit', 'topic', 'field', 'times, plus',
                  title='State, in the order in which the policy is told it')
    places = iter(range(len(robot.state_names)))
    for source in robot.state:
        topic = source.topic + (
            f': {source.child} in {source.parent}' if source.parent else '')
        for value in source.values:
            field = f'{value.joint}.{value.field}' if value.joint else value.field
            scaled = (value.scale, value.offset) != (1.0, 0.0)
            state.add_row(str(next(places)), value.name, value.unit, topic, field,
                          f'{value.scale:g}, {value.offset:g}' if scaled else '')
    yield state
    actions = Table('#', 'group', 'kind', 'topic', 'what it means and what bounds it',
                    title='One action of the policy')
    slices = robot.action_slices()
    for group in robot.actions:
        place = slices[group.name]
        numbers = str(place.start) if group.dimension == 1 else f'{place.start}-{place.stop - 1}'
        topic = group.topic
        if isinstance(group, GripperGroup) and group.part_of:
            topic = f'in that of {group.part_of}'
        actions.add_row(numbers, group.name, group.kind, topic, '\n'.join(_meaning(group)))
    yield actions


def _meaning(group: ActionGroup) -> list[str]:
    if isinstance(group, EndEffectorGroup):
        limits = group.limits
        return [
            f'frame {group.frame}, measured by {group.pose or "nobody"}, rotation '
            f'{group.rotation_form}',
            f'1.0 is {group.translation_scale_m:g} m, {group.rotation_scale_rad:g} rad',
            f'at most {limits.max_step_translation_m:g} m and {limits.max_step_rotation_rad:g} '
            'rad a period,',
            f'{limits.max_linear_velocity_m_s:g} m/s, {limits.max_angular_velocity_rad_s:g} '
            f'rad/s, {limits.max_linear_acceleration_m_s2:g} m/s^2, '
            f'{limits.max_angular_acceleration_rad_s2:g} rad/s^2',
        ]
    if isinstance(group, GripperGroup):
        lines = [f'open {group.open:g}, closed {group.closed:g}']
        if group.joint is not None:
            lines.append(f'{group.joint.name}: open at {group.open_position:g}, closed at '
                         f'{group.closed_position:g} {group.joint.unit}')
        return lines
    lines = [f'{joint.name}: {joint.min_position:g} to {joint.max_position:g} {joint.unit}, at '
             f'most {joint.max_velocity:g}/s, {joint.max_acceleration:g}/s^2, {joint.max_step:g} '
             'a period' for joint in group.joints]
    if group.command_timeout_s:
        lines.append(f'its driver must stop {group.command_timeout_s:g} s after the last command')
    return lines
