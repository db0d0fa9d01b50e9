"""Reads parameters of another node without needing permission to set them.

rclpy's AsyncParameterClient also makes clients of the services that set parameters; under SROS2 a
node that only reads would need permission for those.
"""

from collections.abc import Sequence

from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.node import Node
from rclpy.task import Future


class ParameterReader:
    """Asks for names and values. All methods return at once, from any thread.

    node: the asking node; remote: name of the node that is asked.
    """

    def __init__(self, node: Node, remote: str):
        self._list = node.create_client(ListParameters, f'{remote}/list_parameters')
        self._get = node.create_client(GetParameters, f'{remote}/get_parameters')

    def is_ready(self) -> bool:
        """Return whether the other node is there to answer."""
        return self._list.service_is_ready() and self._get.service_is_ready()

    def names(self) -> Future:
        """Ask for all names; the answer is a ListParameters.Response."""
        return self._list.call_async(ListParameters.Request())

    def values(self, names: Sequence[str]) -> Future:
        """Ask for values; the answer is a GetParameters.Response."""
        return self._get.call_async(GetParameters.Request(names=list(names)))
