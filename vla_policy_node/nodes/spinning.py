"""Runs the callbacks of nodes, whatever they raise."""

import threading
from collections.abc import Callable

from rclpy.executors import (
    Executor,
    ExternalShutdownException,
    ShutdownException,
    SingleThreadedExecutor,
)
from rclpy.node import Node

from vla_policy_node.nodes.failures import FailureLog

# How long a thread may take to stop; one that hangs is abandoned.
STOP_S = 2.0


def serve(
    executor: Executor,
    log: Callable[[str], None],
    going: Callable[[], bool],
    survives: type[BaseException] = Exception,
) -> None:
    """Serve callbacks while `going()`, which is checked after each and at least every 0.2 s.

    What a callback raises is logged in full and the next one is served: it may be rclpy's own,
    which anybody's request can make raise, and a robot whose node has died of a broken report
    cannot be stopped through it any more. Commands come from elsewhere, and notice by themselves
    when an input is missing.

    survives: exceptions that are logged; all others, such as a request to exit, propagate.
    """
    failures = FailureLog(log)
    while going() and executor.context.ok():
        try:
            executor.spin_once(0.2)
        except (ShutdownException, ExternalShutdownException):
            return
        except survives as error:
            failures.note(error)


class Spinner:
    """A thread that serves one node, whatever its callbacks raise."""

    def __init__(self, node: Node, name: str):
        self.executor = SingleThreadedExecutor(context=node.context)
        self.executor.add_node(node)
        self._logger = node.get_logger()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, or log that it hangs after STOP_S (any other thread)."""
        self._stopping = True
        self.executor.wake()
        self._thread.join(STOP_S)
        if self._thread.is_alive():
            self._logger.fatal(f'The thread {self._thread.name!r} hangs; restart the process.')
            return
        self.executor.shutdown()

    def _run(self) -> None:
        # A callback that exits must not end what serves stops.
        serve(self.executor, self._logger.fatal, lambda: not self._stopping, BaseException)
