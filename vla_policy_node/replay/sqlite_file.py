"""Reader of rosbag2's SQLite files with bounds on everything that a file can claim."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path

from vla_policy_node.replay.storage import (
    MOST_MESSAGE_BYTES,
    MOST_TOPICS,
    BoundsError,
    StorageError,
    Stored,
    Topic,
    checked_name,
    kind_as,
    regular_size,
)

# Steps of SQLite's virtual machine per statement: about twenty per row, and no row is smaller
# than ten bytes. A file whose pages form a cycle would never end.
_ALWAYS_STEPS, _STEPS_PER_BYTE = 20_000_000, 10
STEPS_BETWEEN_LOOKS = 10_000
# Computed columns can make a small file large; rosbag2 has none.
_COMPUTED = re.compile(r'generated|virtual|\bas\s*\(', re.IGNORECASE)


class SqliteFile:
    """A .db3 file as a `storage.Storage`."""

    def __init__(self, path: Path):
        self.topics: dict[str, Topic] = {}
        self._names: dict[int, str] = {}
        _refuse_unfinished(path)
        self._most_steps = most_steps(regular_size(path))
        self._steps = 0
        self._connection = sqlite3.connect(
            f'{path.resolve().as_uri()}?mode=ro&immutable=1', uri=True)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _open(self) -> None:
        self._connection.text_factory = lambda data: data.decode('utf-8', 'replace')
        self._connection.set_progress_handler(self._step, STEPS_BETWEEN_LOOKS)
        for pragma in ('trusted_schema=OFF', 'cell_size_check=ON', 'temp_store=FILE'):
            self._connection.execute(f'PRAGMA {pragma}')
        self._steps = 0
        check_tables(self._connection)
        for number, name, kind, encoding in self._rows(
                'SELECT id, name, type, serialization_format FROM topics LIMIT ?',
                MOST_TOPICS + 1):
            if len(self._names) == MOST_TOPICS:
                raise BoundsError(f'it has more than {MOST_TOPICS} topics')
            name, kind = checked_name(str(name), 'topic'), checked_name(str(kind), 'message type')
            kind = kind_as(kind, str(encoding))
            self._names[number] = name
            self.topics.setdefault(name, Topic(kind)).also(kind)
        self._count()

    def _count(self) -> None:
        spans = []
        for number, count, first_ns, last_ns, largest in self._rows(
                'SELECT topic_id, count(*), min(timestamp), max(timestamp), max(length(data)) '
                'FROM messages GROUP BY topic_id'):
            if isinstance(largest, int) and largest > MOST_MESSAGE_BYTES:
                raise BoundsError(f'a message has {largest} bytes')
            if number in self._names:
                self.topics[self._names[number]].count += count
            spans += [time_ns for time_ns in (first_ns, last_ns) if isinstance(time_ns, int)]
        self.start_ns, self.end_ns = (min(spans), max(spans)) if spans else (0, 0)

    def messages(self, topics: Collection[str]) -> Iterator[Stored]:
        """As `storage.Storage`."""
        numbers = [number for number, name in self._names.items() if name in topics]
        places = ','.join('?' * len(numbers))
        self._steps = 0
        cursor = self._connection.execute(
            f'SELECT topic_id, timestamp, data FROM messages WHERE topic_id IN ({places}) '
            'ORDER BY timestamp, rowid', numbers)
        for number, time_ns, data in cursor:
            if not (isinstance(time_ns, int) and isinstance(data, bytes)):
                raise StorageError('a message is not stored as time and bytes')
            yield self._names[number], time_ns, data

    def _rows(self, statement: str, *values: object) -> list[tuple]:
        self._steps = 0
        return self._connection.execute(statement, values).fetchall()

    def _step(self) -> bool:
        """Say whether to stop (called by SQLite within a statement)."""
        self._steps += STEPS_BETWEEN_LOOKS
        return self._steps > self._most_steps


def _refuse_unfinished(path: Path) -> None:
    """Refuse a file beside which changes wait that SQLite has not made yet."""
    for ending in ('-wal', '-journal'):
        beside = path.with_name(f'{path.name}{ending}')
        if beside.exists() and regular_size(beside):
            raise StorageError(f'{beside.name} says that its recorder did not end in order')


def most_steps(size: int) -> int:
    """Return how many steps a statement may take in a file of this size."""
    return _ALWAYS_STEPS + _STEPS_PER_BYTE * size


def check_tables(connection: sqlite3.Connection) -> None:
    """Refuse a database that is no recording, or whose tables compute their contents."""
    found = connection.execute('SELECT type, name, sql FROM sqlite_master LIMIT 100').fetchall()
    tables = {name: str(sql) for kind, name, sql in found if kind == 'table'}
    if not {'topics', 'messages'} <= tables.keys():
        raise StorageError('it has no tables of topics and messages')
    if any(kind not in ('table', 'index') for kind, _, _ in found) or any(
            map(_COMPUTED.search, tables.values())):
        raise BoundsError('its tables are computed')
