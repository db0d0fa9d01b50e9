"""Keeps the emergency stop over the end of the process: a file that exists while it is latched.

Whatever is in the file, and whatever keeps it from being looked at, means latched: a write that
broke off, a full disk or somebody else's file cannot free a robot.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from vla_policy_node.control.session import Session

_MOST_BYTES = 200


def default_directory() -> Path:
    """Return where the state of programs is kept. Raises OSError if the user has no home."""
    given = Path(os.environ.get('XDG_STATE_HOME', ''))
    try:
        base = given if given.is_absolute() else Path('~/.local/state').expanduser()
    except RuntimeError as error:
        raise OSError(str(error)) from error
    return base / 'vla_policy_node'


class EstopRecord:
    """The record of one robot, in a file of its own. Methods may wait for the disk.

    directory: '' for the default one. domain: of ROS. node: fully qualified name; the two make
    the name of the file, so that no two robots share one.
    """

    def __init__(self, directory: str, domain: int, node: str):
        self._node = node
        self.path: Path | None = None
        self._homeless = ''
        try:
            folder = Path(directory).expanduser() if directory else default_directory()
        except (OSError, RuntimeError) as error:
            self._homeless = str(error)
            return
        self.path = folder.absolute() / f'estop.{domain}{node.replace("/", ".")}'

    def restore(self, session: Session, logger: logging.Logger | Any) -> str:
        """Latch the emergency stop if it was latched when the node last ended.

        logger: rclpy's. Returns a sentence if a stop could not be recorded, '' if all is well.
        """
        if problem := self.problem():
            logger.error(problem)
        if text := self.found():
            session.estop()
            logger.warning(text)
        elif session.is_estopped:
            with suppress(OSError):  # said above
                self.latch()
        return problem

    def found(self) -> str:
        """Return a sentence if the stop is latched by the record, '' if it is not."""
        if self.path is None:
            return ''
        release = f'call {self._node}/reset_estop (std_srvs/srv/Trigger) to release it.'
        try:
            os.lstat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return ''
        except OSError as error:
            return (f"The record of the emergency stop '{self.path}' cannot be looked at "
                    f'({error.strerror}), so the stop is latched; choose another state_directory, '
                    f'or {release}')
        return (f'The emergency stop is latched since before this start{self._since()}; '
                f"{release} '{self.path}' is its record.")

    def problem(self) -> str:
        """Return a sentence if a stop could not be recorded, '' if all is well."""
        try:
            if self.path is None:
                raise OSError(0, self._homeless)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path.parent) as file:
                file.write(b'x')
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            where = self.path.parent if self.path else '~/.local/state'
            return (f"An emergency stop would not survive a restart of this node: '{where}' "
                    f'cannot be written ({error.strerror or error}); choose another '
                    'state_directory.')
        return ''

    def latch(self) -> None:
        """Record that the stop is latched. Raises OSError."""
        if self.path is None:
            raise OSError(0, self._homeless)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = (os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
                 | os.O_CLOEXEC)
        try:
            file = os.open(self.path, flags, 0o644)
        except OSError:
            if os.path.lexists(self.path):  # what is there says so already
                return
            raise
        try:
            os.write(file, time.strftime('%Y-%m-%d %H:%M:%S UTC\n', time.gmtime()).encode())
            os.fsync(file)
        finally:
            os.close(file)
        self._sync_folder()

    def release(self) -> None:
        """Record that the stop is released. Raises OSError."""
        if self.path is None:
            return
        try:
            self.path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        self._sync_folder()

    def _sync_folder(self) -> None:
        assert self.path is not None
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _since(self) -> str:
        """Return when the record says that it was written."""
        assert self.path is not None
        try:
            file = os.open(
                self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                text = os.read(file, _MOST_BYTES).decode().strip()
            finally:
                os.close(file)
        except (OSError, ValueError):
            return ''
        return f' ({text})' if text and text.isprintable() else ''
