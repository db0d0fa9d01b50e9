"""Message types by name, parsed from their .msg files without ROS."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from vla_policy_node.wire.former import FORMER, Former

_MOST_PADDING = 3  # bytes that some middlewares append, up to a multiple of four
_TYPE_NAME = re.compile(r'[a-z][a-z0-9_]*/msg/[A-Z][A-Za-z0-9]*')


class UnknownTypeError(ValueError):
    """A message type that is not installed here; one sentence."""


class MessageDefinitions:
    """A typestore that learns types from installed packages. One thread.

    ROS's own types come from the library; vla_msgs is also found in the source tree.
    """

    def __init__(self):
        self.store: Typestore = get_typestore(Stores.ROS2_KILTED)

    def learn(self, type_name: str) -> Typestore:
        """Return the store after registering 'package/msg/Type' and its parts.

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
        for _, (_, parts) in found.items():
            for _, kind in parts:
                self._learn_field(kind)
        return self.store

    def kind(self, type_name: str) -> Any:
        """Return the class of such a message, which takes every field by name."""
        return self.learn(type_name).types[type_name]

    def read(self, raw: bytes, type_name: str) -> Any:
        """Return a message from its bytes.

        Bytes that an earlier version wrote become a message of today (`wire.former`). What follows
        a complete message is ignored: a later version may have appended it. Raises whatever the
        library raises for bytes of another type.
        """
        definition = self.learn(type_name).get_msgdef(type_name)
        try:
            message, unread = self._parse(raw, definition)
        except Exception:
            former = self._read_former(raw, type_name)
            if former is None:
                raise
            return former
        if unread > _MOST_PADDING:
            return self._read_former(raw, type_name) or message
        return message

    def write(self, message: Any) -> bytes:
        """Return the bytes of a message of a class that `kind` returned."""
        return bytes(self.store.serialize_cdr(message, message.__msgtype__))

    def _parse(self, raw: bytes, definition: Any) -> tuple[Any, int]:
        """Return a message and how many bytes follow it."""
        if bytes(raw[:2]) not in (b'\0\0', b'\0\1'):
            raise ValueError('it does not begin with a plain CDR header')
        read = definition.deserialize_cdr_le if raw[1] else definition.deserialize_cdr_be
        message, end = read(raw[4:], 0, definition.cls, self.store)
        unread = len(raw) - 4 - end
        if unread < 0:  # the library reads a text that ends too early without a word
            raise ValueError('it ends too early')
        return message, unread

    def _read_former(self, raw: bytes, type_name: str) -> Any | None:
        """Return the message if its bytes are exactly one of an earlier definition."""
        for former in FORMER.get(type_name, ()):
            try:
                old, unread = self._parse(raw, self._definition_of(former, type_name))
            except Exception:  # the library may raise anything for bytes that do not fit
                continue
            if unread <= _MOST_PADDING:
                kind = self.kind(type_name)
                same = {field.name: getattr(old, field.name) for field in fields(kind)
                        if field.name != '__msgtype__' and hasattr(old, field.name)}
                return kind(**same, **former.added(old))
        return None

    def _definition_of(self, former: Former, type_name: str) -> Any:
        name = f'former_{FORMER[type_name].index(former)}/msg/{type_name.rpartition("/")[2]}'
        if name not in self.store.types:
            found = get_types_from_msg(former.definition, name)
            for _, (_, parts) in found.items():
                for _, kind in parts:
                    self._learn_field(kind)
            self.store.register(found)
        return self.store.get_msgdef(name)

    def _learn_field(self, kind) -> None:
        node, detail = kind
        if isinstance(detail, tuple) and isinstance(detail[0], tuple):  # an array of something
            self._learn_field(detail[0])
        elif node.name == 'NAME' and '/msg/' in str(detail):
            self.learn(str(detail))


def _share(package: str) -> Path:
    """Return a package's share folder, which lies in the prefix that its Python module is in.

    Not through the ament index: a virtual environment works without being sourced. If a package is
    not installed, its sources next to ours are used.
    """
    try:
        spec = importlib.util.find_spec(package)
    except ImportError:
        spec = None
    for prefix in Path(spec.origin).parents if spec and spec.origin else ():
        if (prefix / 'share' / package).is_dir():
            return prefix / 'share' / package
    sources = Path(__file__).parents[2] / package
    if (sources / 'package.xml').is_file():
        return sources
    raise FileNotFoundError(package)
