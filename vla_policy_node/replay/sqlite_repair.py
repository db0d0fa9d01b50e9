"""Copies the intact part of rosbag2's SQLite files, including message definitions."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from vla_policy_node.replay.sqlite_file import STEPS_BETWEEN_LOOKS, check_tables, most_steps
from vla_policy_node.replay.storage import (
    MOST_MESSAGE_BYTES,
    MOST_TOPICS,
    BoundsError,
    checked_name,
    most_unpacked,
    regular_size,
    unpacked_message,
)

_TABLES = '''
CREATE TABLE schema(schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL);
CREATE TABLE metadata(
  id INTEGER PRIMARY KEY, metadata_version INTEGER NOT NULL, metadata TEXT NOT NULL);
CREATE TABLE topics(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL,
  serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL,
  type_description_hash TEXT NOT NULL);
CREATE TABLE message_definitions(
  id INTEGER PRIMARY KEY, topic_type TEXT NOT NULL, encoding TEXT NOT NULL,
  encoded_message_definition TEXT NOT NULL, type_description_hash TEXT NOT NULL);
CREATE TABLE messages(
  id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL,
  data BLOB NOT NULL);
CREATE INDEX timestamp_idx ON messages (timestamp ASC);
INSERT INTO schema VALUES (4, 'unknown');
'''
_TOPIC_COLUMNS = ('id', 'name', 'type', 'serialization_format', 'offered_qos_profiles',
                  'type_description_hash')
_DEFINITION_COLUMNS = ('topic_type', 'encoding', 'encoded_message_definition',
                       'type_description_hash')
# So many rows one after the other are looked for; then ever more are skipped.
_MOST_SINGLE_STEPS = 1000
_LATEST_NS = 2**63
_MOST_DEFINITION_BYTES = 64 * 2**20  # of all of them
_JOURNALS = ('-wal', '-journal')


class SqliteCopy:
    """A new database that takes what is whole of others.

    topics: name -> type, format, profile, hash and number of messages so far. A context manager:
    what is written is there once it has ended.
    """

    def __init__(self, path: Path):
        self._connection = sqlite3.connect(path)
        self._connection.executescript(_TABLES)
        self.topics: dict[tuple[str, str, str], list] = {}
        self.start_ns, self.end_ns = _LATEST_NS, 0

    def __enter__(self) -> SqliteCopy:
        return self

    def __exit__(self, *exception) -> None:
        if exception[0] is None:
            self._connection.commit()
        self._connection.close()

    def take(self, file: Path) -> None:
        """Copy one file. What was not written to the end is made up for in a copy of it."""
        with ExitStack() as stack:
            journals = [journal for ending in _JOURNALS if (
                journal := file.with_name(f'{file.name}{ending}')).is_file()]
            options = 'mode=ro&immutable=1'
            if any(regular_size(journal) for journal in journals):
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                for part in (file, *journals):
                    shutil.copyfile(part, folder / part.name)
                file, options = folder / file.name, 'mode=rw'
            source = stack.enter_context(closing(sqlite3.connect(
                f'{file.resolve().as_uri()}?{options}', uri=True)))
            self._take(source, regular_size(file))

    def _take(self, source: sqlite3.Connection, size: int) -> None:
        source.text_factory = lambda data: data.decode('utf-8', 'replace')
        steps = _Steps(source, size)
        # writable_schema lets SQLite open a file whose end is missing.
        for pragma in ('trusted_schema=OFF', 'cell_size_check=ON', 'writable_schema=ON'):
            source.execute(f'PRAGMA {pragma}')
        steps.begin()
        check_tables(source)
        with suppress(sqlite3.DatabaseError):  # recorders before Iron wrote none
            for row in _columns(source, 'message_definitions', _DEFINITION_COLUMNS):
                self._connection.execute(
                    'INSERT INTO message_definitions (topic_type, encoding, '
                    'encoded_message_definition, type_description_hash) SELECT ?, ?, ?, ? '
                    'WHERE NOT EXISTS (SELECT 1 FROM message_definitions WHERE topic_type = ? '
                    'AND encoded_message_definition = ?)', (*row, row[0], row[2]))
        numbers = {}
        for number, name, kind, encoding, *rest in _columns(source, 'topics', _TOPIC_COLUMNS):
            key = checked_name(name, 'topic'), checked_name(kind, 'message type'), encoding
            if key not in self.topics:
                self.topics[key] = [len(self.topics) + 1, 0, *rest]
                self._connection.execute('INSERT INTO topics VALUES (?, ?, ?, ?, ?, ?)',
                                         (self.topics[key][0], *key, *rest))
            numbers[int(number)] = self.topics[key]
        left = most_unpacked(size)
        for number, time_ns, data in _messages(source, steps):
            usable = (number in numbers and isinstance(time_ns, int)
                      and 0 <= time_ns < _LATEST_NS and isinstance(data, bytes))
            if not usable or (data := unpacked_message(data)) is None:
                continue
            left -= len(data)
            if left < 0:
                return
            topic = numbers[number]
            self._connection.execute(
                'INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)',
                (topic[0], time_ns, data))
            topic[1] += 1
            self.start_ns, self.end_ns = min(self.start_ns, time_ns), max(self.end_ns, time_ns)


class _Steps:
    """Ends statements that would never end: in a damaged file pages may form a circle."""

    def __init__(self, connection: sqlite3.Connection, size: int):
        self._most, self._done = most_steps(size), 0
        connection.set_progress_handler(self._step, STEPS_BETWEEN_LOOKS)

    def begin(self) -> None:
        """Count a statement from here."""
        self._done = 0

    def _step(self) -> bool:
        self._done += STEPS_BETWEEN_LOOKS
        return self._done > self._most


def _columns(source: sqlite3.Connection, table: str, names: tuple[str, ...]) -> list[list]:
    """Return some columns of a table as text, '' for those that an older version lacks."""
    there = {row[1] for row in source.execute(f'PRAGMA table_info({table})')}
    chosen = ', '.join(name if name in there else "''" for name in names)
    rows, left = [], _MOST_DEFINITION_BYTES
    for row in source.execute(f'SELECT {chosen} FROM {table} WHERE length({names[2]}) < ?',
                              (_MOST_DEFINITION_BYTES,)):
        rows.append([value if isinstance(value, int) else str(value) for value in row])
        left -= sum(map(len, map(str, rows[-1])))
        if len(rows) > MOST_TOPICS or left < 0:
            raise BoundsError(f'its {table} are more than any recording needs')
    return rows


def _messages(source: sqlite3.Connection, steps: _Steps) -> Iterator[tuple]:
    """Yield topic, time and message of every row that can be read, in the order of writing."""
    last, skip = -2**63, 0
    while True:
        try:
            steps.begin()
            for row, *message in source.execute(
                    'SELECT rowid, topic_id, timestamp, data FROM messages WHERE rowid > ? AND '
                    'length(data) <= ? ORDER BY rowid', (last, MOST_MESSAGE_BYTES)):
                if row <= last:
                    return  # the pages form a circle
                last, skip = row, 0
                steps.begin()
                yield tuple(message)
            return
        except sqlite3.DatabaseError:
            skip += 1
            last = max(last, 0) + (1 if skip < _MOST_SINGLE_STEPS else
                                   2 ** (skip - _MOST_SINGLE_STEPS))
            if last >= 2**62:
                return
