"""The parts of a robot contract: cameras and action groups. Plain frozen values.

Each checks itself; what belongs together is checked in `robot`. A sentence here begins with the
name of the field that is wrong: whoever reads a file puts the file and the place in front.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vla_policy_node.control.action_spec import ROTATION_FORMS, GripperLatch
from vla_policy_node.control.limits import Limits

CAMERA_TRANSFORMS = ('none', 'rotate_180', 'mirror_horizontal', 'auto')
END_EFFECTOR_KINDS = ('end_effector_delta', 'end_effector_absolute')
JOINT_KINDS = ('joint_position', 'joint_velocity')
JOINT_UNITS = ('rad', 'm')

# A name is a part of parameter names, topics and counters.
_NAME = re.compile(r'[a-z][a-z0-9_]{0,39}')
_TOPIC = re.compile(r'/?[A-Za-z][A-Za-z0-9_]*(/[A-Za-z][A-Za-z0-9_]*)*')
LONGEST = 200  # of a name of somebody else's
# Bounds of a joint beyond these are typing errors: rad or m, and per s and s^2.
_SMALLEST, _LARGEST = 1e-6, 1e4
# A driver that goes on for longer without a command does not stop by itself in time.
_LONGEST_TIMEOUT_S = 1.0


class ContractError(ValueError):
    """A contract that cannot be used; one sentence names file and place and says what to do."""


def check_name(field: str, value: str) -> None:
    """Raise ContractError for what is no name of a camera, a source, a value or a group."""
    if not _NAME.fullmatch(value):
        raise ContractError(
            f"{field} is '{value[:60]}'; a name has small letters, digits and underscores, begins "
            'with a letter and has 40 characters at most.')


def check_topic(field: str, value: str) -> None:
    """Raise ContractError for what ROS takes for no topic."""
    if len(value) > LONGEST or not _TOPIC.fullmatch(value):
        raise ContractError(
            f"{field} is '{value[:60]}'; it must be the name of a topic, for example "
            "'front/image_raw'.")


def check_choice(field: str, value: str, choices: Sequence[str]) -> None:
    """Raise ContractError for a value that is none of the choices."""
    if value not in choices:
        raise ContractError(f"{field} is '{value[:60]}'; use one of {', '.join(choices)}.")


def check_unique(field: str, values: Sequence[str]) -> None:
    """Raise ContractError if a value is there twice."""
    for value in values:
        if values.count(value) > 1:
            raise ContractError(f"{field} has '{value}' twice; give every one a name of its own.")


@dataclass(frozen=True)
class Camera:
    """One camera, under the name of the role that the policy knows it by.

    topic: of sensor_msgs/Image, compressed pictures on '<topic>/compressed'. transform: what turns
    the upright picture into what training saw, 'auto' for what the checkpoint implies. required:
    hold without it even while the policy does not look at it.
    """

    name: str
    topic: str
    transform: str = 'auto'
    required: bool = True

    def __post_init__(self) -> None:
        check_name('name', self.name)
        check_topic('topic', self.topic)
        check_choice('transform', self.transform, CAMERA_TRANSFORMS)


@dataclass(frozen=True)
class Joint:
    """One joint that is commanded, and what bounds it: rad or m, per s, per s^2.

    scale: what an action of 1.0 is in the joint's unit (per s, for velocities).
    max_step: largest change of the commanded position in one control period.
    max_tracking_error: largest difference between the commanded and the measured position; more
    is a hold until the next goal. 0: they are not compared.
    """

    name: str
    unit: str
    min_position: float
    max_position: float
    max_velocity: float
    max_acceleration: float
    max_step: float
    scale: float = 1.0
    max_tracking_error: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= LONGEST:
            raise ContractError('name is empty or endless; give the joint as its driver calls it.')
        check_choice('unit', self.unit, JOINT_UNITS)
        for name in ('min_position', 'max_position'):
            if not abs(getattr(self, name)) <= _LARGEST:
                raise ContractError(
                    f'{name} is {getattr(self, name)}; it must be a finite number within '
                    f'{_LARGEST:g}.')
        if self.min_position >= self.max_position:
            raise ContractError(
                f'min_position is {self.min_position:g}, not below max_position '
                f'{self.max_position:g}; put the smaller one first.')
        for name in ('max_velocity', 'max_acceleration', 'max_step'):
            if not _SMALLEST <= getattr(self, name) <= _LARGEST:
                raise ContractError(
                    f'{name} is {getattr(self, name)}; it must lie between {_SMALLEST:g} and '
                    f'{_LARGEST:g}.')
        if not (math.isfinite(self.scale) and self.scale != 0.0):
            raise ContractError(f'scale is {self.scale}; it must be a number other than zero.')
        if not 0.0 <= self.max_tracking_error <= _LARGEST:
            raise ContractError(
                f'max_tracking_error is {self.max_tracking_error}; it must lie between 0 (not '
                f'compared) and {_LARGEST:g}.')


@dataclass(frozen=True)
class EndEffectorGroup:
    """Six actions that move an end effector: translation or position, then a rotation.

    kind: one of END_EFFECTOR_KINDS. topic: of vla_msgs/EndEffectorCommand. pose: the state source
    that measures it, in the frame `frame`; '' for a recording in which nobody did. scales: metres
    and radians per action unit.
    """

    name: str
    kind: str
    topic: str
    pose: str
    frame: str
    rotation_form: str
    translation_scale_m: float
    rotation_scale_rad: float
    limits: Limits

    def __post_init__(self) -> None:
        check_name('name', self.name)
        check_choice('kind', self.kind, END_EFFECTOR_KINDS)
        check_topic('topic', self.topic)
        if self.pose:
            check_name('pose', self.pose)
        if not 0 < len(self.frame) <= LONGEST:
            raise ContractError('frame is empty or endless; name the frame of the commands.')
        check_choice('rotation_form', self.rotation_form, ROTATION_FORMS)
        for name in ('translation_scale_m', 'rotation_scale_rad'):
            if not _SMALLEST <= getattr(self, name) <= _LARGEST:
                raise ContractError(
                    f'{name} is {getattr(self, name)}; it must lie between {_SMALLEST:g} and '
                    f'{_LARGEST:g}.')

    @property
    def dimension(self) -> int:
        """Numbers of an action that belong to this group."""
        return 6


@dataclass(frozen=True)
class JointGroup:
    """As many actions as there are joints: positions, or velocities. topic: of their commands.

    command_timeout_s: of velocities, after how long without a command the driver or controller
    itself stops these joints. Nothing here measures that: whoever writes it has tried it. A
    velocity lasts until the next one, and nobody sends a stop when the guard itself is killed.
    """

    name: str
    kind: str
    topic: str
    joints: tuple[Joint, ...]
    command_timeout_s: float = 0.0

    def __post_init__(self) -> None:
        check_name('name', self.name)
        check_choice('kind', self.kind, JOINT_KINDS)
        check_topic('topic', self.topic)
        if not self.joints:
            raise ContractError('joints is empty; name the joints in the order of the actions.')
        check_unique('joints', [joint.name for joint in self.joints])
        if self.kind == 'joint_velocity':
            if not 0.0 < self.command_timeout_s <= _LONGEST_TIMEOUT_S:
                raise ContractError(
                    f'command_timeout_s is {self.command_timeout_s:g}; joint_velocity needs a '
                    'driver that stops by itself when commands cease, within '
                    f'{_LONGEST_TIMEOUT_S:g} s: give its time, or use joint_position.')
        elif self.command_timeout_s != 0.0:
            raise ContractError(
                'command_timeout_s is for joint_velocity only; remove it, for positions end by '
                'themselves.')

    @property
    def dimension(self) -> int:
        """Numbers of an action that belong to this group."""
        return len(self.joints)


@dataclass(frozen=True)
class GripperGroup:
    """One action that opens and closes a gripper.

    open, closed: the action values that mean so; the order is the polarity. threshold, dead_band:
    of the opening (0 to 1) at which it is told to open or to close. part_of: the end-effector
    group whose command carries it, '' with a command of its own: then topic, the joint it moves,
    and where that is when the gripper is open and closed.
    """

    name: str
    open: float
    closed: float
    threshold: float = 0.5
    dead_band: float = 0.2
    part_of: str = ''
    topic: str = ''
    joint: Joint | None = None
    open_position: float = 0.0
    closed_position: float = 0.0

    def __post_init__(self) -> None:
        check_name('name', self.name)
        if not math.isfinite(self.open - self.closed) or self.open == self.closed:
            raise ContractError(
                f'open is {self.open} and closed {self.closed}; they must be two different finite '
                'numbers, the action values that mean so.')
        try:
            GripperLatch(self.threshold, self.dead_band)
        except ValueError as error:
            raise ContractError(
                f'threshold is {self.threshold} with dead_band {self.dead_band}; the band must '
                'lie within 0 to 1.') from error
        if bool(self.part_of) == bool(self.topic):
            raise ContractError(
                'part_of or topic: name the end-effector group whose command carries the gripper, '
                'or the topic of its own commands, not both.')
        if bool(self.topic) != (self.joint is not None):
            raise ContractError(
                'joint is needed with a topic, and only then; say which joint the gripper moves '
                'and what bounds it.')
        if self.topic:
            check_topic('topic', self.topic)
        self._check_positions()

    def _check_positions(self) -> None:
        ends = self.open_position, self.closed_position
        if self.joint is None:
            if ends != (0.0, 0.0):
                raise ContractError(
                    'open_position and closed_position need a joint; remove them, or give the '
                    'gripper a topic and a joint.')
            return
        low, high = self.joint.min_position, self.joint.max_position
        if not all(low <= end <= high for end in ends) or ends[0] == ends[1]:
            raise ContractError(
                f'open_position is {ends[0]} and closed_position {ends[1]}; they must be two '
                f'different positions of the joint, within {low:g} to {high:g}.')

    @property
    def kind(self) -> str:
        """The word for it in a contract."""
        return 'gripper'

    @property
    def dimension(self) -> int:
        """Numbers of an action that belong to this group."""
        return 1


ActionGroup = EndEffectorGroup | JointGroup | GripperGroup
