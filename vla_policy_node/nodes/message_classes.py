"""Looks up rclpy's message classes by the names that bags and the graph use."""

from functools import cache
from importlib import import_module


@cache
def message_class(type_name: str) -> type:
    """Return the class of 'sensor_msgs/msg/Image'. ImportError or AttributeError if there is none.

    The name is imported, so it must not come from an untrusted sender.
    """
    package, _, name = type_name.partition('/msg/')
    return getattr(import_module(f'{package}.msg'), name)


def type_name(kind: type) -> str:
    """Return a message class's name as bags write it, for instance 'sensor_msgs/msg/Image'."""
    return f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}'
