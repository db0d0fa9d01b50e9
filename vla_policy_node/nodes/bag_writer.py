"""Writes a bag without blocking its callers: a queue, a thread, and a count of what was lost."""

import logging
import queue
import threading
from collections import Counter
from pathlib import Path

from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.rosbag2.errors import WriterError

from vla_policy_node.wire.definitions import MessageDefinitions

STORAGES = {'mcap': StoragePlugin.MCAP, 'sqlite3': StoragePlugin.SQLITE3}
# mcap compresses whole chunks, sqlite3 each message.
_MODES = {'mcap': CompressionMode.STORAGE, 'sqlite3': CompressionMode.MESSAGE}
_BAG_VERSION = 8  # the newest that Jazzy reads


class RecordingError(ValueError):
    """A bag that cannot be written; one sentence says why."""


class BagWriter:
    """A rosbag2 recording that never makes its callers wait.

    Messages that arrive while `queue_mb` wait for the disk are dropped and counted. After a write
    fails (a full disk), all further messages count as lost and `problem` says why; what was
    written can be repaired.

    Raises RecordingError if the folder exists or cannot be made.
    """

    def __init__(self, path: Path, storage: str, compress: bool, queue_mb: int,
                 logger: logging.Logger | None = None):
        self.path = path
        self._logger = logger or logging.getLogger(__name__)
        self._definitions = MessageDefinitions()
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._limit_bytes = queue_mb * 2**20
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self.written: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.problem = ''
        try:
            self._writer = Writer(path, version=_BAG_VERSION, storage_plugin=STORAGES[storage])
            if compress:
                self._writer.set_compression(_MODES[storage], CompressionFormat.ZSTD)
            self._writer.open()
        except WriterError:
            raise RecordingError(
                f"'{path}' exists; name a new folder for the recording.") from None
        except OSError as error:
            raise RecordingError(
                f"The recording '{path}' cannot be made: {error.strerror}.") from error
        self._connections = {}
        self._thread = threading.Thread(target=self._run, name='bag_writer', daemon=True)
        self._thread.start()

    def add(self, topic: str, type_name: str, time_ns: int, raw: bytes) -> None:
        """Queue one serialised message (the recorder's thread)."""
        with self._lock:
            if self.problem or self._waiting_bytes + len(raw) > self._limit_bytes:
                self.dropped[topic] += 1
                return
            self._waiting_bytes += len(raw)
        self._queue.put((topic, type_name, time_ns, raw))

    def close(self) -> None:
        """Write the queue and finish the bag (the recorder's thread)."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while (item := self._queue.get()) is not None:
                self._write(*item)
            self._writer.close()
        except Exception as error:  # no failure here may affect the robot
            reason = getattr(error, 'strerror', None) or str(error)
            with self._lock:
                self.problem = (
                    f"Recording to '{self.path}' ended: {str(reason).rstrip('.')}; "
                    f'`vla record --repair {self.path}` saves what was written.')
            self._logger.error(self.problem)
            self._writer.abort()

    def _write(self, topic: str, type_name: str, time_ns: int, raw: bytes) -> None:
        connection = self._connections.get(topic)
        if connection is None:
            connection = self._connections[topic] = self._writer.add_connection(
                topic, type_name, typestore=self._definitions.learn(type_name))
        self._writer.write(connection, time_ns, raw)
        with self._lock:
            self._waiting_bytes -= len(raw)
            self.written[topic] += 1
