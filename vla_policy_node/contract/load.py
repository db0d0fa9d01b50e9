"""Reading a robot contract: plain YAML of bounded size, and one sentence for what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from vla_policy_node.common.plain_yaml import parse_plain_yaml, read_plain_yaml
from vla_policy_node.contract.parts import (
    END_EFFECTOR_KINDS,
    JOINT_KINDS,
    ActionGroup,
    Camera,
    ContractError,
    EndEffectorGroup,
    GripperGroup,
    Joint,
    JointGroup,
    check_choice,
)
from vla_policy_node.contract.robot import RobotContract
from vla_policy_node.contract.state import StateSource, StateValue
from vla_policy_node.control.limits import Limits

FORMAT = 1
MOST_BYTES = 64 * 2**10
_MOST_ENTRIES = 64  # of a list
_WORDS = {str: 'a text', bool: 'true or false', float: 'a number', dict: 'a section',
          list: 'a list'}


def load_contract(path: Path | str) -> RobotContract:
    """Return the contract in a file.

    Raises ContractError with one sentence that names the file, the place in it and what to do.
    """
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:  # of a user that nobody knows
        raise ContractError(f"'{path}' cannot be found: {error}") from error
    return _named(f"'{path}'", lambda: _contract(read_plain_yaml(path, MOST_BYTES)))


def parse_contract(text: str, name: str = 'The contract') -> RobotContract:
    """Return the contract in a text, which messages call by a name. Raises as `load_contract`."""
    if len(text) > MOST_BYTES:
        raise ContractError(f'{name} has more than {MOST_BYTES} characters, which none needs.')
    return _named(name, lambda: _contract(parse_plain_yaml(text, name)))


def _named(name: str, read: Callable[[], RobotContract]) -> RobotContract:
    try:
        return read()
    except ContractError as error:
        raise ContractError(f'{name}: {error}') from error
    except ValueError as error:  # of the YAML; it names the file itself
        raise ContractError(str(error)) from error


def to_plain(robot: RobotContract) -> dict[str, object]:
    """Return the mapping that a file would have; `parse_contract` of it gives the robot again."""
    return {
        'format': FORMAT, 'name': robot.name,
        'cameras': [_plain(camera) for camera in robot.cameras],
        'state': [_plain(source) for source in robot.state],
        'actions': [
            {**_plain(group), 'kind': group.kind} for group in robot.actions],
    }


def to_yaml(robot: RobotContract) -> str:
    """Return the text of a file without comments; `parse_contract` of it gives the robot again."""
    return yaml.safe_dump(to_plain(robot), sort_keys=False)


def _plain(part: Any) -> dict[str, object]:
    """Return a part without what has its default."""
    plain = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if field.default is not MISSING and value == field.default:
            continue
        if hasattr(value, '__dataclass_fields__'):
            value = _plain(value)
        elif isinstance(value, tuple):
            value = [_plain(v) if hasattr(v, '__dataclass_fields__') else v for v in value]
        plain[field.name] = value
    return plain


def _contract(document: object) -> RobotContract:
    section = _Section(document, '')
    section.refuse_unknown({'format', 'name', 'cameras', 'state', 'actions'})
    found = section.get('format', float)
    if found != FORMAT:
        raise ContractError(f'format is {found:g}; this version reads format {FORMAT}.')
    return RobotContract(
        name=section.get('name', str),
        cameras=tuple(part.make(Camera) for part in section.parts('cameras')),
        state=tuple(_state_source(part) for part in section.parts('state')),
        actions=tuple(_group(part) for part in section.parts('actions')),
    )


def _state_source(section: _Section) -> StateSource:
    values = section.parts('values') if 'values' in section.values else []
    return section.make(StateSource, values=tuple(part.make(StateValue) for part in values))


def _group(section: _Section) -> ActionGroup:
    kind = section.get('kind', str)
    with section:
        check_choice('kind', kind, (*END_EFFECTOR_KINDS, *JOINT_KINDS, 'gripper'))
    if kind in END_EFFECTOR_KINDS:
        return section.make(EndEffectorGroup, limits=section.part('limits').make(Limits))
    if kind in JOINT_KINDS:
        joints = tuple(part.make(Joint) for part in section.parts('joints'))
        return section.make(JointGroup, joints=joints)
    joint = section.part('joint').make(Joint) if 'joint' in section.values else None
    return section.make(GripperGroup, ('kind',), joint=joint)


class _Section:
    """One mapping of the file and its place; as a context it puts the place before a sentence."""

    def __init__(self, values: object, place: str):
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise ContractError(f'{place or "the file"} must be a section of names and values.')
        self.values: dict[str, Any] = values
        self._place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, ValueError):
            raise ContractError(self._at(str(error))) from error

    def get(self, name: str, kind: type) -> Any:
        """Return a value of this kind; whole numbers are numbers, and true and false are none."""
        if name not in self.values:
            raise ContractError(f'{self._at(name)} is missing; it must be {_WORDS[kind]}.')
        value = self.values[name]
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise ContractError(
                f'{self._at(name)} is {str(value)[:60]!r}; it must be {_WORDS[kind]}.')
        number: Any = value
        try:
            return float(number) if kind is float else number
        except OverflowError:
            raise ContractError(f'{self._at(name)} is too large; take a smaller number.') from None

    def part(self, name: str) -> _Section:
        """Return a section inside this one."""
        return _Section(self.get(name, dict), self._at(name))

    def parts(self, name: str) -> list[_Section]:
        """Return the sections of a list."""
        entries = self.get(name, list)
        if len(entries) > _MOST_ENTRIES:
            raise ContractError(
                f'{self._at(name)} has {len(entries)} entries; {_MOST_ENTRIES} are the most.')
        return [_Section(entry, f'{self._at(name)}[{i}]') for i, entry in enumerate(entries)]

    def make(self, cls: type, others: tuple[str, ...] = (), **made: object) -> Any:
        """Return a part from the values of its fields; `made`: those that are sections.

        others: names that may be there and are no field.
        """
        known = {field.name: field for field in fields(cls)}
        self.refuse_unknown({*known, *others})
        kinds = get_type_hints(cls)
        for name, field in known.items():
            if name in made or (name not in self.values and field.default is not MISSING):
                continue
            if kinds[name] in _WORDS:
                made[name] = self.get(name, kinds[name])
            else:
                made[name] = self._numbers(name)
        with self:
            return cls(**made)

    def refuse_unknown(self, known: set[str]) -> None:
        """Raise ContractError for a name that means nothing here."""
        for name in self.values:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f'did you mean {close[0]}?' if close else (
                    f'remove it; {", ".join(sorted(known))} are known.')
                raise ContractError(f'{self._at(name[:60])} is not known here; {hint}')

    def _numbers(self, name: str) -> tuple[float, ...]:
        values = self.get(name, list)
        if len(values) > _MOST_ENTRIES:
            raise ContractError(
                f'{self._at(name)} has {len(values)} entries; {_MOST_ENTRIES} are the most.')
        return tuple(_Section({name: value}, self._place).get(name, float) for value in values)

    def _at(self, name: str) -> str:
        return f'{self._place}.{name}' if self._place else name
