"""A thread that serves one node."""

import threading
import traceback

from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor
from rclpy.node import Node


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
        """End the thread (any other thread)."""
        self._stopping = True
        self.executor.wake()
        self._thread.join()
        self.executor.shutdown()

    def _run(self) -> None:
        while not self._stopping and self.executor.context.ok():
            try:
                self.executor.spin_once(0.2)
            except (ShutdownException, ExternalShutdownException):
                return
            except BaseException:  # a callback that exits must not end what serves stops
                self._logger.fatal(traceback.format_exc())
