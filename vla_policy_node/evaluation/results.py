"""Stores finished episodes next to the result, so that an interrupted evaluation can resume.

`FILE.partial.jsonl` beside `FILE` holds the identity of the evaluation in its first line, then one
row per method and episode. It is removed once FILE is written.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from vla_policy_node.outputs.files import write_text
from vla_policy_node.outputs.folder import claim_file, seal

COMMAND = 'vla eval'
Key = tuple[str, int, int]  # method, task, episode


def key_of(row: Mapping) -> Key:
    """Return the method and episode of a row."""
    return row['method'], row['task_id'], row['episode']


class Results:
    """Rows by episode and method, kept in a file where there is one.

    path: FILE, None to keep rows in memory only. identity: what rows must share, as JSON. by: the
    command. Raises ValueError if the side file belongs to another evaluation or was not written
    by us.
    """

    def __init__(self, path: Path | None, identity: Mapping, by: str = COMMAND):
        self._by = by
        self._side = path and side_file(path)
        self._rows: dict[Key, dict] = {}
        if self._side is None:
            return
        claim_file(self._side, by)
        header = json.dumps(identity, sort_keys=True)
        lines = self._complete_lines()
        if lines:
            self._check(json.loads(lines[0]), json.loads(header))
            self._rows = {key_of(row): row for row in map(json.loads, lines[1:])}
        # Rewritten rather than appended to: the last line may be incomplete.
        write_text(self._side, ''.join(f'{line}\n' for line in (header, *lines[1:])))

    def add(self, rows: Sequence[Mapping]) -> None:
        """Store the rows of finished episodes."""
        for row in rows:
            self._rows[key_of(row)] = dict(row)
        if self._side is not None:
            with self._side.open('a', encoding='utf-8') as file:
                file.write(''.join(f'{json.dumps(row)}\n' for row in rows))

    def __contains__(self, key: Key) -> bool:
        """Whether the episode is done."""
        return key in self._rows

    def rows(self, keys: Collection[Key]) -> list[dict]:
        """Return those rows of `keys` that are done, by method, task and episode."""
        return [self._rows[key] for key in sorted(self._rows.keys() & set(keys))]

    def discard_side_file(self) -> None:
        """Remove the side file: the result is written."""
        if self._side is not None:
            self._side.unlink(missing_ok=True)
            seal(self._side.parent, self._by, [self._side.name])

    def _complete_lines(self) -> list[str]:
        if self._side is None or not self._side.is_file():
            return []
        return self._side.read_text(encoding='utf-8').split('\n')[:-1]

    def _check(self, found: Mapping, wanted: Mapping) -> None:
        different = sorted(
            name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        if different:
            raise ValueError(
                f"'{self._side}' holds episodes of an evaluation with other "
                f'{", ".join(different)}; delete it or write to another file.')


def side_file(path: Path) -> Path:
    """Return the path of the side file."""
    return path.with_name(f'{path.name}.partial.jsonl')
