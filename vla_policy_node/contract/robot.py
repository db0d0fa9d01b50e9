"""A whole robot contract, and whether its parts belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vla_policy_node.contract.parts import (
    ActionGroup,
    Camera,
    ContractError,
    EndEffectorGroup,
    GripperGroup,
    JointGroup,
    check_name,
    check_unique,
)
from vla_policy_node.contract.state import JOINT_STATE_TYPE, POSE_TYPE, TRANSFORM_TYPE, StateSource

MOST_CAMERAS = 4
# What has a name beside the streams, in messages and options, and what that name means there.
CLOCK = 'clock'
_TAKEN = {CLOCK: 'the time', 'command': 'what moves the robot',
          'actions': 'what a replay compares with', 'twist': 'the same as velocities'}
_TAKEN_BY_CAMERAS = {**_TAKEN, 'state': 'all that is measured'}
_MOST_STATE, _MOST_ACTIONS = 64, 32


@dataclass(frozen=True)
class RobotContract:
    """Everything that tells one robot from another, as far as a policy and its node care.

    cameras: the first one is the reference, whose pictures the others and the state are paired
    with and whose stamps actions are counted from. state: the policy is told the values of all
    sources, one after another. actions: one action of the policy is the groups, one after another.
    Raises ContractError for parts that do not belong together.
    """

    name: str
    cameras: tuple[Camera, ...]
    state: tuple[StateSource, ...]
    actions: tuple[ActionGroup, ...]

    def __post_init__(self) -> None:
        check_name('name', self.name)
        self._check_cameras()
        self._check_state()
        self._check_actions()
        for group in self.actions:
            self._check_group(group)
        heard = [topic.lstrip('/') for topic in self.topics.values()]
        if twice := next((topic for topic in heard if heard.count(topic) > 1), ''):
            raise ContractError(
                f"topics that are listened to has '{twice}' twice; name each topic once, and put "
                'all values of one topic into one source.')
        check_unique('topics of commands', [
            group.topic.lstrip('/') for group in self.actions if group.topic])

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Cameras by name, in order."""
        return tuple(camera.name for camera in self.cameras)

    @property
    def topics(self) -> dict[str, str]:
        """Topic of each camera and each source of the state, by name."""
        parts: tuple[Camera | StateSource, ...] = (*self.cameras, *self.state)
        return {part.name: part.topic for part in parts}

    def with_topics(self, topics: Mapping[str, str]) -> RobotContract:
        """Return the robot with other topics of cameras and sources, by name.

        Those that are not named keep theirs. Raises ContractError for what is no topic.
        """
        def moved(part):
            return replace(part, topic=topics.get(part.name, part.topic))

        return replace(self, cameras=tuple(map(moved, self.cameras)),
                       state=tuple(map(moved, self.state)))

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the numbers of the state, in order."""
        return tuple(value.name for source in self.state for value in source.values)

    @property
    def action_dimension(self) -> int:
        """Numbers of one action."""
        return sum(group.dimension for group in self.actions)

    def action_slices(self) -> dict[str, slice]:
        """Return which numbers of an action belong to each group, by its name."""
        slices, start = {}, 0
        for group in self.actions:
            slices[group.name] = slice(start, start + group.dimension)
            start += group.dimension
        return slices

    def _check_cameras(self) -> None:
        if not 1 <= len(self.cameras) <= MOST_CAMERAS:
            raise ContractError(
                f'cameras has {len(self.cameras)} entries; a robot has 1 to {MOST_CAMERAS}.')
        if not self.cameras[0].required:
            raise ContractError(
                'cameras[0].required is false; the first camera is the one that everything is '
                'paired with, put another one first.')

    def _check_state(self) -> None:
        names = [*self.camera_names, *(source.name for source in self.state)]
        check_unique('cameras and state sources together', names)
        for what, named, taken in (
                ('cameras', self.camera_names, _TAKEN_BY_CAMERAS),
                ('state', [source.name for source in self.state], _TAKEN)):
            for i, name in enumerate(named):
                if name in taken:
                    raise ContractError(
                        f"{what}[{i}].name is '{name}', which stands for {taken[name]} in "
                        'messages and options; take another name.')
        if sum(bool(source.parent) for source in self.state) > 1:
            raise ContractError(
                f'state has several sources of {TRANSFORM_TYPE}; this version reads one pose from '
                'transforms, take the others from topics of their own.')
        check_unique('state', list(self.state_names))
        if len(self.state_names) > _MOST_STATE:
            raise ContractError(
                f'state has {len(self.state_names)} values; {_MOST_STATE} are the most.')

    def _check_actions(self) -> None:
        if not self.actions:
            raise ContractError('actions is empty; name the groups that the policy moves.')
        check_unique('actions', [group.name for group in self.actions])
        if self.action_dimension > _MOST_ACTIONS:
            raise ContractError(
                f'actions has {self.action_dimension} dimensions; {_MOST_ACTIONS} are the most.')
        moved = [joint.name for group in self.actions for joint in _joints(group)]
        check_unique('joints of all action groups', moved)
        carried = [group.part_of for group in self.actions
                   if isinstance(group, GripperGroup) and group.part_of]
        check_unique('grippers as part_of', carried)

    def _check_group(self, group: ActionGroup) -> None:
        where = f'actions.{group.name}'
        sources = {source.name: source for source in self.state}
        if isinstance(group, EndEffectorGroup):
            source = sources.get(group.pose)
            if group.pose and (source is None or not source.is_pose):
                raise ContractError(
                    f"{where}.pose is '{group.pose}'; name a source of the state with the type "
                    f'{POSE_TYPE} or {TRANSFORM_TYPE}, for without the measured pose nothing '
                    "moves; for recordings without poses write ''.")
            if source and source.parent and source.parent != group.frame:
                raise ContractError(
                    f"{where}.frame is '{group.frame}', but the parent of its pose is "
                    f"'{source.parent}'; both must be the frame of the commands.")
        elif isinstance(group, GripperGroup) and group.part_of:
            arm = next((other for other in self.actions if other.name == group.part_of), None)
            if not isinstance(arm, EndEffectorGroup):
                raise ContractError(
                    f"{where}.part_of is '{group.part_of}'; name an end-effector group.")
        measured = {value.joint for source in self.state if source.type == JOINT_STATE_TYPE
                    for value in source.values if value.field == 'position'}
        for joint in _joints(group):
            if joint.name not in measured:
                raise ContractError(
                    f"{where}: no source of the state has the position of the joint "
                    f"'{joint.name}'; add it, for what is not measured is not moved.")


def _joints(group: ActionGroup) -> tuple:
    if isinstance(group, JointGroup):
        return group.joints
    return (group.joint,) if isinstance(group, GripperGroup) and group.joint else ()

