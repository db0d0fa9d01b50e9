"""Entries of a parsed JSON document, each checked as it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from vla_policy_node.checkpoints.reading import listed, shown

REQUIRED = object()


class Entries:
    """One JSON object. An entry that is not what it must be is a ValueError with one sentence.

    file: what sentences name. place: where in the file this object is, '' for its top. An entry
    that is null counts as one that is not there. default: of an entry that may be left out.
    """

    def __init__(self, document: object, file: str, place: str = ''):
        self._file, self._place = file, place
        if not isinstance(document, Mapping):
            raise ValueError(
                f'{file} must hold an object{f" under {place}" if place else ""}, not '
                f'{shown(document)}; take the file that belongs to the weights.'
            )
        self._document = document

    def __contains__(self, key: str) -> bool:
        return self._document.get(key) is not None

    def names(self) -> list[str]:
        """Names of all entries."""
        return [*self._document]

    def items(self) -> dict[str, object]:
        """All entries, unchecked, in a dictionary of its own."""
        return dict(self._document)

    def only(self, *keys: str) -> None:
        """Refuse entries of any other name."""
        for key in self._document:
            if key not in keys:
                raise ValueError(
                    f'{self._file} has an entry {self.name_of(key)}, which is not known; there '
                    f'may be {listed(keys)}.'
                )

    def value(self, key: str, default: object = REQUIRED) -> object:
        """Whatever it is."""
        if key in self:
            return self._document[key]
        if default is REQUIRED:
            raise ValueError(
                f'{self._file} has no entry {self.name_of(key)!r}; take the file that belongs to '
                'the weights.'
            )
        return default

    def inside(self, key: str, default: object = REQUIRED) -> Entries:
        """The entries of an object in this one."""
        return Entries(self.value(key, default), self._file, self.name_of(key))

    def objects(self, key: str, most: int = 64, default: object = REQUIRED) -> list[Entries]:
        """The entries of each object in a list of at most so many."""
        values = self.value(key, default)
        if not isinstance(values, list) or len(values) > most:
            raise self.error(key, f'a list of at most {most} objects', values)
        return [
            Entries(value, self._file, f'{self.name_of(key)}[{index}]')
            for index, value in enumerate(values)
        ]

    def integer(self, key: str, low: int, high: int, default: object = REQUIRED) -> int:
        """A whole number from low to high."""
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, f'a whole number from {low} to {high}', value)
        return value

    def number(self, key: str, low: float, high: float, default: object = REQUIRED) -> float:
        """A finite number from low to high."""
        value = self.value(key, default)
        if not is_number(value) or not low <= value <= high:
            raise self.error(key, f'a number from {low:g} to {high:g}', value)
        return value

    def flag(self, key: str, default: object = REQUIRED) -> bool:
        """True or false."""
        value = self.value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, 'true or false', value)
        return value

    def word(self, key: str, choices: Sequence[str] = (), default: object = REQUIRED) -> str:
        """A string; one of the choices, if there are any."""
        value = self.value(key, default)
        if not isinstance(value, str) or (choices and value not in choices):
            wanted = f'one of {", ".join(map(repr, choices))}' if choices else 'a string'
            raise self.error(key, wanted, value)
        return value

    def numbers(self, key: str, length: int, low: float, high: float) -> list[float]:
        """A list of so many finite numbers from low to high."""
        values = self.value(key)
        if not isinstance(values, list) or len(values) != length or not all(
            is_number(value) and low <= value <= high for value in values
        ):
            raise self.error(key, f'a list of {length} numbers from {low:g} to {high:g}', values)
        return values

    def error(self, key: str, wanted: str, value: object) -> ValueError:
        """What to raise for an entry that is something else."""
        return ValueError(
            f'{self._file} has {self.name_of(key)} {shown(value)}; it must be {wanted}.'
        )

    def name_of(self, key: str) -> str:
        """Where an entry is in the file."""
        return f'{self._place}.{key}' if self._place else str(key)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a finite number that a float can hold; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return value.bit_length() < 1000 if isinstance(value, int) else math.isfinite(value)
