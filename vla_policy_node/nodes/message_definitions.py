"""Definitions of installed message types, as a bag must carry them to explain itself."""

import importlib.util
import re
from pathlib import Path

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

_TYPE_NAME = re.compile(r'[a-z][a-z0-9_]*/msg/[A-Z][A-Za-z0-9]*')


def type_name(kind: type) -> str:
    """Return a message class's name as bags write it, for instance 'sensor_msgs/msg/Image'."""
    return f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}'


class UnknownTypeError(ValueError):
    """A message type that is not installed here; one sentence."""


class MessageDefinitions:
    """A typestore that learns types from the packages that are installed. One thread."""

    def __init__(self):
        self.store: Typestore = get_typestore(Stores.ROS2_KILTED)

    def learn(self, type_name: str) -> Typestore:
        """Return the store, knowing 'package/msg/Type' and what it is made of.

        Raises UnknownTypeError.
        """
        if type_name in self.store.types:
            return self.store
        package, _, name = type_name.partition('/msg/')
        if not _TYPE_NAME.fullmatch(type_name):  # from a bag it could be a path, or a module
            raise UnknownTypeError(f"'{type_name[:80]}' is no name of a message type.")
        try:
            text = (_share(package) / 'msg' / f'{name}.msg').read_text(encoding='utf-8')
        except OSError as error:
            raise UnknownTypeError(
                f'The message type {type_name} is not installed here; source the workspace '
                f'that has the package {package}.') from error
        found = get_types_from_msg(text, type_name)
        self.store.register({k: v for k, v in found.items() if k not in self.store.types})
        for _, (_, fields) in found.items():
            for _, kind in fields:
                self._learn_field(kind)
        return self.store

    def _learn_field(self, kind) -> None:
        node, detail = kind
        if isinstance(detail, tuple) and isinstance(detail[0], tuple):  # an array of something
            self._learn_field(detail[0])
        elif node.name == 'NAME' and '/msg/' in str(detail):
            self.learn(str(detail))


def _share(package: str) -> Path:
    """Return a package's share folder, which lies in the prefix that its Python module is in.

    Not by the ament index: a virtual environment works without being sourced.
    """
    spec = importlib.util.find_spec(package)
    for prefix in Path(spec.origin).parents if spec and spec.origin else ():
        if (prefix / 'share' / package).is_dir():
            return prefix / 'share' / package
    raise FileNotFoundError(package)
