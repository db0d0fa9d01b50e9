"""Hands commands, resets and the request to stop from ROS threads to the world thread."""

import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import Any

from vla_msgs.msg import EndEffectorCommand
from vla_policy_node.nodes.messages import to_ns


class Inbox:
    """A mailbox with one reader, the world thread.

    A command is handed out at most once: commands are displacements, and applying one twice would
    move the arm twice.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._command: EndEffectorCommand | None = None
        self._requests: deque[tuple[Any, Future]] = deque()
        self._closed = False

    def file(self, command: EndEffectorCommand) -> None:
        """Replace the newest command (executor thread)."""
        with self._changed:
            self._command = command
            self._changed.notify_all()

    def request(self, request: Any) -> Future:
        """Queue a request; the world thread answers it through the future (executor thread)."""
        future = Future()
        with self._changed:
            if self._closed:
                future.cancel()
            else:
                self._requests.append((request, future))
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Ask the world thread to end; requests not yet served are cancelled (any thread)."""
        with self._changed:
            self._closed = True
            for _, future in self._requests:
                future.cancel()
            self._requests.clear()
            self._changed.notify_all()

    # The rest is for the world thread.

    @property
    def closed(self) -> bool:
        """Return whether the world thread should end."""
        return self._closed

    def next_request(self) -> tuple[Any, Future] | None:
        """Return the oldest request not yet served."""
        with self._changed:
            return self._requests.popleft() if self._requests else None

    def forget_command(self) -> None:
        """Drop the newest command: it was meant for the previous episode."""
        with self._changed:
            self._command = None

    def take_command(self, patience_s: float = 0.0) -> EndEffectorCommand | None:
        """Return the newest command not taken before; wait at most `patience_s` for one."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._called_away or self._command is not None, patience_s)
            command, self._command = self._command, None
            return command

    def wait_until(self, deadline_s: float) -> bool:
        """Sleep until a time of `time.monotonic`; return False if interrupted."""
        with self._changed:
            return not self._changed.wait_for(
                lambda: self._called_away, max(0.0, deadline_s - time.monotonic())
            )

    def wait_command(self, target_time_ns: int, timeout_s: float) -> EndEffectorCommand | None:
        """Wait for the action for one control period; holds and other periods do not count.

        Returns None at the timeout, or when interrupted.
        """

        def is_there() -> bool:
            command = self._command
            return (
                command is not None
                and not command.hold
                and to_ns(command.target_time) == target_time_ns
            )

        with self._changed:
            self._changed.wait_for(lambda: self._called_away or is_there(), timeout_s)
            if self._called_away or not is_there():
                return None
            command, self._command = self._command, None
            return command

    @property
    def called_away(self) -> bool:
        """Return whether a request or the end is waiting."""
        with self._changed:
            return self._called_away

    @property
    def _called_away(self) -> bool:
        return self._closed or bool(self._requests)
