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


def input_class(type_name: str) -> type:
    """Return the class of an input's messages. ValueError if its package is not installed."""
    try:
        return message_class(type_name)
    except ImportError:
        package = type_name.partition('/')[0]
        raise ValueError(
            f"The robot's contract needs {type_name}, and {package} is not installed; install "
            'it, or name a source of another type.') from None


def type_name(kind: type) -> str:
    """Return a message class's name as bags write it, for instance 'sensor_msgs/msg/Image'."""
    return f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}'
